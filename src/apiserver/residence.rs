//! Where a new object lives: in a namespace, and under the definition of its kind.
//!
//! Called for every new object right before its commit, which then depends on both being what they
//! are here: an object that took long to be admitted is not left behind in a namespace, or under a
//! definition, that is being deleted meanwhile.

use serde_json::Value;

use super::{
    admission, cache,
    registry::{Resource, Scope, kinds::value::text},
    server::ApiServer,
    status::{Reason, Status},
};
use crate::store::{Expect, Guard};

const DEFINITIONS: &str = "customresourcedefinitions";

/// What the commit depends on; an error if the object may not be there at all.
pub async fn guards(
    server: &ApiServer,
    row: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Vec<Guard>, Status> {
    let mut guards = Vec::new();
    if row.scope != Scope::Namespaced && row.custom.is_none() {
        return Ok(guards);
    }
    server.cache.caught_up().await;
    if row.scope == Scope::Namespaced {
        let key = cache::key("namespaces", "", namespace);
        let found = server.cache.kind("namespaces").get(&key);
        let value = found.as_ref().map(|found| found.value());
        if let Some(status) = admission::namespace_refusal(row, name, namespace, value.as_deref()) {
            return Err(status);
        }
        guards.extend(found.map(|found| Guard {
            key,
            expect: Expect::ModRevision(found.revision),
        }));
    }
    if let Some(custom) = row.custom {
        let key = cache::key(DEFINITIONS, "", row.storage);
        let found = server.cache.kind(DEFINITIONS).get(&key);
        let value = found.as_ref().map(|found| found.value());
        if let Some(status) = undefined(&custom.definition, value.as_deref()) {
            return Err(status);
        }
        guards.extend(found.map(|found| Guard {
            key,
            expect: Expect::ModRevision(found.revision),
        }));
    }
    Ok(guards)
}

/// Why no new object may be made under this definition. `uid`: of the one that the request began
/// with.
fn undefined(uid: &str, found: Option<&Value>) -> Option<Status> {
    let Some(found) = found.filter(|found| text(found, "metadata.uid") == uid) else {
        let message = "the server could not find the requested resource";
        return Some(Status::new(Reason::NotFound, message));
    };
    found["metadata"]["deletionTimestamp"].is_string().then(|| {
        let message =
            "create not allowed while custom resource definition is terminating".to_owned();
        Status::new(Reason::MethodNotAllowed, message)
    })
}
