//! Endpoints that are not objects in the store: reviews, token requests, bindings, evictions.
//!
//! Each handler is a file beside what it belongs to and is found through [`Special::serves`]; the
//! verbs decode its body and encode its answer like any object.

mod binding;
mod eviction;

use std::sync::Arc;

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

/// The handlers of pods: bindings and evictions. Reviews and tokens have theirs with authn, authz.
pub fn of_pods() -> Vec<Arc<dyn Special>> {
    vec![Arc::new(binding::Binding), Arc::new(eviction::Eviction)]
}

/// The answer of handlers that have nothing to show.
fn success() -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201})
}
