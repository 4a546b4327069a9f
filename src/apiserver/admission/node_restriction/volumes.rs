//! What a node may change of a volume that is on it alone: it takes away the finalizer that has waited for
//! the folder to be removed.

use serde_json::Value;

use super::Asked;
use crate::apiserver::{admission::Operation, registry::kinds::value::items, status::Status};

const FINALIZER: &str = "vetch.io/local-folder";

pub fn check(asked: &Asked<'_>) -> Result<(), Status> {
    let (Operation::Update, None, Some(old)) = (
        asked.request.operation,
        asked.request.subresource,
        asked.request.old,
    ) else {
        return asked.unexpected_operation();
    };
    match only_frees(asked.object, old) {
        true => Ok(()),
        false => asked.refuse(&format!(
            "may only take the finalizer {FINALIZER:?} from a persistent volume"
        )),
    }
}

fn only_frees(new: &Value, old: &Value) -> bool {
    let others = |volume: &Value| -> Vec<Value> {
        let all = items(volume, "metadata.finalizers").iter();
        all.filter(|one| **one != FINALIZER).cloned().collect()
    };
    others(new) == others(old) && rest(new) == rest(old)
}

/// Without what each write changes, and the finalizers.
fn rest(volume: &Value) -> Value {
    let mut volume = volume.clone();
    if let Some(metadata) = volume.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "finalizers",
            "managedFields",
            "resourceVersion",
            "generation",
        ] {
            metadata.remove(field);
        }
    }
    volume
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_node_may_change() {
        let volume = |finalizers: &[&str], path: &str, version: &str| {
            json!({
                "metadata": {"name": "v", "finalizers": finalizers, "resourceVersion": version},
                "spec": {"local": {"path": path}},
            })
        };
        let (ours, other) = (FINALIZER, "kubernetes.io/pv-protection");
        let old = volume(&[other, ours], "/d", "1");
        for (new, want) in [
            (volume(&[other], "/d", "2"), true),
            (old.clone(), true),
            (volume(&[ours], "/d", "2"), false),
            (volume(&[other, "mine"], "/d", "2"), false),
            (volume(&[other], "/etc", "2"), false),
        ] {
            assert_eq!(only_frees(&new, &old), want, "{new}");
        }
    }
}
