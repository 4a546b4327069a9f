//! One object as of one revision, in every form that somebody has asked for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::store::Revision;

#[derive(Debug)]
pub struct Object {
    pub key: Arc<str>,
    pub revision: Revision,
    /// Empty for cluster scope.
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// With the resourceVersion in it.
    pub value: Arc<Value>,
    json: OnceLock<Bytes>,
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
        self.json
            .get_or_init(|| serde_json::to_vec(&*self.value).unwrap_or_default().into())
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
