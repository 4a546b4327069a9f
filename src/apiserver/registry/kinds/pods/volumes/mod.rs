//! Volumes: a unique DNS label as name and exactly one source, with that source's own rules.

mod projected;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{has, items, text},
    },
};

/// Volumes without a fault, by name: what containers may mount.
pub type Volumes<'a> = HashMap<&'a str, &'a Value>;

/// In the order in which a second one is found to be too many.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

pub fn validate<'a>(spec: &'a Value, path: &str, causes: &mut Causes) -> Volumes<'a> {
    let mut sound = Volumes::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let before = causes.0.len();
        let path = format!("{path}.volumes[{index}]");
        source(volume, &path, causes);
        let name = text(volume, "name");
        let own = format!("{path}.name");
        if name.is_empty() {
            causes.required(&own, "");
        } else {
            names::report(names::dns_label(name), name, &own, causes);
        }
        if sound.contains_key(name) {
            causes.duplicate(own, name);
        }
        if causes.0.len() == before {
            sound.insert(name, volume);
        }
    }
    sound
}

fn source(volume: &Value, path: &str, causes: &mut Causes) {
    let mut given = SOURCES.into_iter().filter(|kind| has(volume, kind));
    let Some(first) = given.next() else {
        return causes.required(path, "must specify a volume type");
    };
    sources::one(volume, first, path, causes);
    for extra in given {
        let own = format!("{path}.{extra}");
        causes.forbidden(own, "may not specify more than 1 volume type");
    }
}

/// The claims that are made for a pod of this name: each has a good name, and no volume of the pod
/// asks for one of them by its name.
pub fn made_claims(pod: &Value, causes: &mut Causes) {
    let owner = text(pod, "metadata.name");
    if owner.is_empty() {
        return;
    }
    let volumes = items(pod, "spec.volumes");
    let made: std::collections::HashSet<String> = volumes
        .iter()
        .filter(|volume| has(volume, "ephemeral"))
        .map(|volume| format!("{owner}-{}", text(volume, "name")))
        .collect();
    for (index, volume) in volumes.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("spec.volumes[{index}]");
        let name = text(volume, "name");
        if has(volume, "ephemeral") && !name.is_empty() {
            let claim = format!("{owner}-{name}");
            for why in names::dns_subdomain(&claim) {
                let detail = format!("PVC name {claim:?}: {why}");
                causes.invalid(format!("{path}.name"), name, &detail);
            }
        }
        let claim = text(volume, "persistentVolumeClaim.claimName");
        if made.contains(claim) {
            causes.invalid(
                format!("{path}.persistentVolumeClaim.claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
}
