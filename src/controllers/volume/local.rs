//! Volumes of the provisioner `vetch.io/local`: what a claim's is to be. Pure.
//!
//! Only objects are written here. The node that a volume names makes the folder when a pod comes, and
//! removes it when the volume goes (`kubelet/local_volumes.rs`).

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::{
    api::{
        core::v1::{
            LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
            VolumeNodeAffinity,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use crate::placement::{
    local::{FINALIZER, FOLDERS, PROVISIONER, folder_name},
    volumes::{PROVISIONED_BY, is_allowed, phase, request_text},
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The claim's volume on `node`, or why there cannot be one. `folders`: where volumes lie on nodes that do
/// not say so.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    folders: &Path,
) -> Result<PersistentVolume, String> {
    refusal(claim, class).map_or(Ok(()), Err)?;
    let spec = claim.spec.clone().unwrap_or_default();
    let uid = claim.uid().unwrap_or_default();
    if uid.is_empty() || !uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(format!("the claim's uid {uid:?} names no folder"));
    }
    let size = request_text(claim).cloned();
    let size = size.ok_or("the claim does not say how much it wants")?;
    let hostname = node.labels().get(HOSTNAME);
    let hostname = hostname.ok_or_else(|| {
        let node = node.name_any();
        format!("node {node:?} has no label {HOSTNAME}")
    })?;
    // The scheduler has seen to it, unless somebody else has chosen the node.
    if !is_allowed(class, node.labels()) {
        return Err(format!(
            "node {:?} is not among the allowedTopologies of storageclass {:?}",
            node.name_any(),
            class.name_any()
        ));
    }
    let its_own = node.annotations().get(FOLDERS).map(Path::new);
    let folders = its_own.filter(|path| path.is_absolute()).unwrap_or(folders);
    let name = format!("pvc-{uid}");
    let folder = folder_name(
        &name,
        &claim.namespace().unwrap_or_default(),
        &claim.name_any(),
    );
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some(BTreeMap::from([(
                PROVISIONED_BY.to_owned(),
                PROVISIONER.to_owned(),
            )])),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".to_owned(), size)])),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                name: claim.metadata.name.clone(),
                namespace: claim.metadata.namespace.clone(),
                uid: Some(uid),
                resource_version: claim.metadata.resource_version.clone(),
                ..ObjectReference::default()
            }),
            local: Some(LocalVolumeSource {
                path: folders.join(folder).display().to_string(),
                fs_type: None,
            }),
            node_affinity: Some(on_host(hostname)),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: Some(class.name_any()),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

fn on_host(hostname: &str) -> VolumeNodeAffinity {
    let requirement = NodeSelectorRequirement {
        key: HOSTNAME.into(),
        operator: "In".into(),
        values: Some(vec![hostname.to_owned()]),
    };
    VolumeNodeAffinity {
        required: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_expressions: Some(vec![requirement]),
                match_fields: None,
            }],
        }),
    }
}

/// What the claim or its class asks for that a folder cannot be.
pub fn refusal(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let has = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("volumeMode Block is not supported: volumes are folders of a node".into());
    }
    if spec.selector.is_some() {
        return Some("claim Selector is not supported".into());
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Some("dataSource is not supported: a new volume is empty".into());
    }
    if has(&spec.volume_attributes_class_name) {
        return Some("volumeAttributesClassName is not supported".into());
    }
    if let Some(name) = class
        .parameters
        .iter()
        .flatten()
        .map(|(name, _)| name)
        .next()
    {
        return Some(format!(
            "parameter {name:?} of storageclass {:?} is not supported: there are none",
            class.name_any()
        ));
    }
    if class
        .mount_options
        .as_ref()
        .is_some_and(|all| !all.is_empty())
    {
        return Some(format!(
            "mountOptions of storageclass {:?} are not supported",
            class.name_any()
        ));
    }
    if class.volume_binding_mode.as_deref() != Some("WaitForFirstConsumer") {
        return Some(format!(
            "storageclass {:?} must have volumeBindingMode WaitForFirstConsumer: \
             the folder is made on the node that the pod goes to",
            class.name_any()
        ));
    }
    None
}

/// What becomes of one of our volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    /// Nobody has it any more: the object is deleted, and the node removes the folder.
    Delete,
    /// It goes, and its node is no more, which would have removed the folder.
    LetGo,
}

