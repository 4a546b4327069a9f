//! One object as of one revision, in every form that somebody has asked for.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::store::{self, Revision};

/// Forms of larger objects are not kept, but shared by all that need them at the same time: else
/// each byte in the store would be there three times in memory.
pub const LARGE: usize = 64 << 10;
/// What would take more than this when parsed is not kept so. A list of small maps takes thirty times
/// its bytes.
const HEAVY: usize = 64 << 10;
/// Heavy objects that are kept parsed for a while, in bytes of memory.
const RECENT: usize = 8 << 20;

/// Compact JSON that begins with kind and apiVersion.
#[derive(Debug)]
struct Json {
    bytes: Bytes,
    /// Where the other members begin.
    rest: usize,
    /// Where `metadata.managedFields` stand, with the comma; empty where there are none.
    owners: Range<usize>,
}

/// The bytes of an object as it is written in JSON.
#[derive(Debug)]
pub struct JsonForm {
    bytes: Bytes,
    rest: usize,
    owners: Range<usize>,
}

impl JsonForm {
    pub fn whole(&self) -> Bytes {
        self.bytes.clone()
    }

    /// In pieces. `kind`: with kind and apiVersion, else what follows them, as items of a list are written
    /// after an opening brace. `owners`: with `metadata.managedFields`.
    pub fn pieces(&self, kind: bool, owners: bool) -> [Bytes; 2] {
        let end = self.bytes.len();
        let begin = if kind { 0 } else { self.rest.min(end) };
        if owners || self.owners.is_empty() {
            return [self.bytes.slice(begin..), Bytes::new()];
        }
        let cut = &self.owners;
        // The metadata comes after what names the kind.
        [
            self.bytes.slice(begin.min(cut.start)..cut.start),
            self.bytes.slice(cut.end..),
        ]
    }
}

#[derive(Debug)]
pub struct Object {
    pub key: Arc<str>,
    pub revision: Revision,
    /// Empty for cluster scope.
    pub namespace: Box<str>,
    pub name: Box<str>,
    content: Content,
    /// About its bytes as JSON.
    pub size: usize,
    /// About the bytes of memory that it takes for as long as it is kept.
    pub weight: usize,
    json: OnceLock<Json>,
    large_json: Mutex<Weak<Json>>,
    protobuf: OnceLock<Bytes>,
}

