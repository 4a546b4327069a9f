//! JSON patch (RFC 6902).

use json_patch::{Patch, PatchErrorKind, PatchOperation, jsonptr::Pointer};
use serde_json::Value;

use super::{depth, malformed, unprocessable};
use crate::apiserver::status::{Reason, Status};

/// Operations in one patch.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes (as JSON) that all `copy` operations of one patch may make.
const MAX_COPIED: usize = 3 * 1024 * 1024;
/// List items that operations may shift: an insertion in front of a long list moves all of it.
const MAX_SHIFTED: usize = 50_000_000;
/// Nesting that operations may reach in between; the result is bounded more tightly.
const MAX_NESTING: usize = 256;

pub(super) fn apply(current: &Value, body: &[u8]) -> Result<Value, Status> {
    super::weighed(body)?;
    let Patch(operations) = serde_json::from_slice(body).map_err(malformed)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                operations.len()
            ),
        ));
    }
    let mut patched = current.clone();
    let mut growth = Growth {
        copied: 0,
        shifted: 0,
        nesting: depth(current),
    };
    for operation in &operations {
        growth.account(&patched, operation)?;
        let one = std::slice::from_ref(operation);
        json_patch::patch_unsafe(&mut patched, one).map_err(|error| refused(operation, &error))?;
    }
    Ok(patched)
}

/// Keeps a small patch from making a huge object.
struct Growth {
    copied: usize,
    shifted: usize,
    /// Never less than the real nesting.
    nesting: usize,
}

impl Growth {
    fn account(&mut self, document: &Value, operation: &PatchOperation) -> Result<(), Status> {
        let place = operation.path().count();
        let reached = match operation {
            PatchOperation::Add(add) => place + depth(&add.value),
            PatchOperation::Replace(replace) => place + depth(&replace.value),
            PatchOperation::Move(mov) => place + self.nesting.saturating_sub(mov.from.count()),
            PatchOperation::Copy(copy) => {
                if let Some(value) = document.pointer(copy.from.as_str()) {
                    self.copied += proto::json_size(value);
                }
                if self.copied > MAX_COPIED {
                    return Err(unprocessable(format!(
                        "Unable to complete the copy, the accumulated size increase of copy operations is {}, exceeding the limit {MAX_COPIED}",
                        self.copied
                    )));
                }
                place + self.nesting.saturating_sub(copy.from.count())
            }
            PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
        };
        self.shifted += match operation {
            PatchOperation::Add(_) | PatchOperation::Remove(_) | PatchOperation::Copy(_) => {
                length_around(document, operation.path())
            }
            PatchOperation::Move(mov) => {
                length_around(document, &mov.from) + length_around(document, &mov.path)
            }
            PatchOperation::Replace(_) | PatchOperation::Test(_) => 0,
        };
        if self.shifted > MAX_SHIFTED {
            return Err(unprocessable(format!(
                "the operations move more than {MAX_SHIFTED} list items"
            )));
        }
        self.nesting = self.nesting.max(reached);
        if self.nesting > MAX_NESTING {
            return Err(unprocessable("the operations nest the object too deep"));
        }
        Ok(())
    }
}

/// How many items the list has in which `path` names one: at most so many are shifted. None are
/// for one behind the last.
fn length_around(document: &Value, path: &Pointer) -> usize {
    let Some((parent, last)) = path.split_back() else {
        return 0;
    };
    let list = document.pointer(parent.as_str()).and_then(Value::as_array);
    match list {
        Some(list) if last.encoded() != "-" => list.len(),
        _ => 0,
    }
}

fn refused(operation: &PatchOperation, error: &json_patch::PatchError) -> Status {
    let path = operation.path();
    unprocessable(match (&error.kind, operation) {
        (PatchErrorKind::TestFailed, _) => format!("testing value {path} failed: test failed"),
        (_, PatchOperation::Add(_)) => {
            format!("add operation does not apply: doc is missing path: {path}")
        }
        (_, PatchOperation::Remove(_)) => {
            format!("remove operation does not apply: doc is missing path: {path}")
        }
        (_, PatchOperation::Replace(_)) => {
            format!("replace operation does not apply: doc is missing path: {path}")
        }
        (kind, _) => format!("operation on {path} does not apply: {kind}"),
    })
}
