//! Strategic merge patch; the schema crate does the merging.

use proto::PatchFault;
use serde_json::Value;

use super::unprocessable;
use crate::apiserver::status::Status;

pub(super) fn apply(
    ty: &'static proto::Type,
    current: &Value,
    body: &[u8],
) -> Result<Value, Status> {
    let patch = super::object(body)?;
    proto::strategic_merge(ty, current, &patch).map_err(|error| match error {
        proto::Error::Patch {
            fault: PatchFault::Format,
            reason,
        } => Status::bad_request(reason),
        other => unprocessable(other),
    })
}
