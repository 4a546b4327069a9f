//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had. Pure.

use std::sync::Arc;

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::runtime::RawExtension,
};
use kube::{Resource, ResourceExt, api::ObjectMeta};
use serde_json::{Value, json};

use super::{hash, pods};

/// Label of pods and revisions.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// The revision of the present template among those held.
#[derive(Clone, Debug, PartialEq)]
pub enum Present {
    Held(Arc<ControllerRevision>),
    /// Held, but an older one: it becomes the newest again.
    Renumbered(Box<ControllerRevision>),
    New(Box<ControllerRevision>),
}

impl Present {
    pub fn revision(&self) -> &ControllerRevision {
        match self {
            Self::Held(held) => held,
            Self::Renumbered(one) | Self::New(one) => one,
        }
    }
}

pub fn present<K: Resource<DynamicType = ()>>(
    owner: &K,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
    held: &[Arc<ControllerRevision>],
) -> Present {
    let data = data(template);
    let newest = held
        .iter()
        .filter_map(|one| one.revision)
        .max()
        .unwrap_or(0);
    let same = held
        .iter()
        .filter(|one| one.data.0 == data)
        .max_by_key(|one| one.revision);
    if let Some(same) = same {
        if same.revision == Some(newest) {
            return Present::Held(same.clone());
        }
        let mut renumbered = ControllerRevision::clone(same);
        renumbered.revision = Some(newest + 1);
        return Present::Renumbered(Box::new(renumbered));
    }
    let hash = hash::of_template(&data, collisions);
    let mut labels = template
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.labels.clone())
        .unwrap_or_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    Present::New(Box::new(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name_any())),
            namespace: owner.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![pods::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(data),
        revision: Some(newest + 1),
    }))
}

/// The form that `kubectl rollout undo` applies as a patch. Clients that compare it with a template
/// byte by byte write the time that a template never has.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if template["metadata"]["creationTimestamp"].is_null() {
        template["metadata"]["creationTimestamp"] = Value::Null;
    }
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// By which pods say what revision they have.
pub fn hash(revision: &ControllerRevision) -> Option<&String> {
    revision.labels().get(HASH_LABEL)
}

/// Revisions beyond the limit that no pod has, oldest first.
pub fn surplus(
    held: &[Arc<ControllerRevision>],
    limit: usize,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Vec<String> {
    let mut unused: Vec<&Arc<ControllerRevision>> =
        held.iter().filter(|one| !in_use(one)).collect();
    unused.sort_by_key(|one| one.revision);
    let count = unused.len().saturating_sub(limit);
    unused
        .into_iter()
        .take(count)
        .map(|one| one.name_any())
        .collect()
}