#[derive(Debug)]
enum Content {
    /// With the resourceVersion in it.
    Parsed(Arc<Value>),
    /// As the store has it, which shares the bytes: parsed it would be many times as large.
    Stored {
        stored: store::Value,
        parsed: Mutex<Weak<Value>>,
        recent: Arc<Recent>,
    },
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
        let content = Content::Parsed(Arc::new(parse(stored, revision)?));
        Ok(Self {
            weight: proto::json_weight(stored),
            ..Self::of(key, rest, content, stored.len(), revision)
        })
    }

    fn of(key: Arc<str>, rest: &str, content: Content, size: usize, revision: Revision) -> Self {
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        Self {
            namespace: namespace.into(),
            name: name.into(),
            key,
            revision,
            content,
            size,
            weight: size,
            json: OnceLock::new(),
            large_json: Mutex::default(),
            protobuf: OnceLock::new(),
        }
    }

    /// What a write has made, for its answer alone: nobody keeps it.
    pub fn answered(key: Arc<str>, rest: &str, value: Value, revision: Revision) -> Self {
        Self::of(key, rest, Content::Parsed(Arc::new(value)), 0, revision)
    }

    /// As [`Object::new`], to be kept for long: what is heavy when parsed is kept as it is stored.
    pub fn kept(
        key: Arc<str>,
        rest: &str,
        stored: store::Value,
        revision: Revision,
        recent: &Arc<Recent>,
    ) -> Result<Self, serde_json::Error> {
        if !stored.is_compressed() {
            let bytes = stored.bytes();
            if proto::json_weight(&bytes) <= HEAVY {
                return Self::new(key, rest, &bytes, revision);
            }
        }
        // Whoever looks first parses it: the one task that follows the store does not.
        let (size, weight) = (stored.size(), stored.memory());
        let content = Content::Stored {
            stored,
            parsed: Mutex::default(),
            recent: recent.clone(),
        };
        Ok(Self {
            weight,
            ..Self::of(key, rest, content, size, revision)
        })
    }

    /// The object as a whole, with the resourceVersion in it.
    pub fn value(&self) -> Arc<Value> {
        let (stored, parsed, recent) = match &self.content {
            Content::Parsed(value) => return value.clone(),
            Content::Stored {
                stored,
                parsed,
                recent,
            } => (stored, parsed, recent),
        };
        let lock = || parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = lock().upgrade() {
            return value;
        }
        // Not under the lock: a thread that yields to others may be at it, and they would wait for it.
        let bytes = stored.bytes();
        let value = parse(&bytes, self.revision).unwrap_or_else(|error| {
            tracing::error!(key = %self.key, %error, "an object in the store is not JSON");
            Value::Null
        });
        let value = Arc::new(value);
        let mut parsed = lock();
        if let Some(other) = parsed.upgrade() {
            return other;
        }
        *parsed = Arc::downgrade(&value);
        recent.keep(value.clone(), proto::json_weight(&bytes));
        value
    }

    /// The same object in the form of another version of its kind.
    pub fn converted(&self, value: Value) -> Self {
        Self {
            key: self.key.clone(),
            revision: self.revision,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            content: Content::Parsed(Arc::new(value)),
            size: self.size,
            weight: self.weight,
            json: OnceLock::new(),
            large_json: Mutex::default(),
            protobuf: OnceLock::new(),
        }
    }

    /// Whether it is too large for its encodings to be kept, or not even kept parsed.
    pub fn is_large(&self) -> bool {
        self.size > LARGE || matches!(self.content, Content::Stored { .. })
    }

    /// Compact JSON, encoded on first use and shared from then on.
    pub fn json(&self) -> Bytes {
        self.json_form().bytes
    }

    pub fn json_form(&self) -> JsonForm {
        let of = |json: &Json, bytes: Bytes| JsonForm {
            bytes,
            rest: json.rest,
            owners: json.owners.clone(),
        };
        if !self.is_large() {
            let json = self.json.get_or_init(|| encode(&self.value()));
            return of(json, json.bytes.clone());
        }
        let lock = || {
            self.large_json
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let shared = lock().upgrade();
        let json = shared.unwrap_or_else(|| {
            let made = Arc::new(encode(&self.value()));
            *lock() = Arc::downgrade(&made);
            made
        });
        let bytes = Bytes::from_owner(Shared(json.clone()));
        of(&json, bytes)
    }

    /// The bare protobuf message, without an envelope.
    pub fn protobuf(&self, ty: &proto::Type) -> Result<Bytes, proto::Error> {
        if let Some(bytes) = self.protobuf.get() {
            return Ok(bytes.clone());
        }
        let bytes: Bytes = proto::encode(ty, &self.value())?.into_boxed_slice().into();
        match self.is_large() {
            true => Ok(bytes),
            false => Ok(self.protobuf.get_or_init(|| bytes).clone()),
        }
    }
}

/// The object with its revision.
fn parse(stored: &[u8], revision: Revision) -> Result<Value, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(stored)?;
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
    }
    Ok(value)
}

/// The heavy objects that were parsed last, for all who look at the same change one after another.
#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<(Arc<Value>, usize)>>);

impl Recent {
    fn keep(&self, value: Arc<Value>, weight: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((value, weight));
        while kept.len() > 1 && kept.iter().map(|(_, weight)| weight).sum::<usize>() > RECENT {
            kept.pop_front();
        }
    }

