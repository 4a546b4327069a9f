//! What a document costs in memory once it is decoded. Pure.
//!
//! Three bytes of JSON can become a map of several hundred bytes. Whoever decodes what a client
//! sent asks here first, so that the size of a body bounds the memory of a request.

use serde_json::Value;

use super::Error;

/// A document that would take more than this is not decoded.
pub const MAX_WEIGHT: usize = 64 << 20;

/// A value's slot in a list that doubles as it grows.
const SLOT: usize = 64;
/// A map with anything in it: its first node has room for eleven members.
pub(crate) const NODE: usize = 640;
/// The allocation of a string.
const TEXT: usize = 32;

/// About the bytes of memory that a JSON text takes as a [`Value`]; reads each byte once.
pub fn json_weight(text: &[u8]) -> usize {
    let mut weight = SLOT;
    let mut quoted = false;
    let mut escaped = false;
    let mut opened = false;
    for byte in text {
        if quoted {
            weight += 1;
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => continue,
            b'}' | b']' => {}
            _ if opened => weight += NODE,
            _ => {}
        }
        opened = matches!(byte, b'{' | b'[');
        match byte {
            b'"' => {
                quoted = true;
                weight += TEXT;
            }
            b',' => weight += SLOT,
            _ => {}
        }
    }
    weight
}

/// About the bytes of memory of a value.
pub fn weight(value: &Value) -> usize {
    SLOT + match value {
        Value::String(text) => TEXT + text.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(map) if map.is_empty() => 0,
        Value::Object(map) => {
            let members = map
                .iter()
                .map(|(name, value)| TEXT + name.len() + weight(value));
            NODE + members.sum::<usize>()
        }
        _ => 0,
    }
}

/// The bytes of a value as compact JSON, but for escapes.
pub fn json_size(value: &Value) -> usize {
    match value {
        Value::Null => 4,
        Value::Bool(_) => 5,
        Value::Number(number) => number.to_string().len(),
        Value::String(text) => text.len() + 2,
        Value::Array(list) => 2 + list.iter().map(|item| json_size(item) + 1).sum::<usize>(),
        Value::Object(map) => {
            let members = map
                .iter()
                .map(|(name, value)| name.len() + 4 + json_size(value));
            2 + members.sum::<usize>()
        }
    }
}

/// Items of all lists in a value, but for texts, numbers and the like.
pub fn count_items(value: &Value) -> usize {
    match value {
        Value::Array(list) => {
            let whole = list
                .iter()
                .filter(|item| item.is_object() || item.is_array());
            whole.clone().count() + whole.map(count_items).sum::<usize>()
        }
        Value::Object(map) => map.values().map(count_items).sum(),
        _ => 0,
    }
}

/// What may still be spent on one document.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    pub fn new() -> Self {
        Self(MAX_WEIGHT)
    }

    pub fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.0 = self.0.checked_sub(bytes).ok_or(Error::TooHeavy)?;
        Ok(())
    }

    pub fn spend_value(&mut self, text: usize) -> Result<(), Error> {
        self.spend(SLOT + TEXT + text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_estimate_is_never_far_below_what_the_value_takes() {
        let many = |item: &str, times: usize| format!("[{}]", vec![item; times].join(","));
        for text in [
            many("{}", 1000),
            many("1", 1000),
            many(r#"{"a":1}"#, 1000),
            many(r#"{"a":{"b":[]}}"#, 1000),
            many(r#"["x","y"]"#, 1000),
            many(r#""\"{[,\\""#, 1000),
            format!("{{\"a\" : \"{}\" }}", "{,".repeat(1000)),
        ] {
            let value: Value = serde_json::from_str(&text).expect("JSON");
            let (guess, real) = (json_weight(text.as_bytes()), weight(&value));
            assert!(guess * 2 >= real, "{text:.30}: {guess} for {real}");
            assert!(guess <= 20 * real, "{text:.30}: {guess} for {real}");
        }
        let brackets_in_text = json_weight(format!("\"{}\"", "{[,".repeat(1000)).as_bytes());
        assert!(brackets_in_text < 4000, "{brackets_in_text}");
    }

    #[test]
    fn sizes_and_items() {
        let value = json!({"a": [{}, {"b": [[], 1, "x"]}], "c": "text"});
        assert_eq!(count_items(&value), 3);
        let text = value.to_string().len();
        assert!(json_size(&value).abs_diff(text) < 16, "{text}");
    }
}
