//! One object as of one revision, in every form that somebody has asked for.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::store::Revision;

/// Forms of larger objects are not kept, but shared by all that need them at the same time: else
/// each byte in the store would be there three times in memory.
pub const LARGE: usize = 64 << 10;

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
    /// About its bytes as JSON.
    pub size: usize,
    json: OnceLock<Json>,
    large_json: Mutex<Weak<Json>>,
    protobuf: OnceLock<Bytes>,
}

/// Keeps the JSON of a large object for as long as some of it is used.
struct Shared(Arc<Json>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
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
            size: stored.len(),
            json: OnceLock::new(),
            large_json: Mutex::default(),
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
            size: self.size,
            json: OnceLock::new(),
            large_json: Mutex::default(),
            protobuf: OnceLock::new(),
        }
    }

    pub fn is_large(&self) -> bool {
        self.size > LARGE
    }

    /// Compact JSON, encoded on first use and shared from then on.
    pub fn json(&self) -> Bytes {
        self.encoded().0
    }

    /// The members besides kind and apiVersion, and the closing brace: as items of a list are
    /// written, after an opening brace.
    pub fn json_rest(&self) -> Bytes {
        let (bytes, rest) = self.encoded();
        bytes.slice(rest.min(bytes.len())..)
    }

    fn encoded(&self) -> (Bytes, usize) {
        if !self.is_large() {
            let json = self.json.get_or_init(|| encode(&self.value));
            return (json.bytes.clone(), json.rest);
        }
        let mut weak = self
            .large_json
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let json = weak.upgrade().unwrap_or_else(|| {
            let made = Arc::new(encode(&self.value));
            *weak = Arc::downgrade(&made);
            made
        });
        let rest = json.rest;
        (Bytes::from_owner(Shared(json)), rest)
    }

    /// The bare protobuf message, without an envelope.
    pub fn protobuf(&self, ty: &proto::Type) -> Result<Bytes, proto::Error> {
        if let Some(bytes) = self.protobuf.get() {
            return Ok(bytes.clone());
        }
        let bytes: Bytes = proto::encode(ty, &self.value)?.into_boxed_slice().into();
        match self.is_large() {
            true => Ok(bytes),
            false => Ok(self.protobuf.get_or_init(|| bytes).clone()),
        }
    }

    pub fn labels(&self) -> Option<&serde_json::Map<String, Value>> {
        self.value.get("metadata")?.get("labels")?.as_object()
    }
}

fn encode(value: &Value) -> Json {
    let Value::Object(map) = value else {
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        return Json {
            bytes: bytes.into_boxed_slice().into(),
            rest: 1,
        };
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
        // Without the room that the vector had to grow.
        bytes: out.into_boxed_slice().into(),
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
