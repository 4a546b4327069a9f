//! What a verb answers, before it is written in the form the client wants.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

use super::{cache::Object, registry::Resource, status::Status};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// One object with an HTTP code.
#[derive(Debug)]
pub struct One {
    pub code: u16,
    pub object: Arc<Object>,
    pub warnings: Vec<String>,
}

/// A page of objects, all of one snapshot.
#[derive(Debug)]
pub struct Page {
    pub objects: Vec<Arc<Object>>,
    pub revision: u64,
    /// The token for the next page; empty for none.
    pub next: String,
    pub remaining: Option<usize>,
}

/// What a verb came to.
#[derive(Debug)]
pub enum Answer {
    Object(&'static Resource, One),
    List(&'static Resource, Page),
    /// An object that is not in the store: a Scale, a Status of success, a review.
    Plain {
        code: u16,
        value: serde_json::Value,
        type_name: &'static str,
        warnings: Vec<String>,
    },
}

/// `{"kind":"Status", ...}` of a failure.
pub fn status_value(status: &Status) -> serde_json::Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("kind".to_owned(), "Status".into());
        object.insert("apiVersion".to_owned(), "v1".into());
        let metadata = match status.next.as_str() {
            "" => serde_json::json!({}),
            next => serde_json::json!({"continue": next}),
        };
        object.insert("metadata".to_owned(), metadata);
        object.insert("status".to_owned(), "Failure".into());
    }
    value
}
