//! Which volume a claim gets, and what a volume or a claim is to be told. Pure.

use k8s_openapi::{
    api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use proto::quantity::Quantity;

/// Set once claim and volume know each other.
pub const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The pair was made here, not by whoever made the objects.
pub const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// What a claim needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimStep {
    /// This volume is its own; whatever says otherwise is put right.
    Bind(String),
    /// No volume fits yet, or the one that it names is not there or somebody else's.
    Wait(&'static str),
    /// Its volume is gone, or somebody else's now.
    Lose(&'static str),
}

/// What a volume's status is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeStep {
    Available,
    Bound,
    Released,
    /// Released, and nobody here can do what its policy says.
    Failed(&'static str),
    /// The claim that it waits for will tell.
    Leave,
    /// Its claim has another volume: the reference goes, or its uid where somebody wrote it by hand.
    Unbind {
        whole: bool,
    },
}

/// `used`: whether a pod wants it already; `waits`: whether its class binds not before that.
pub fn claim(
    claim: &PersistentVolumeClaim,
    volumes: &[impl AsRef<PersistentVolume>],
    used: bool,
    waits: bool,
) -> ClaimStep {
    let spec = claim.spec.clone().unwrap_or_default();
    let named = spec.volume_name.filter(|name| !name.is_empty());
    let find = |name: &str| {
        let mut all = volumes.iter().map(AsRef::as_ref);
        all.find(|volume| volume.metadata.name.as_deref() == Some(name))
    };
    if claim.annotations().contains_key(COMPLETED) {
        return match named.as_deref().map(|name| (name, find(name))) {
            None => ClaimStep::Lose(
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            Some((_, None)) => ClaimStep::Lose(
                "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
            ),
            Some((name, Some(volume))) => match reference(volume) {
                None => ClaimStep::Bind(name.to_owned()),
                Some(of) if is_of(of, claim) => ClaimStep::Bind(name.to_owned()),
                Some(_) => ClaimStep::Lose(
                    "Two claims are bound to the same volume, this one is bound incorrectly",
                ),
            },
        };
    }
    if let Some(name) = named {
        return match find(&name).map(reference) {
            None => ClaimStep::Wait("the volume that the claim names does not exist"),
            Some(None) => ClaimStep::Bind(name),
            Some(Some(of)) if is_of(of, claim) => ClaimStep::Bind(name),
            Some(Some(_)) => ClaimStep::Wait("volume already bound to a different claim."),
        };
    }
    let reserved = volumes
        .iter()
        .map(AsRef::as_ref)
        .find(|volume| reference(volume).is_some_and(|of| is_of(of, claim)) && fits(volume, claim));
    if let Some(volume) = reserved {
        return ClaimStep::Bind(volume.name_any());
    }
    if waits && !used {
        return ClaimStep::Wait("waiting for first consumer to be created before binding");
    }
    let free = volumes.iter().map(AsRef::as_ref).filter(|volume| {
        reference(volume).is_none() && phase(volume) == "Available" && fits(volume, claim)
    });
    match free.min_by_key(|volume| (capacity(volume), volume.name_any())) {
        Some(volume) => ClaimStep::Bind(volume.name_any()),
        None => ClaimStep::Wait("no persistent volumes available for this claim"),
    }
}

fn reference(volume: &PersistentVolume) -> Option<&ObjectReference> {
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

fn amount(text: Option<&Text>) -> Option<Quantity> {
    Quantity::parse(&text?.0).ok()
}

fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    let spec = volume.spec.as_ref()?;
    amount(spec.capacity.as_ref()?.get("storage"))
}

/// Whether a volume is what the claim asks for.
fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let text = |one: &Option<String>| one.clone().unwrap_or_default();
    let mode = |one: &Option<String>| one.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let modes = has.access_modes.as_deref().unwrap_or_default();
    let asked = wants.access_modes.as_deref().unwrap_or_default();
    let requests = wants
        .resources
        .as_ref()
        .and_then(|all| all.requests.as_ref());
    let request = amount(requests.and_then(|all| all.get("storage")));
    let selected = wants.selector.as_ref().is_none_or(|selector| {
        Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(volume.labels()))
    });
    volume.metadata.deletion_timestamp.is_none()
        && text(&has.storage_class_name) == text(&wants.storage_class_name)
        && text(&has.volume_attributes_class_name) == text(&wants.volume_attributes_class_name)
        && mode(&has.volume_mode) == mode(&wants.volume_mode)
        && asked.iter().all(|mode| modes.contains(mode))
        && capacity(volume) >= request
        && selected
}

/// `claim`: the one that the volume's reference names, as it is now.
pub fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(of) = reference(volume) else {
        return VolumeStep::Available;
    };
    if of.uid.as_deref().unwrap_or_default().is_empty() {
        return VolumeStep::Available;
    }
    let Some(claim) = claim.filter(|claim| is_of(of, claim)) else {
        let policy = volume.spec.as_ref();
        let policy = policy.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let provisioned = volume
            .annotations()
            .contains_key("pv.kubernetes.io/provisioned-by");
        return match policy.unwrap_or("Retain") {
            "Retain" => VolumeStep::Released,
            // Its provisioner deletes it once it is released.
            "Delete" if provisioned => VolumeStep::Released,
            "Delete" => VolumeStep::Failed("no deletable volume plugin matched"),
            _ => VolumeStep::Failed("no recyclable volume plugin matched"),
        };
    };
    let name = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref());
    match name.unwrap_or_default() {
        "" => VolumeStep::Leave,
        name if Some(name) == volume.metadata.name.as_deref() => VolumeStep::Bound,
        _ => VolumeStep::Unbind {
            whole: volume.annotations().contains_key(BY_CONTROLLER),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn made<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn pv(name: &str, size: &str, class: &str, claim: Value) -> Arc<PersistentVolume> {
        Arc::new(made(
            json!({"metadata": {"name": name, "labels": {"tier": name}}, "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "storageClassName": class, "claimRef": claim}, "status": {"phase": "Available"}}),
        ))
    }

    fn pvc(spec: Value, annotations: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": annotations},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "resources": {"requests": {"storage": "5Gi"}}}});
        for (name, value) in spec.as_object().expect("a map") {
            claim["spec"][name] = value.clone();
        }
        made(claim)
    }

    #[test]
    fn which_volume_a_claim_gets() {
        let volumes = [
            pv("big", "100Gi", "fast", Value::Null),
            pv("small", "1Gi", "fast", Value::Null),
            pv("right", "5120Mi", "fast", Value::Null),
            pv("slow", "5Gi", "slow", Value::Null),
            pv(
                "taken",
                "5Gi",
                "fast",
                json!({"name": "d", "namespace": "n", "uid": "v"}),
            ),
        ];
        let bind = |name: &str| ClaimStep::Bind(name.to_owned());
        let wait = |why| ClaimStep::Wait(why);
        let none = "no persistent volumes available for this claim";
        for (spec, want) in [
            (json!({}), bind("right")),
            (
                json!({"selector": {"matchLabels": {"tier": "big"}}}),
                bind("big"),
            ),
            (json!({"storageClassName": "slow"}), bind("slow")),
            (json!({"accessModes": ["ReadWriteMany"]}), wait(none)),
            (json!({"volumeMode": "Block"}), wait(none)),
            (
                json!({"resources": {"requests": {"storage": "1Ti"}}}),
                wait(none),
            ),
            (json!({"volumeName": "small"}), bind("small")),
            (
                json!({"volumeName": "taken"}),
                wait("volume already bound to a different claim."),
            ),
            (
                json!({"volumeName": "x"}),
                wait("the volume that the claim names does not exist"),
            ),
        ] {
            assert_eq!(
                claim(&pvc(spec.clone(), json!({})), &volumes, false, false),
                want,
                "{spec}"
            );
        }
        let waiting = claim(&pvc(json!({}), json!({})), &volumes, false, true);
        assert_eq!(
            waiting,
            wait("waiting for first consumer to be created before binding")
        );
        assert_eq!(
            claim(&pvc(json!({}), json!({})), &volumes, true, true),
            bind("right")
        );
        let mine = json!({"name": "c", "namespace": "n"});
        let reserved = [
            pv("a", "9Gi", "fast", Value::Null),
            pv("b", "99Gi", "fast", mine),
        ];
        assert_eq!(
            claim(&pvc(json!({}), json!({})), &reserved, false, true),
            bind("b")
        );
        let done = json!({COMPLETED: "yes"});
        for (name, want) in [("big", true), ("taken", false), ("gone", false)] {
            let step = claim(
                &pvc(json!({"volumeName": name}), done.clone()),
                &volumes,
                true,
                false,
            );
            assert_eq!(step == bind(name), want, "{step:?}");
        }
    }

    #[test]
    fn what_a_volume_is() {
        let mine = json!({"name": "c", "namespace": "n", "uid": "u"});
        let bound = pvc(json!({"volumeName": "v"}), json!({}));
        let other = pvc(json!({"volumeName": "w"}), json!({}));
        let undecided = pvc(json!({}), json!({}));
        for (reference, claim, want) in [
            (Value::Null, None, VolumeStep::Available),
            (
                json!({"name": "c", "namespace": "n"}),
                None,
                VolumeStep::Available,
            ),
            (mine.clone(), Some(&bound), VolumeStep::Bound),
            (mine.clone(), Some(&undecided), VolumeStep::Leave),
            (
                mine.clone(),
                Some(&other),
                VolumeStep::Unbind { whole: false },
            ),
            (mine, None, VolumeStep::Released),
            (
                json!({"name": "c", "namespace": "n", "uid": "old"}),
                Some(&bound),
                VolumeStep::Released,
            ),
        ] {
            let volume_ = pv("v", "5Gi", "fast", reference.clone());
            assert_eq!(volume(&volume_, claim), want, "{reference}");
        }
    }
}
