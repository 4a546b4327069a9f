//! How plugins, authorizers and special handlers inside the API server reach objects.
//!
//! The verbs implement these; nothing else inside `apiserver` opens the store. Objects are named
//! by `plural`: `pods`, or with the group where there is one, `deployments.apps`.

use std::sync::Arc;

use serde_json::Value;

use super::{
    registry::{Resource, table},
    request::User,
    status::Status,
};
use crate::store::Guard;

/// Reads current objects, fresh as of the last finished write.
#[async_trait::async_trait]
pub trait Lookup: Send + Sync {
    async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// Namespace empty: all namespaces.
    async fn list(&self, plural: &str, namespace: &str) -> Vec<Arc<Value>>;

    /// The row of `pods` or `deployments.apps`.
    fn row(&self, plural: &str) -> Option<&'static Resource> {
        table::by_plural(plural)
    }

    /// The row of a kind in one version.
    fn row_of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
        super::registry::kinds::table()
            .iter()
            .find(|row| row.is_kind(group, version, kind))
    }

    /// Every row over the same stored objects: the versions of one kind.
    fn rows_of(&self, storage: &str) -> Vec<&'static Resource> {
        let rows = super::registry::kinds::table().iter();
        rows.filter(|row| row.storage == storage).collect()
    }

    /// Rises with every change to an object of that kind, so that indexes are rebuilt only then.
    fn changed(&self, plural: &str) -> u64;
}

/// Changes objects past authorization but with admission, defaulting, validation and conflicts
/// like every other write.
#[async_trait::async_trait]
pub trait Objects: Lookup {
    async fn create(
        &self,
        user: &User,
        plural: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status>;

    /// Reads, lets `change` alter the object, writes; again on a conflict. `subresource` empty
    /// for the main endpoint. `trusted`: prepare_update and immutability are skipped (a binding
    /// sets spec.nodeName).
    async fn update(
        &self,
        user: &User,
        target: Named<'_>,
        trusted: bool,
        change: &(dyn for<'v> Fn(&'v mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Value, Status>;

    /// `options` is a DeleteOptions object (`{}` for none). `guards`: what else must be as it was when
    /// the deletion was decided on, or it is a conflict.
    async fn delete(
        &self,
        user: &User,
        target: Named<'_>,
        options: Value,
        guards: Vec<Guard>,
    ) -> Result<Value, Status>;
}

/// One object, by name.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub plural: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}