    /// Lets go of all of them.
    pub fn forget(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

fn encode(value: &Value) -> Json {
    let Value::Object(map) = value else {
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        return Json {
            bytes: bytes.into_boxed_slice().into(),
            rest: 1,
            owners: 0..0,
        };
    };
    let mut out = vec![b'{'];
    let mut owners = 0..0;
    for name in ["kind", "apiVersion"] {
        if let Some(value) = map.get(name) {
            put(&mut out, name, value);
        }
    }
    let named = out.len() > 1;
    let mut rest = out.len();
    for (name, value) in map {
        match (name.as_str(), value) {
            ("kind" | "apiVersion", _) => {}
            ("metadata", Value::Object(metadata)) => {
                put_name(&mut out, name);
                owners = put_metadata(&mut out, metadata);
            }
            _ => put(&mut out, name, value),
        }
    }
    if named && out.len() > rest {
        rest += 1; // the comma
    }
    out.push(b'}');
    Json {
        // Without the room that the vector had to grow.
        bytes: out.into_boxed_slice().into(),
        rest,
        owners,
    }
}

/// Adds a member to an object that was begun.
fn put(out: &mut Vec<u8>, name: &str, value: &Value) {
    put_name(out, name);
    // Values of JSON always become JSON, and a vector takes every write.
    let _ = serde_json::to_writer(out, value);
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    let _ = serde_json::to_writer(&mut *out, name);
    out.push(b':');
}

/// Answers where the owners of fields stand.
fn put_metadata(out: &mut Vec<u8>, metadata: &Map<String, Value>) -> Range<usize> {
    out.push(b'{');
    let mut owners = 0..0;
    for (name, value) in metadata {
        let start = out.len();
        put(out, name, value);
        if name == "managedFields" {
            owners = start..out.len();
        }
    }
    // Where they come first the comma after them goes with them.
    if out.get(owners.start) == Some(&b'"') && owners.end < out.len() {
        owners.end += 1;
    }
    out.push(b'}');
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heavy_when_parsed_is_kept_as_it_is_stored() {
        let recent = Arc::new(Recent::default());
        let object = |items: usize| {
            let value = json!({"metadata": {}, "data": vec![json!({"a": 1}); items]});
            let stored = store::Value::new(value.to_string().into());
            let key = "/registry/x/d/n".into();
            Object::kept(key, "d/n", stored, 7, &recent).unwrap()
        };
        let (light, heavy) = (object(10), object(1000));
        assert!(light.weight > light.size && heavy.weight == heavy.size);

        // Who looks at it next, and next again, finds it parsed.
        let value = heavy.value();
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        assert!(Arc::ptr_eq(&value, &heavy.value()));
        let seen = Arc::downgrade(&value);
        drop(value);
        assert!(seen.strong_count() > 0);

        // That much and no more: the oldest make room, and in the end all of them go.
        let others: Vec<Object> = (0..RECENT / 700_000 + 1).map(|_| object(1000)).collect();
        let last = others.iter().map(|one| Arc::downgrade(&one.value())).last();
        let last = last.unwrap();
        assert_eq!((seen.strong_count(), last.strong_count()), (0, 1));
        recent.forget();
        assert_eq!(last.strong_count(), 0);
        assert_eq!(heavy.value()["data"].as_array().unwrap().len(), 1000);
    }

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

    #[test]
    fn owners_can_be_left_out() {
        let owners = json!([{"manager": "m"}]);
        for (metadata, left) in [
            (json!({"managedFields": owners}), r#"{}"#),
            (
                json!({"managedFields": owners, "name": "n"}),
                r#"{"name":"n"}"#,
            ),
            (
                json!({"labels": {}, "managedFields": owners}),
                r#"{"labels":{}}"#,
            ),
            (
                json!({"labels": {}, "managedFields": owners, "name": "n"}),
                r#"{"labels":{},"name":"n"}"#,
            ),
            (json!({"name": "n"}), r#"{"name":"n"}"#),
            (json!({}), "{}"),
        ] {
            let value =
                json!({"kind": "K", "apiVersion": "v1", "a": 1, "metadata": metadata, "z": 2});
            let key = "/registry/x/d/n".into();
            let form = Object::answered(key, "d/n", value.clone(), 7).json_form();
            let text = |kind, owners| {
                let pieces = form.pieces(kind, owners);
                String::from_utf8(pieces.concat()).unwrap()
            };
            let rest = format!(r#""a":1,"metadata":{left},"z":2}}"#);
            assert_eq!(
                text(true, false),
                format!(r#"{{"kind":"K","apiVersion":"v1",{rest}"#)
            );
            assert_eq!(text(false, false), rest);
            let whole: Value = serde_json::from_str(&text(true, true)).unwrap();
            assert_eq!(whole, value);
        }
    }

    #[test]
    fn forms_of_large_objects_are_shared_and_not_kept() {
        for (bytes, kept) in [(100, true), (LARGE + 1, false)] {
            let value = json!({"metadata": {}, "data": {"a": "x".repeat(bytes)}});
            let key = "/registry/configmaps/d/n".into();
            let object = Object::new(key, "d/n", value.to_string().as_bytes(), 7).unwrap();
            let (one, other) = (object.json(), object.json());
            assert_eq!(one.as_ptr(), other.as_ptr(), "{bytes}");
            drop((one, other));
            let held = object.json.get().is_some();
            let shared = object.large_json.lock().unwrap().upgrade().is_some();
            assert_eq!((held, shared), (kept, false), "{bytes}");
            let ty = proto::schema().get("io.k8s.api.core.v1.ConfigMap").unwrap();
            object.protobuf(ty).unwrap();
            assert_eq!(object.protobuf.get().is_some(), kept, "{bytes}");
        }
    }
}
