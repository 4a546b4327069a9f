//! JSON merge patch (RFC 7386): null deletes, lists are replaced.

use serde_json::Value;

use crate::apiserver::status::Status;

/// The patched object, and complaints about what stands twice in the patch.
pub(super) fn apply(current: &Value, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let (patch, complaints) = super::object(body)?;
    let mut patched = current.clone();
    json_patch::merge(&mut patched, &patch);
    Ok((patched, complaints))
}
