//! Which updates of a pod can make it meet a standard less than before. Pure.
//!
//! Others are let through: what runs already, in a namespace whose labels came later, must still be
//! labelled, annotated and released by its controllers.

use serde_json::Value;

use crate::apiserver::registry::kinds::value::{items, text};

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

pub fn is_significant(new: &Value, old: &Value) -> bool {
    let annotation = |pod: &'_ Value, key: &str| pod["metadata"]["annotations"][key].clone();
    let differs = |key: &str| annotation(new, key) != annotation(old, key);
    let changed = |now: &Value, before: &Value| {
        text(now, "image") != text(before, "image")
            || differs(&format!("{SECCOMP_CONTAINER}{}", text(now, "name")))
    };
    let lists = ["spec.containers", "spec.initContainers"];
    let fixed = lists.iter().any(|list| {
        let (now, before) = (items(new, list), items(old, list));
        now.len() != before.len()
            || now
                .iter()
                .zip(before)
                .any(|(now, before)| changed(now, before))
    });
    let before = items(old, "spec.ephemeralContainers");
    differs(SECCOMP_POD)
        || fixed
        || items(new, "spec.ephemeralContainers").iter().any(|now| {
            let mut before = before.iter();
            let same = before.find(|before| text(before, "name") == text(now, "name"));
            same.is_none_or(|before| changed(now, before))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_matters() {
        let old = json!({"metadata": {"annotations": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": "i"}], "ephemeralContainers": [{"name": "e", "image": "i"}]}});
        for (pointer, value, want) in [
            ("/metadata/annotations", json!({"a": "c"}), false),
            (
                "/metadata/annotations",
                json!({SECCOMP_POD: "unconfined"}),
                true,
            ),
            (
                "/metadata/annotations",
                json!({"container.seccomp.security.alpha.kubernetes.io/c": "unconfined"}),
                true,
            ),
            (
                "/spec/containers",
                json!([{"name": "c", "image": "j"}]),
                true,
            ),
            (
                "/spec/containers",
                json!([{"name": "c", "image": "i", "resources": {}}]),
                false,
            ),
            (
                "/spec/ephemeralContainers",
                json!([{"name": "e", "image": "i"}, {"name": "f", "image": "i"}]),
                true,
            ),
        ] {
            let mut new = old.clone();
            *new.pointer_mut(pointer).unwrap() = value.clone();
            assert_eq!(is_significant(&new, &old), want, "{pointer} {value}");
        }
    }
}
