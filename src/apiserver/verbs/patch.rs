//! PATCH: the current object, changed, then written like an update.

use serde_json::{Value, json};

use super::update::{check_immutable, check_version, merged};
use crate::apiserver::{
    metadata,
    patch::{self, PatchType},
    server::ApiServer,
    status::{Reason, Status},
    write::{Writing, Written, check_kind},
};

/// A patch without a resourceVersion is applied again when another writer came first.
const RETRIES: usize = 16;

pub async fn patch(
    server: &ApiServer,
    writing: &Writing,
    kind: PatchType,
    body: &[u8],
) -> Result<Written, Status> {
    let row = writing.row;
    let ty = match row.custom {
        Some(_) => None,
        None => Some(writing.type_of()?),
    };
    let mut last = None;
    for _ in 0..RETRIES {
        let old = server.read(row, &writing.namespace, &writing.name).await?;
        let (mut new, complaints): (Value, _) =
            patch::apply_and_complain(kind, ty, &old.value(), body)?;
        check_kind(row, &mut new)?;
        let mut warnings = Vec::new();
        writing.prune_patched(&mut new, &complaints, &mut warnings)?;
        metadata::check_address(row, writing.address(), &mut new)?;
        let version = metadata::text(&new, "resourceVersion").to_owned();
        let asked = if version == old.revision.to_string() {
            String::new()
        } else {
            version
        };
        check_version(writing, &asked, &old)?;
        check_immutable(writing, &new, &old)?;
        metadata::of(&mut new).insert(
            "resourceVersion".to_owned(),
            json!(old.revision.to_string()),
        );
        let new = merged(row, writing.subresource.as_deref(), new, &old);
        match server.write_changed(writing, new, &old, warnings).await {
            Err(status) if status.reason == Reason::Conflict => last = Some(status),
            result => return result,
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("a patch was never tried")))
}
