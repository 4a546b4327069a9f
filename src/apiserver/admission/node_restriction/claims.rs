//! What a node may write of claims: how far a resize has come, and nothing else.

use serde_json::{Value, json};

use super::Asked;
use crate::apiserver::{admission::Operation, registry::kinds::value::remove, status::Status};

const RESIZED: [&str; 4] = [
    "status.capacity",
    "status.conditions",
    "status.allocatedResources",
    "status.allocatedResourceStatuses",
];
/// The server's own.
const BOOKKEEPING: [&str; 2] = ["metadata.resourceVersion", "metadata.managedFields"];

pub fn status(asked: &Asked<'_>) -> Result<(), Status> {
    let (Operation::Update, Some(old)) = (asked.request.operation, asked.request.old) else {
        return asked.unexpected_operation();
    };
    let (new, old) = (rest(asked.object), rest(old));
    if new == old {
        return Ok(());
    }
    let part = |object: &Value, name: &str| object.get(name).cloned().unwrap_or_default();
    let parts = ["metadata", "spec", "status"];
    let changed = parts
        .into_iter()
        .filter(|name| part(&new, name) != part(&old, name));
    asked.refuse(&format!(
        "node {:?} is not allowed to update fields other than status.quantity and status.conditions: {} changed",
        asked.node,
        changed.collect::<Vec<_>>().join(", ")
    ))
}

/// The object without what may change; what is empty then is as good as absent.
fn rest(claim: &Value) -> Value {
    let mut rest = claim.clone();
    for path in RESIZED.into_iter().chain(BOOKKEEPING) {
        remove(&mut rest, path);
    }
    if rest["status"] == json!({}) {
        remove(&mut rest, "status");
    }
    for name in ["labels", "annotations"] {
        if rest["metadata"][name] == json!({}) {
            remove(&mut rest["metadata"], name);
        }
    }
    rest
}
