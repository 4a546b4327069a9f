//! Claims and volumes: which belong together, and on which nodes a volume can be had. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use proto::quantity::Quantity;

/// Set once claim and volume know each other.
pub const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The pair was made by the cluster, not by whoever made the objects.
pub const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The node that the claim's first pod goes to: what is provisioned must be there.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who makes the claim's volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Who made the volume, and deletes it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Of classes whose volumes people make.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const DEFAULT_CLASS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// The names of the claims that a pod uses, and whether each is made for it alone.
pub fn claim_names(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(
            |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(source), _) => Some((source.claim_name.clone(), false)),
                (None, Some(_)) => Some((ephemeral_name(pod, &volume.name), true)),
                (None, None) => None,
            },
        )
        .collect()
}

/// Of the claim that is made for one volume of one pod.
pub fn ephemeral_name(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", pod.name_any())
}

/// Whether the claim was made for just this pod.
pub fn is_made_for(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut owners = claim.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

pub fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.storage_class_name.as_deref()
}

/// Of a class that binds not before a pod wants it.
pub fn waits(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether the class' topologies let volumes be made on a node with these labels.
pub fn is_allowed(class: &StorageClass, labels: &BTreeMap<String, String>) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let meets = terms.iter().any(|term| {
        let mut rules = term.match_label_expressions.iter().flatten();
        rules.all(|rule| {
            let held = labels.get(&rule.key);
            held.is_some_and(|held| rule.values.contains(held))
        })
    });
    terms.is_empty() || meets
}

/// The newest class that says it is the default; of equally old ones the first by name.
pub fn default_class(classes: &[Arc<StorageClass>]) -> Option<&StorageClass> {
    let is_default = |class: &&StorageClass| {
        let says = |name: &str| class.annotations().get(name).is_some_and(|on| on == "true");
        DEFAULT_CLASS.iter().any(|name| says(name))
    };
    let all = classes.iter().map(AsRef::as_ref).filter(is_default);
    all.min_by_key(|class| {
        let made = class.metadata.creation_timestamp.as_ref();
        (std::cmp::Reverse(made.map(|at| at.0)), class.name_any())
    })
}

pub fn reference(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

pub fn phase(volume: &PersistentVolume) -> &str {
    let status = volume.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether a volume's reference means this claim: one without uid was written before it existed.
pub fn is_of(of: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = of.uid.as_deref().unwrap_or_default();
    of.name == claim.metadata.name
        && of.namespace == claim.metadata.namespace
        && (uid.is_empty() || of.uid == claim.metadata.uid)
}

/// Whether claim and volume know each other.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(COMPLETED)
}

fn amount(text: Option<&Text>) -> Option<Quantity> {
    Quantity::parse(&text?.0).ok()
}

pub fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    let spec = volume.spec.as_ref()?;
    amount(spec.capacity.as_ref()?.get("storage"))
}

pub fn request_text(claim: &PersistentVolumeClaim) -> Option<&Text> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    resources.requests.as_ref()?.get("storage")
}

/// How much the claim asks for.
pub fn request(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    amount(request_text(claim))
}

/// Whether a volume is what the claim asks for.
pub fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selected = selector.is_none_or(|selector| {
        Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(volume.labels()))
    });
    selected && mismatch(volume, claim).is_none()
}

/// Why a volume is not what the claim asks for, even if the claim names it. A selector is for claims
/// that name none.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else {
        return Some("it has no spec".to_owned());
    };
    fn text(one: &Option<String>) -> &str {
        one.as_deref().unwrap_or_default()
    }
    let mode = |one: &Option<String>| one.as_deref() == Some("Block");
    let modes = has.access_modes.as_deref().unwrap_or_default();
    let asked = wants.access_modes.as_deref().unwrap_or_default();
    let why = if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.name_any();
        return Some(format!("the volume is marked for deletion {name:?}"));
    } else if capacity(volume) < request(claim) {
        "requested PV is too small"
    } else if text(&has.storage_class_name) != text(&wants.storage_class_name) {
        "storageClassName does not match"
    } else if text(&has.volume_attributes_class_name) != text(&wants.volume_attributes_class_name) {
        "volumeAttributesClassName does not match"
    } else if mode(&has.volume_mode) != mode(&wants.volume_mode) {
        "incompatible volumeMode"
    } else if !asked.iter().all(|mode| modes.contains(mode)) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// The least volume that is free and fits, among those that `which` lets in.
pub fn free_for<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a PersistentVolume>,
    which: impl Fn(&PersistentVolume) -> bool,
) -> Option<&'a PersistentVolume> {
    volumes
        .filter(|volume| {
            reference(volume).is_none()
                && phase(volume) == "Available"
                && fits(volume, claim)
                && which(volume)
        })
        .min_by_key(|volume| (capacity(volume), volume.name_any()))
}

/// Whether the volume can be had on a node.
pub fn reaches(volume: &PersistentVolume, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let affinity = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required.as_ref())
        .is_none_or(|selector| super::selects(selector, labels, node))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_newest_default_class_is_the_default() {
        let class = |name: &str, says: Value, made: &str| -> Arc<StorageClass> {
            let object = json!({"metadata": {"name": name, "annotations": says, "creationTimestamp": made},
                "provisioner": "p"});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let says = |on: &str| json!({DEFAULT_CLASS[0]: on});
        let old = class("old", says("true"), "2026-01-01T00:00:00Z");
        let new = class("new", says("true"), "2026-02-01T00:00:00Z");
        let twin = class(
            "a-twin",
            json!({DEFAULT_CLASS[1]: "true"}),
            "2026-02-01T00:00:00Z",
        );
        let no = class("no", says("false"), "2026-03-01T00:00:00Z");
        for (classes, want) in [
            (vec![], None),
            (vec![no.clone()], None),
            (vec![old.clone(), no.clone()], Some("old")),
            (vec![old.clone(), new.clone(), no.clone()], Some("new")),
            (vec![old, new, twin, no], Some("a-twin")),
        ] {
            let found = default_class(&classes).map(ResourceExt::name_any);
            assert_eq!(found.as_deref(), want);
        }
    }

    #[test]
    fn where_a_volume_can_be_had() {
        let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "a".to_owned())]);
        let on = |node: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}})
        };
        for (spec, want) in [(json!({}), true), (on("a"), true), (on("b"), false)] {
            let volume = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(reaches(&volume, &labels, "a"), want, "{spec}");
        }
    }
}
