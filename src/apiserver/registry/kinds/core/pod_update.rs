//! What of a pod may change after its creation: almost nothing.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::gated;
use crate::apiserver::registry::{
    Causes,
    kinds::{
        pods::references::{MIRROR, is_mirror},
        value::{at, items, items_mut, keep, members, number, pairs, remove, set, text},
    },
};

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Annotations that say how a pod is run, hence stay as they were when it was created.
const FIXED: [(&str, &str); 2] = [
    (
        "container.apparmor.security.beta.kubernetes.io/",
        "AppArmor annotations",
    ),
    (MIRROR, "mirror pod annotation"),
];

/// On every endpoint of a pod that takes annotations.
pub fn validate_annotations(new: &Value, old: &Value, causes: &mut Causes) {
    let fixed = |key: &str| {
        let is_it = |(prefix, _): &&(&str, &str)| match prefix.ends_with('/') {
            true => key.starts_with(prefix),
            false => key == *prefix,
        };
        FIXED.iter().find(is_it).map(|(_, what)| *what)
    };
    let value = |pod: &Value, key: &str| {
        let annotations = members(pod, "metadata.annotations");
        annotations
            .and_then(|annotations| annotations.get(key))
            .cloned()
    };
    let path = |key: &str| format!("metadata.annotations[{key}]");
    for (key, before) in pairs(old, "metadata.annotations") {
        let Some(what) = fixed(key) else { continue };
        if value(new, key).is_none_or(|now| now != before) {
            causes.forbidden(path(key), &format!("may not remove or update {what}"));
        }
    }
    for (key, _) in pairs(new, "metadata.annotations") {
        let Some(what) = fixed(key) else { continue };
        if value(old, key).is_none() {
            causes.forbidden(path(key), &format!("may not add {what}"));
        }
    }
}

pub fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    validate_annotations(new, old, causes);
    let mut wanted = new.clone();
    for list in ["containers", "initContainers"] {
        if items(&new["spec"], list).len() != items(&old["spec"], list).len() {
            causes.forbidden(
                format!("spec.{list}"),
                "pod updates may not add or remove containers",
            );
            return;
        }
        for (index, container) in items_mut(&mut wanted["spec"], list).iter_mut().enumerate() {
            // That there is an image at all is looked at with the rest of the pod.
            keep(container, &old["spec"][list][index], "image");
        }
    }
    if !deadline(new, old, causes) {
        return;
    }
    keep(&mut wanted, old, "spec.activeDeadlineSeconds");
    tolerations(new, old, causes);
    keep(&mut wanted, old, "spec.tolerations");
    gates(new, old, causes);
    keep(&mut wanted, old, "spec.schedulingGates");
    if !items(old, "spec.schedulingGates").is_empty() {
        gated::validate(new, old, causes);
        keep(&mut wanted, old, "spec.nodeSelector");
        keep_node_affinity(&mut wanted, old);
    }
    if number(old, "spec.terminationGracePeriodSeconds").is_some_and(|grace| grace < 0)
        && number(new, "spec.terminationGracePeriodSeconds") == Some(1)
    {
        keep(&mut wanted, old, "spec.terminationGracePeriodSeconds");
    }
    if normal(&wanted) != normal(old) {
        causes.forbidden("spec", MUTABLE);
    }
}

/// An affinity that has nothing else is none.
fn keep_node_affinity(wanted: &mut Value, old: &Value) {
    keep(wanted, old, "spec.affinity.nodeAffinity");
    let bare = at(wanted, "spec.affinity")
        .and_then(Value::as_object)
        .is_some_and(|affinity| affinity.values().all(Value::is_null));
    if bare && at(old, "spec.affinity").is_none() {
        remove(wanted, "spec.affinity");
    }
}

fn gates(new: &Value, old: &Value, causes: &mut Causes) {
    let before: HashSet<&str> = items(old, "spec.schedulingGates")
        .iter()
        .map(|gate| text(gate, "name"))
        .collect();
    for (index, gate) in items(new, "spec.schedulingGates").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let name = text(gate, "name");
        if !before.contains(name) {
            let detail =
                format!("only deletion is allowed, but found new scheduling gate '{name}'");
            causes.forbidden(format!("spec.schedulingGates[{index}].name"), &detail);
        }
    }
}

/// The spec with empty lists and maps taken as absent.
fn normal(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    let empty: Vec<String> = spec
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| value.is_null() || **value == json!([]) || **value == json!({}))
        .map(|(key, _)| key.clone())
        .collect();
    for key in empty {
        remove(&mut spec, &key);
    }
    spec
}

/// Whether the rest of the pod is worth a look.
fn deadline(new: &Value, old: &Value, causes: &mut Causes) -> bool {
    let path = "spec.activeDeadlineSeconds";
    match (number(new, path), number(old, path)) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            causes.invalid(path, new, "must be between 0 and 2147483647, inclusive");
            return false;
        }
        (Some(new), Some(old)) if new > old => {
            causes.invalid(path, new, "must be less than or equal to previous value");
            return false;
        }
        (None, Some(_)) => causes.invalid(
            path,
            Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    true
}

