//! Strategic merge patch; the schema crate does the merging.

use proto::PatchFault;
use serde_json::Value;

use super::unprocessable;
use crate::apiserver::status::Status;

/// The patched object, and complaints about what stands twice in the patch.
pub(super) fn apply(
    ty: &'static proto::Type,
    current: &Value,
    body: &[u8],
) -> Result<(Value, Vec<String>), Status> {
    let (patch, complaints) = super::object(body)?;
    let merged = proto::strategic_merge(ty, current, patch);
    let merged = merged.map_err(|error| match error {
        proto::Error::Patch {
            fault: PatchFault::Format,
            reason,
        } => Status::bad_request(reason),
        other => unprocessable(other),
    })?;
    Ok((merged, complaints))
}