/// `has_node`: whether the node is there that the volume names.
pub fn fate(volume: &PersistentVolume, has_node: bool) -> Fate {
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let held = volume.finalizers().iter().any(|one| one == FINALIZER);
    if volume.metadata.deletion_timestamp.is_some() {
        let last = volume.finalizers().len() == 1;
        return match held && last && !has_node {
            true => Fate::LetGo,
            false => Fate::Stays,
        };
    }
    match phase(volume) == "Released" && policy == Some("Delete") {
        true => Fate::Delete,
        false => Fate::Stays,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn made<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "data", "namespace": "shop", "uid": "1-2"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                "resources": {"requests": {"storage": "1Gi"}}}});
        for (name, value) in more.as_object().expect("a map") {
            claim["spec"][name] = value.clone();
        }
        made(claim)
    }

    fn class(more: Value) -> StorageClass {
        let mut class = json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"});
        for (name, value) in more.as_object().expect("a map") {
            class[name] = value.clone();
        }
        made(class)
    }

    #[test]
    fn a_volume_is_a_folder_of_the_claims_node() {
        let node: Node = made(json!({"metadata": {"name": "a", "labels": {HOSTNAME: "host-a"}}}));
        let made_ = volume(&claim(json!({})), &class(json!({})), &node, Path::new("/d"));
        let made_ = serde_json::to_value(made_.unwrap()).unwrap();
        assert_eq!(made_["metadata"]["name"], "pvc-1-2");
        let spec = &made_["spec"];
        assert_eq!(spec["local"]["path"], "/d/pvc-1-2_shop_data");
        assert_eq!(spec["claimRef"]["uid"], "1-2");
        assert_eq!(spec["capacity"]["storage"], "1Gi");
        assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
        let terms = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
        assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["host-a"]));
        let bare: Node = made(json!({"metadata": {"name": "a"}}));
        let refused = volume(&claim(json!({})), &class(json!({})), &bare, Path::new("/d"));
        assert!(refused.unwrap_err().contains("has no label"));
        let elsewhere = json!({"allowedTopologies": [{"matchLabelExpressions":
            [{"key": HOSTNAME, "values": ["host-b"]}]}]});
        let refused = volume(&claim(json!({})), &class(elsewhere), &node, Path::new("/d"));
        assert!(refused.unwrap_err().contains("allowedTopologies"));
    }

    #[test]
    fn what_a_folder_cannot_be() {
        for (of_claim, of_class, want) in [
            (json!({}), json!({}), None),
            (json!({"accessModes": ["ReadWriteMany"]}), json!({}), None),
            (json!({"volumeMode": "Block"}), json!({}), Some("Block")),
            (json!({"selector": {}}), json!({}), Some("claim Selector")),
            (
                json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "c"}}),
                json!({}),
                Some("dataSource"),
            ),
            (
                json!({"volumeAttributesClassName": "gold"}),
                json!({}),
                Some("volumeAttributesClassName"),
            ),
            (json!({}), json!({"parameters": {"p": "v"}}), Some("\"p\"")),
            (
                json!({}),
                json!({"mountOptions": ["ro"]}),
                Some("mountOptions"),
            ),
            (
                json!({}),
                json!({"volumeBindingMode": "Immediate"}),
                Some("WaitForFirstConsumer"),
            ),
        ] {
            let got = refusal(&claim(of_claim.clone()), &class(of_class.clone()));
            match want {
                None => assert_eq!(got, None, "{of_claim} {of_class}"),
                Some(want) => assert!(got.unwrap_or_default().contains(want), "{of_claim}"),
            }
        }
    }

    #[test]
    fn what_becomes_of_a_volume() {
        let gone = json!("2026-01-01T00:00:00Z");
        for (policy, phase, deleted, finalizers, has_node, want) in [
            (
                "Delete",
                "Bound",
                Value::Null,
                json!([FINALIZER]),
                true,
                Fate::Stays,
            ),
            (
                "Delete",
                "Released",
                Value::Null,
                json!([FINALIZER]),
                true,
                Fate::Delete,
            ),
            (
                "Retain",
                "Released",
                Value::Null,
                json!([FINALIZER]),
                true,
                Fate::Stays,
            ),
            (
                "Delete",
                "Released",
                gone.clone(),
                json!([FINALIZER]),
                true,
                Fate::Stays,
            ),
            (
                "Delete",
                "Released",
                gone.clone(),
                json!([FINALIZER]),
                false,
                Fate::LetGo,
            ),
            (
                "Delete",
                "Bound",
                gone.clone(),
                json!([FINALIZER, "kubernetes.io/pv-protection"]),
                false,
                Fate::Stays,
            ),
        ] {
            let volume = made(
                json!({"metadata": {"finalizers": finalizers, "deletionTimestamp": deleted},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}}),
            );
            assert_eq!(fate(&volume, has_node), want, "{policy} {phase} {has_node}");
        }
    }
}
