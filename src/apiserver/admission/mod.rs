//! Admission: plugins that complete or refuse a write, each a file.
//!
//! Called by the verbs, after authorization: first every plugin's `mutate` in order, then
//! defaulting and validation, then every plugin's `validate`.

use serde_json::Value;

use super::{objects::Lookup, registry::Resource, request::User, status::Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write under way.
pub struct Request<'a> {
    pub user: &'a User,
    pub operation: Operation,
    pub resource: &'a Resource,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    /// Empty on create with generateName.
    pub name: &'a str,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// Texts for `Warning` headers.
    pub warnings: &'a mut Vec<String>,
}

/// One admission plugin.
#[async_trait::async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// May change `object` (absent on delete).
    async fn mutate(
        &self,
        _request: &mut Request<'_>,
        _object: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(
        &self,
        _request: &mut Request<'_>,
        _object: Option<&Value>,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// After an allowed object was not written after all, or was deleted: gives back what `mutate`
    /// took (an address, a port).
    async fn release(&self, _resource: &Resource, _object: &Value) {}
}
