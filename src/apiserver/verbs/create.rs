//! POST on a collection.

use serde_json::Value;

use crate::apiserver::{
    metadata,
    server::ApiServer,
    status::{Reason, Status},
    write::{Writing, Written, check_kind},
};

/// A generated name that is taken is drawn again so often.
const NAME_ATTEMPTS: usize = 8;

pub async fn create(
    server: &ApiServer,
    writing: &Writing,
    mut body: Value,
    complaints: Vec<String>,
    mut warnings: Vec<String>,
) -> Result<Written, Status> {
    check_kind(writing.row, &mut body)?;
    writing.prune(&mut body, &complaints, &mut warnings)?;
    let generates = metadata::text(&body, "name").is_empty()
        && !metadata::text(&body, "generateName").is_empty();
    let attempts = if generates { NAME_ATTEMPTS } else { 1 };
    let mut result = server
        .write_new(writing, body.clone(), warnings.clone())
        .await;
    for _ in 1..attempts {
        match &result {
            Err(status) if status.reason == Reason::AlreadyExists => {
                result = server
                    .write_new(writing, body.clone(), warnings.clone())
                    .await;
            }
            _ => break,
        }
    }
    result
}
