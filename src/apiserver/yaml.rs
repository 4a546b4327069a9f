//! YAML bodies as JSON values: bounded, and what stands twice in a mapping is noticed. Pure.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

/// Duplicates named at most.
const MAX_NAMED: usize = 100;
/// Bytes of a key that are quoted.
const MAX_KEY: usize = 256;
/// Deepest nesting that is read, as for JSON.
const MAX_DEPTH: usize = 128;

/// A document, of keys given twice the last; and where keys stand twice, as `line 3: key "a"
/// already set in map`.
pub fn parse(text: &str) -> Result<(Value, Vec<String>), String> {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.with_snippet = false;
    let document = serde_saphyr::from_str_with_options::<Document>(text, options);
    let Document(value) = document.map_err(|error| error.to_string())?;
    let mut duplicates = Vec::new();
    let value = value.into_json(&mut duplicates);
    Ok((value, duplicates))
}

/// All duplicates as one complaint, in the words of the original's library; none if there are none.
pub fn complaint(duplicates: &[String]) -> Option<String> {
    (!duplicates.is_empty()).then(|| {
        let lines = duplicates.iter().map(|line| format!("\n  {line}"));
        format!("yaml: unmarshal errors:{}", lines.collect::<String>())
    })
}

struct Document(Node);

enum Node {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(String, u64, Node)>),
}

impl Node {
    fn into_json(self, duplicates: &mut Vec<String>) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => {
                let items = items.into_iter();
                items.map(|item| item.into_json(duplicates)).collect()
            }
            Self::Map(members) => {
                let mut map = Map::new();
                for (key, line, member) in members {
                    if map.contains_key(&key) && duplicates.len() < MAX_NAMED {
                        let shown: String = key.chars().take(MAX_KEY).collect();
                        duplicates.push(format!("line {line}: key {shown:?} already set in map"));
                    }
                    let member = member.into_json(duplicates);
                    map.insert(key, member);
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Level(MAX_DEPTH).deserialize(deserializer).map(Self)
    }
}

/// How much deeper it may go.
struct Level(usize);

impl Level {
    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        let left = self.0.checked_sub(1);
        left.map(Self)
            .ok_or_else(|| E::custom("recursion limit exceeded"))
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value).map_or(Value::Null, Value::Number);
        Ok(Node::Scalar(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = members.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            let member = members.next_value_seed(self.deeper()?)?;
            map.push((key.value, line, member));
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_twice_is_named_by_its_line() {
        let text = "\na: 1\nspec:\n  foo: x\n  list:\n  - b: 1\n    b: 2\n  foo: z\n";
        let (value, duplicates) = parse(text).expect("YAML");
        assert_eq!(
            value,
            json!({"a": 1, "spec": {"foo": "z", "list": [{"b": 2}]}})
        );
        assert_eq!(
            complaint(&duplicates).expect("some"),
            "yaml: unmarshal errors:\n  line 7: key \"b\" already set in map\n  line 8: key \"foo\" already set in map"
        );
        assert_eq!(complaint(&[]), None);
    }

    #[test]
    fn scalars_are_as_json_has_them() {
        for (text, want) in [
            ("a: 1", json!({"a": 1})),
            ("a: -1.5", json!({"a": -1.5})),
            ("a: true", json!({"a": true})),
            ("a: null", json!({"a": null})),
            ("a:", json!({"a": null})),
            ("a: ~", json!({"a": null})),
            ("a: '1'", json!({"a": "1"})),
            ("a: 8Gi", json!({"a": "8Gi"})),
            ("80: x", json!({"80": "x"})),
            (
                "{\"a\": [1, {\"b\": \"c\"}]}",
                json!({"a": [1, {"b": "c"}]}),
            ),
            ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
            ("a: &x {b: 1}\nc: *x", json!({"a": {"b": 1}, "c": {"b": 1}})),
            ("- 1", json!([1])),
        ] {
            assert_eq!(parse(text), Ok((want, Vec::new())), "{text}");
        }
    }

    #[test]
    fn bounds_and_malformed_text() {
        for bad in ["a: [", "{\"a\":1} x: y", "a: b: c", "a: *x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(1_000)).is_err());
    }
}
