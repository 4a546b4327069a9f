//! Revisions of a Deployment: finding and making the ReplicaSet of its template. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
    core::v1::PodTemplateSpec,
};
use kube::{ResourceExt, api::ObjectMeta};

use super::size::{Bounds, DESIRED, MAX};
use crate::controllers::{hash, pods};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const HASH_LABEL: &str = "pod-template-hash";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The revision history annotation is cut at its old end to stay below this many characters.
const HISTORY_CHARS: usize = 2000;

/// Equal apart from the label that only ReplicaSets carry.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    if a.spec != b.spec {
        return false;
    }
    let plain = |template: &PodTemplateSpec| {
        let mut metadata = template.metadata.clone().unwrap_or_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        metadata.labels = metadata.labels.filter(|labels| !labels.is_empty());
        metadata.annotations = metadata.annotations.filter(|map| !map.is_empty());
        metadata
    };
    plain(a) == plain(b)
}

/// True if `set` is of the Deployment's present template.
pub fn is_current(deployment: &Deployment, set: &ReplicaSet) -> bool {
    set.spec
        .template
        .as_ref()
        .is_some_and(|template| same_template(&deployment.spec.template, template))
}

pub fn revision(set: &ReplicaSet) -> i64 {
    set.annotations()
        .get(REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Gives `set` the annotations of its Deployment and at least the revision `new`.
pub fn annotate(deployment: &Deployment, set: &mut ReplicaSet, new: i64) {
    let old = set.annotations().get(REVISION).cloned();
    let annotations = set.annotations_mut();
    for (key, value) in deployment.annotations() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old_number: i64 = old
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    if old_number >= new {
        return;
    }
    annotations.insert(REVISION.into(), new.to_string());
    if let Some(old) = old {
        let history = annotations.entry(HISTORY.into()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&old);
        while history.len() > HISTORY_CHARS {
            match history.split_once(',') {
                Some((_, rest)) => *history = rest.to_owned(),
                None => break,
            }
        }
    }
}

/// Notes the Deployment's size for later proportional scaling.
pub fn annotate_size(set: &mut ReplicaSet, bounds: &Bounds) {
    let annotations = set.annotations_mut();
    annotations.insert(DESIRED.into(), bounds.replicas.to_string());
    annotations.insert(MAX.into(), bounds.max_total().to_string());
}

/// A new ReplicaSet of the present template, without pods yet.
pub fn new_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let mut template = spec.template;
    let hash = hash::of_template(&template, collisions);
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            annotations: Some(BTreeMap::new()),
            owner_references: Some(vec![pods::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(revision: &str, history: Option<&str>) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "s", "annotations": {
            REVISION: revision, HISTORY: history}}}))
        .or_else(|_| {
            serde_json::from_value(
                json!({"metadata": {"name": "s", "annotations": {REVISION: revision}}}),
            )
        })
        .expect("a ReplicaSet")
    }

    #[test]
    fn a_reused_set_gets_a_new_revision_and_keeps_its_history() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "annotations": {"kubernetes.io/change-cause": "x",
                "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        }))
        .expect("a Deployment");
        let mut first = set("1", None);
        annotate(&deployment, &mut first, 3);
        assert_eq!(first.annotations()[REVISION], "3");
        assert_eq!(first.annotations()[HISTORY], "1");
        assert_eq!(first.annotations()["kubernetes.io/change-cause"], "x");
        assert_eq!(first.annotations().len(), 3);
        annotate(&deployment, &mut first, 5);
        assert_eq!(first.annotations()[HISTORY], "1,3");
        annotate(&deployment, &mut first, 4);
        assert_eq!(first.annotations()[REVISION], "5");
    }

    #[test]
    fn the_hash_label_does_not_make_templates_differ() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "u"},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
                "metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        }))
        .expect("a Deployment");
        let set = new_set(&deployment);
        assert!(is_current(&deployment, &set));
        assert!(set.labels().contains_key(HASH_LABEL));
        assert_eq!(set.name_any(), format!("d-{}", set.labels()[HASH_LABEL]));
        let mut other = deployment.clone();
        other.status.get_or_insert_default().collision_count = Some(1);
        assert_ne!(new_set(&other).name_any(), set.name_any());
    }
}
