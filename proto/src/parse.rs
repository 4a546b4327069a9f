//! JSON bodies: size and depth bounded, duplicate members noticed.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{
    Error,
    prune::shortened,
    weigh::{MAX_WEIGHT, json_weight},
};

/// Largest JSON text read: the API's limit on request bodies.
pub const MAX_BYTES: usize = 3 * 1024 * 1024;

/// Duplicates named at most.
const MAX_NAMED: usize = 100;

/// Reads JSON. Of members given twice the last one counts, as in Go; their paths come back as
/// `spec.containers[0].image`. Nesting is bounded by serde_json (128 levels), size by 3 MiB,
/// memory by [`MAX_WEIGHT`].
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::Json(format!("more than {MAX_BYTES} bytes")));
    }
    if json_weight(bytes) > MAX_WEIGHT {
        return Err(Error::TooHeavy);
    }
    let mut notes = Notes::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node(&mut notes)
        .deserialize(&mut deserializer)
        .map_err(|error| Error::Json(error.to_string()))?;
    deserializer
        .end()
        .map_err(|error| Error::Json(error.to_string()))?;
    Ok((value, notes.duplicates))
}

#[derive(Default)]
struct Notes {
    path: String,
    duplicates: Vec<String>,
}

struct Node<'a>(&'a mut Notes);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, bit: bool) -> Result<Value, E> {
        Ok(Value::Bool(bit))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let length = self.0.path.len();
        loop {
            // Writing to a String cannot fail.
            let _ = fmt::Write::write_fmt(&mut self.0.path, format_args!("[{}]", list.len()));
            let item = items.next_element_seed(Node(self.0))?;
            self.0.path.truncate(length);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let length = self.0.path.len();
        while let Some(name) = members.next_key::<String>()? {
            if length > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&name);
            if map.contains_key(&name) && self.0.duplicates.len() < MAX_NAMED {
                self.0.duplicates.push(shortened(&self.0.path));
            }
            let value = members.next_value_seed(Node(self.0))?;
            self.0.path.truncate(length);
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_named_and_the_last_counts() {
        let text = br#"{"a":1,"spec":{"list":[{"x":1,"x":2}],"a":null},"a":9223372036854775807}"#;
        let (value, duplicates) = parse_json(text).expect("JSON");
        assert_eq!(
            value,
            json!({"a": i64::MAX, "spec": {"list": [{"x": 2}], "a": null}})
        );
        assert_eq!(duplicates, ["spec.list[0].x", "a"]);
    }

    #[test]
    fn bounds_and_malformed_text() {
        let deep = "[".repeat(100_000);
        assert!(matches!(parse_json(deep.as_bytes()), Err(Error::Json(_))));
        assert!(matches!(
            parse_json(&vec![b' '; MAX_BYTES + 1]),
            Err(Error::Json(_))
        ));
        let heavy = format!("[{}]", vec![r#"{"a":1}"#; 300_000].join(","));
        assert_eq!(parse_json(heavy.as_bytes()), Err(Error::TooHeavy));
        for bad in ["", "{", "{} x", "{\"a\":}", "nul"] {
            assert!(parse_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
