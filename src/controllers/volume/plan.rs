//! Which volume a claim gets, and what a volume or a claim is to be told. Pure.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::ResourceExt;

use crate::{
    events::Level,
    placement::local::is_local,
    placement::volumes::{
        BY_CONTROLLER, COMPLETED, NO_PROVISIONER, PROVISIONED_BY, SELECTED_NODE, class_of, fits,
        free_for, is_of, mismatch, reference, waits,
    },
};

/// What a claim needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimStep {
    /// This volume is its own; whatever says otherwise is put right.
    Bind(String),
    /// Somebody is to make a volume for it: this provisioner.
    Provision(String),
    Wait(Waiting),
    /// Its volume is gone, or somebody else's now.
    Lose(&'static str),
}

/// No volume fits yet, or the one that it names is not there or somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub level: Level,
    pub reason: &'static str,
    pub message: String,
}

impl Waiting {
    fn normal(reason: &'static str, message: impl Into<String>) -> ClaimStep {
        ClaimStep::Wait(Self {
            level: Level::Normal,
            reason,
            message: message.into(),
        })
    }

    fn unprovisioned(message: impl Into<String>) -> ClaimStep {
        ClaimStep::Wait(Self {
            level: Level::Warning,
            reason: "ProvisioningFailed",
            message: message.into(),
        })
    }
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

/// `class`: the one that the claim names, if it is there; `users`: finds the pods kept waiting that
/// want it, which is not asked unless the claim waits for one.
pub fn claim(
    claim: &PersistentVolumeClaim,
    volumes: &[impl AsRef<PersistentVolume>],
    class: Option<&StorageClass>,
    users: impl FnOnce() -> Vec<String>,
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
    let failed = |message: &str| Waiting::normal("FailedBinding", message);
    if let Some(name) = named {
        return match find(&name).map(|volume| (volume, reference(volume))) {
            None => failed("the volume that the claim names does not exist"),
            Some((volume, None)) => match mismatch(volume, claim) {
                None => ClaimStep::Bind(name),
                Some(why) => ClaimStep::Wait(Waiting {
                    level: Level::Warning,
                    reason: "VolumeMismatch",
                    message: format!("Cannot bind to requested volume {name:?}: {why}"),
                }),
            },
            Some((_, Some(of))) if is_of(of, claim) => ClaimStep::Bind(name),
            Some((_, Some(_))) => failed("volume already bound to a different claim."),
        };
    }
    let reserved = volumes
        .iter()
        .map(AsRef::as_ref)
        .find(|volume| reference(volume).is_some_and(|of| is_of(of, claim)) && fits(volume, claim));
    if let Some(volume) = reserved {
        return ClaimStep::Bind(volume.name_any());
    }
    // The scheduler chooses among the volumes there are: it knows the node.
    let delayed = class.is_some_and(waits);
    if delayed && !claim.annotations().contains_key(SELECTED_NODE) {
        return match users().as_slice() {
            [] => Waiting::normal(
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding",
            ),
            [pod] => Waiting::normal(
                "WaitForPodScheduled",
                format!("waiting for pod {pod} to be scheduled"),
            ),
            pods => Waiting::normal(
                "WaitForPodScheduled",
                format!("waiting for pods {} to be scheduled", pods.join(",")),
            ),
        };
    }
    let all = volumes.iter().map(AsRef::as_ref);
    if !delayed && let Some(volume) = free_for(claim, all, |_| true) {
        return ClaimStep::Bind(volume.name_any());
    }
    match (class, class_of(claim).unwrap_or_default()) {
        (_, "") => {
            failed("no persistent volumes available for this claim and no storage class is set")
        }
        (None, name) => {
            Waiting::unprovisioned(format!("storageclass.storage.k8s.io \"{name}\" not found"))
        }
        (Some(class), _) if class.provisioner == NO_PROVISIONER => {
            Waiting::unprovisioned(format!("no volume plugin matched name: {NO_PROVISIONER}"))
        }
        (Some(class), _) => ClaimStep::Provision(class.provisioner.clone()),
    }
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
        // Of ours the finalizer tells too.
        let provisioned = is_local(volume) || volume.annotations().contains_key(PROVISIONED_BY);
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
        let wait = |message: &str| Waiting::normal("FailedBinding", message);
        let mismatch = |name: &str, why: &str| {
            ClaimStep::Wait(Waiting {
                level: Level::Warning,
                reason: "VolumeMismatch",
                message: format!("Cannot bind to requested volume {name:?}: {why}"),
            })
        };
        let gone = || Waiting::unprovisioned("storageclass.storage.k8s.io \"fast\" not found");
        for (spec, want) in [
            (json!({}), bind("right")),
            (
                json!({"selector": {"matchLabels": {"tier": "big"}}}),
                bind("big"),
            ),
            (json!({"storageClassName": "slow"}), bind("slow")),
            (json!({"accessModes": ["ReadWriteMany"]}), gone()),
            (json!({"volumeMode": "Block"}), gone()),
            (
                json!({"resources": {"requests": {"storage": "1Ti"}}}),
                gone(),
            ),
            (
                json!({"storageClassName": ""}),
                wait("no persistent volumes available for this claim and no storage class is set"),
            ),
            (
                json!({"volumeName": "small", "resources": {"requests": {"storage": "1Gi"}}}),
                bind("small"),
            ),
            (
                json!({"volumeName": "small"}),
                mismatch("small", "requested PV is too small"),
            ),
            (
                json!({"volumeName": "slow"}),
                mismatch("slow", "storageClassName does not match"),
            ),
            (
                json!({"volumeName": "big", "volumeMode": "Block"}),
                mismatch("big", "incompatible volumeMode"),
            ),
            (
                json!({"volumeName": "big", "accessModes": ["ReadWriteMany"]}),
                mismatch("big", "incompatible accessMode"),
            ),
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
                claim(&pvc(spec.clone(), json!({})), &volumes, None, Vec::new),
                want,
                "{spec}"
            );
        }
        let class = |mode: &str, provisioner: &str| -> StorageClass {
            made(
                json!({"metadata": {"name": "fast"}, "provisioner": provisioner,
                "volumeBindingMode": mode}),
            )
        };
        let late = class("WaitForFirstConsumer", "p");
        let free = pvc(json!({}), json!({}));
        let placed = pvc(json!({}), json!({SELECTED_NODE: "a"}));
        let large = pvc(
            json!({"resources": {"requests": {"storage": "1Ti"}}}),
            json!({}),
        );
        let provision = || ClaimStep::Provision("p".to_owned());
        for (of, class, users, want) in [
            (
                &free,
                &late,
                vec![],
                Waiting::normal(
                    "WaitForFirstConsumer",
                    "waiting for first consumer to be created before binding",
                ),
            ),
            (
                &free,
                &late,
                vec!["pod".to_owned()],
                Waiting::normal("WaitForPodScheduled", "waiting for pod pod to be scheduled"),
            ),
            (&placed, &late, vec![], provision()),
            (&free, &class("Immediate", "p"), vec![], bind("right")),
            (&large, &class("Immediate", "p"), vec![], provision()),
            (
                &large,
                &class("Immediate", NO_PROVISIONER),
                vec![],
                Waiting::unprovisioned(
                    "no volume plugin matched name: kubernetes.io/no-provisioner",
                ),
            ),
        ] {
            assert_eq!(claim(of, &volumes, Some(class), || users), want);
        }
        let mine = json!({"name": "c", "namespace": "n"});
        let reserved = [
            pv("a", "9Gi", "fast", Value::Null),
            pv("b", "99Gi", "fast", mine),
        ];
        assert_eq!(claim(&free, &reserved, Some(&late), Vec::new), bind("b"));
        let done = json!({COMPLETED: "yes"});
        for (name, want) in [("big", true), ("taken", false), ("gone", false)] {
            let step = claim(
                &pvc(json!({"volumeName": name}), done.clone()),
                &volumes,
                None,
                Vec::new,
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
