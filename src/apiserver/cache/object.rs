//! One object as of one revision, in every form that somebody has asked for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::store::Revision;

/// Compact JSON that begins with kind and apiVersion.
#[derive(Debug)]
struct Json {
    bytes: Bytes,
    /// Where the other members begin.
    rest: usize,
}

#[derive(Debug)]
pub struct Object {
    pub key: Arc<str>,
    pub revision: Revision,
    /// Empty for cluster scope.
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// With the resourceVersion in it.
    pub value: Arc<Value>,
    json: OnceLock<Json>,
    protobuf: OnceLock<Bytes>,
}

impl Object {
    /// From the bytes in the store, which hold no resourceVersion.
    pub fn new(
        key: Arc<str>,
        rest: &str,
        stored: &[u8],
        revision: Revision,
    ) -> Result<Self, serde_json::Error> {
        let mut value: Value = serde_json::from_slice(stored)?;
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
        }
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        let (namespace, name) = (namespace.into(), name.into());
        Ok(Self {
            key,
            revision,
            namespace,
            name,
            value: Arc::new(value),
            json: OnceLock::new(),
            protobuf: OnceLock::new(),
        })
    }

    /// The same object in the form of another version of its kind.
    pub fn converted(&self, value: Value) -> Self {
        Self {
            key: self.key.clone(),
            revision: self.revision,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            value: Arc::new(value),
            json: OnceLock::new(),
            protobuf: OnceLock::new(),
        }
    }

    /// Compact JSON, encoded on first use and shared from then on.
    pub fn json(&self) -> &Bytes {
        &self.json.get_or_init(|| encode(&self.value)).bytes
    }

    /// The members besides kind and apiVersion, and the closing brace: as items of a list are
    /// written, after an opening brace.
    pub fn json_rest(&self) -> &[u8] {
        let json = self.json.get_or_init(|| encode(&self.value));
        json.bytes.get(json.rest..).unwrap_or_default()
    }

    /// The bare protobuf message, without an envelope.
    pub fn protobuf(&self, ty: &proto::Type) -> Result<&Bytes, proto::Error> {
        if let Some(bytes) = self.protobuf.get() {
            return Ok(bytes);
        }
        let bytes = proto::encode(ty, &self.value)?.into();
        Ok(self.protobuf.get_or_init(|| bytes))
    }

    pub fn labels(&self) -> Option<&serde_json::Map<String, Value>> {
        self.value.get("metadata")?.get("labels")?.as_object()
    }
}

fn encode(value: &Value) -> Json {
    let Value::Object(map) = value else {
        let bytes = serde_json::to_vec(value).unwrap_or_default().into();
        return Json { bytes, rest: 1 };
    };
    let mut out = vec![b'{'];
    let mut put = |name: &str, value: &Value| {
        if out.len() > 1 {
            out.push(b',');
        }
        // Values of JSON always become JSON, and a vector takes every write.
        let _ = serde_json::to_writer(&mut out, name);
        out.push(b':');
        let _ = serde_json::to_writer(&mut out, value);
        out.len()
    };
    let mut rest = 1;
    for name in ["kind", "apiVersion"] {
        if let Some(value) = map.get(name) {
            rest = put(name, value) + 1;
        }
    }
    let mut others = false;
    for (name, value) in map {
        if !matches!(name.as_str(), "kind" | "apiVersion") {
            put(name, value);
            others = true;
        }
    }
    let rest = if others { rest } else { out.len() };
    out.push(b'}');
    Json {
        bytes: out.into(),
        rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_comes_first_and_can_be_left_out() {
        for (value, whole, rest) in [
            (
                json!({"apiVersion": "v1", "data": {}, "kind": "K", "z": 1}),
                r#"{"kind":"K","apiVersion":"v1","data":{},"z":1}"#,
                r#""data":{},"z":1}"#,
            ),
            (json!({"a": 1}), r#"{"a":1}"#, r#""a":1}"#),
            (json!({"kind": "K"}), r#"{"kind":"K"}"#, "}"),
        ] {
            let json = encode(&value);
            assert_eq!(json.bytes, whole);
            assert_eq!(&json.bytes[json.rest..], rest.as_bytes());
        }
    }
}