/// Existing tolerations stay; of one that stays only the seconds may change.
fn tolerations(new: &Value, old: &Value, causes: &mut Causes) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration.to_string()
    };
    let now: HashSet<String> = items(new, "spec.tolerations")
        .iter()
        .map(without_seconds)
        .collect();
    let kept = items(old, "spec.tolerations")
        .iter()
        .all(|toleration| now.contains(&without_seconds(toleration)));
    if !kept {
        causes.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// The rules of `pods/ephemeralcontainers`: entries may only be added, and nothing else changes.
pub fn validate_ephemeral(new: &Value, old: &Value, causes: &mut Causes) {
    if is_mirror(old) {
        return causes.forbidden("", "static pods do not support ephemeral containers");
    }
    validate_annotations(new, old, causes);
    let (now, before) = (
        items(new, "spec.ephemeralContainers"),
        items(old, "spec.ephemeralContainers"),
    );
    let by_name: std::collections::HashMap<&str, &Value> =
        now.iter().map(|one| (text(one, "name"), one)).collect();
    for container in before {
        let name = text(container, "name");
        match by_name.get(name) {
            None => causes.forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed"),
            ),
            Some(now) if *now != container => {
                causes.forbidden(
                    "spec.ephemeralContainers",
                    &format!("existing ephemeral containers {name:?} may not be changed"),
                );
            }
            Some(_) => {}
        }
    }
    let mut wanted = new.clone();
    match at(old, "spec.ephemeralContainers") {
        Some(list) => set(&mut wanted, "spec.ephemeralContainers", list.clone()),
        None => drop(remove(&mut wanted, "spec.ephemeralContainers")),
    }
    if normal(&wanted) != normal(old) {
        causes.forbidden(
            "spec",
            "only `spec.ephemeralContainers` may be changed here",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_change() {
        let old = json!({"spec": {"nodeName": "n", "containers": [{"name": "c", "image": "a"}], "tolerations": [{"key": "k"}], "activeDeadlineSeconds": 9}});
        for (path, value, want) in [
            (
                "spec.containers",
                json!([{"name": "c", "image": "b"}]),
                None,
            ),
            (
                "spec.tolerations",
                json!([{"key": "k", "tolerationSeconds": 3}, {"key": "l"}]),
                None,
            ),
            (
                "spec.tolerations",
                json!([{"key": "l"}]),
                Some("spec.tolerations"),
            ),
            ("spec.activeDeadlineSeconds", json!(3), None),
            (
                "spec.activeDeadlineSeconds",
                json!(30),
                Some("spec.activeDeadlineSeconds"),
            ),
            ("spec.nodeName", json!("m"), Some("spec")),
            ("spec.containers", json!([]), Some("spec.containers")),
            ("spec.hostAliases", json!([]), None),
        ] {
            let mut new = old.clone();
            set(&mut new, path, value.clone());
            let mut causes = Causes::default();
            validate_update(&new, &old, &mut causes);
            assert_eq!(
                causes.0.first().map(|cause| &*cause.field),
                want,
                "{path} {value}"
            );
        }
    }

    #[test]
    fn annotations_of_the_node_stay() {
        const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/c";
        let with = |key: &str, value: Option<&str>| match value {
            Some(value) => json!({"metadata": {"annotations": {key: value}}}),
            None => json!({"metadata": {}}),
        };
        for (key, before, now, want) in [
            (MIRROR, None, None, None),
            (MIRROR, Some("h"), Some("h"), None),
            (
                MIRROR,
                None,
                Some("h"),
                Some("Forbidden: may not add mirror pod annotation"),
            ),
            (
                MIRROR,
                Some("h"),
                Some("i"),
                Some("Forbidden: may not remove or update mirror pod annotation"),
            ),
            (
                MIRROR,
                Some("h"),
                None,
                Some("Forbidden: may not remove or update mirror pod annotation"),
            ),
            (
                APPARMOR,
                None,
                Some("x"),
                Some("Forbidden: may not add AppArmor annotations"),
            ),
            ("example.com/x", None, Some("x"), None),
        ] {
            let mut causes = Causes::default();
            validate_annotations(&with(key, now), &with(key, before), &mut causes);
            let found: Vec<_> = causes
                .0
                .iter()
                .map(|cause| (&*cause.field, &*cause.message))
                .collect();
            let path = format!("metadata.annotations[{key}]");
            let want: Vec<_> = want.into_iter().map(|message| (&*path, message)).collect();
            assert_eq!(found, want, "{before:?} -> {now:?}");
        }
    }

    #[test]
    fn ephemeral_containers_only_grow() {
        let old = json!({"spec": {"containers": [], "ephemeralContainers": [{"name": "a"}]}});
        for (list, fine) in [
            (json!([{"name": "a"}, {"name": "b"}]), true),
            (json!([{"name": "b"}]), false),
            (json!([{"name": "a", "image": "x"}]), false),
        ] {
            let mut new = old.clone();
            set(&mut new, "spec.ephemeralContainers", list.clone());
            let mut causes = Causes::default();
            validate_ephemeral(&new, &old, &mut causes);
            assert_eq!(causes.0.is_empty(), fine, "{list}");
        }
    }
}
