//! Endpoints that are not objects in the store: reviews, token requests, bindings, evictions.
//!
//! Each handler is a file beside what it belongs to and is found through [`Special::serves`]; the
//! verbs decode its body and encode its answer like any object.

use serde_json::Value;

use super::{objects::Objects, registry::Resource, request::User, status::Status};

/// One POST to a special endpoint.
pub struct Call<'a> {
    pub user: &'a User,
    pub resource: &'a Resource,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    /// Empty for create-only kinds such as TokenReview.
    pub name: &'a str,
    pub dry_run: bool,
    pub objects: &'a dyn Objects,
}

#[async_trait::async_trait]
pub trait Special: Send + Sync {
    /// Whether this handler answers POST on `resource` (and subresource).
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool;

    /// The answer's object; its HTTP code is 201.
    async fn create(&self, call: &Call<'_>, body: Value) -> Result<Value, Status>;
}
