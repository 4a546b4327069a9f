//! The volumes of the class `local`: which object stands for a new one, and for which claims there can
//! be none. Pure. The folder behind it is made by the node that the object names.

use k8s_openapi::{
    api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::ResourceExt;
use proto::quantity::Quantity;
use serde_json::json;

use crate::local_volumes::{FINALIZER, FOLDER, HOSTNAME, PROVISIONED_BY, PROVISIONER, folder_name};

/// On a claim: the node that the scheduler has chosen for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make its volume.
pub const STORAGE_PROVISIONER: [&str; 2] = [
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/storage-provisioner",
];
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The provisioner of classes whose volumes people make.
const NOBODY: &str = "kubernetes.io/no-provisioner";

pub fn is_ours(class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
}

/// Whether somebody makes volumes for the class.
pub fn provisions(class: &StorageClass) -> bool {
    class.provisioner != NOBODY
}

pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    let node = claim.annotations().get(SELECTED_NODE)?;
    Some(node.as_str()).filter(|node| !node.is_empty())
}

/// What a claim asks for; as text too, as its owner wrote it.
pub fn request(claim: &PersistentVolumeClaim) -> Option<(Quantity, Text)> {
    let spec = claim.spec.as_ref()?;
    let requests = spec.resources.as_ref()?.requests.as_ref()?;
    let text = requests.get("storage")?;
    Some((Quantity::parse(&text.0).ok()?, text.clone()))
}

/// What of a volume does not reach what the claim asks for.
pub fn wants_more(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Text> {
    let (wanted, text) = request(claim)?;
    let capacity = volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
    (wanted > Quantity::parse(&capacity.0).ok()?).then_some(text)
}

/// Whether a claim that names no class is to get the default one.
pub fn lacks_class(claim: &PersistentVolumeClaim) -> bool {
    let spec = claim.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.storage_class_name.is_none()
            && spec.volume_name.as_deref().unwrap_or_default().is_empty()
    }) && !claim.annotations().contains_key(BETA_CLASS)
}

/// The newest class that says it is the default; of equally old ones the first by name.
pub fn default_class(classes: &[impl AsRef<StorageClass>]) -> Option<String> {
    let default = classes.iter().map(AsRef::as_ref).filter(|class| {
        let says = class.annotations().get(DEFAULT_CLASS);
        says.is_some_and(|says| says == "true") && class.metadata.deletion_timestamp.is_none()
    });
    let made = |class: &StorageClass| class.metadata.creation_timestamp.clone();
    let best = default.min_by(|a, b| {
        made(b)
            .cmp(&made(a))
            .then_with(|| a.name_any().cmp(&b.name_any()))
    });
    best.map(|class| class.name_any())
}

/// The volume for a claim on its node, or why there can be none.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!(
            "{PROVISIONER} does not support raw block volumes: volumeMode must be Filesystem"
        ));
    }
    if spec.selector.is_some() {
        return Err("claim Selector is not supported".to_owned());
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err(format!(
            "{PROVISIONER} cannot fill a volume from a dataSource"
        ));
    }
    let attributes = spec.volume_attributes_class_name.unwrap_or_default();
    if !attributes.is_empty() {
        return Err(format!(
            "{PROVISIONER} does not support the VolumeAttributesClass {attributes:?}"
        ));
    }
    let mut parameters = class.parameters.iter().flatten();
    if let Some((name, _)) = parameters.next() {
        return Err(format!("{PROVISIONER} knows no parameter {name:?}"));
    }
    if let Some(options) = class.mount_options.as_ref().filter(|all| !all.is_empty()) {
        return Err(format!(
            "Mount options are not supported by the provisioner but StorageClass {:?} has mount options {options:?}",
            class.name_any()
        ));
    }
    let Some(folder) = node.annotations().get(FOLDER) else {
        return Err(format!(
            "node {:?} keeps no volumes: it has no annotation {FOLDER}",
            node.name_any()
        ));
    };
    let hostname = node.labels().get(HOSTNAME);
    let hostname = hostname.ok_or_else(|| format!("node {:?} has no hostname", node.name_any()))?;
    let (_, size) = request(claim).ok_or("the claim asks for no storage")?;
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let name = claim.name_any();
    let made = serde_json::from_value(json!({
        "metadata": {
            "name": format!("pvc-{uid}"),
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": {"storage": size},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": namespace, "name": name, "uid": uid,
                "resourceVersion": claim.metadata.resource_version,
            },
            "local": {"path": format!(
                "{}/{}", folder.trim_end_matches('/'), folder_name(namespace, &name, uid)
            )},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [hostname]},
            ]}]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name_any(),
            "volumeMode": "Filesystem",
        },
    }));
    made.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn made<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn node(annotations: Value) -> Node {
        made(
            json!({"metadata": {"name": "a", "labels": {HOSTNAME: "a"}, "annotations": annotations}}),
        )
    }

    fn attempt(spec: Value, class: Value, node: &Node) -> Result<PersistentVolume, String> {
        let mut claim = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        for (name, value) in spec.as_object().expect("a map") {
            claim["spec"][name] = value.clone();
        }
        let mut whole = json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER});
        for (name, value) in class.as_object().expect("a map") {
            whole[name] = value.clone();
        }
        volume(&made(claim), &made(whole), node)
    }

    #[test]
    fn the_object_says_where_and_whose() {
        let node = node(json!({FOLDER: "/v"}));
        let volume = attempt(json!({}), json!({"reclaimPolicy": "Retain"}), &node).expect("one");
        assert_eq!(volume.name_any(), "pvc-u");
        let spec = volume.spec.expect("a spec");
        assert_eq!(spec.local.expect("a place").path, "/v/n-c-u");
        assert_eq!(
            spec.persistent_volume_reclaim_policy.as_deref(),
            Some("Retain")
        );
        assert_eq!(spec.claim_ref.expect("a claim").uid.as_deref(), Some("u"));
    }

    #[test]
    fn what_cannot_be_kept_is_refused_in_words() {
        let good = node(json!({FOLDER: "/v"}));
        for (spec, class, words) in [
            (json!({"volumeMode": "Block"}), json!({}), "raw block"),
            (json!({"selector": {}}), json!({}), "claim Selector"),
            (
                json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}),
                json!({}),
                "dataSource",
            ),
            (
                json!({"volumeAttributesClassName": "gold"}),
                json!({}),
                "VolumeAttributesClass",
            ),
            (json!({}), json!({"parameters": {"a": "b"}}), "parameter"),
            (json!({}), json!({"mountOptions": ["ro"]}), "Mount options"),
        ] {
            let refused = attempt(spec, class, &good).expect_err(words);
            assert!(refused.contains(words), "{refused}");
        }
        let refused = attempt(json!({}), json!({}), &node(json!({}))).expect_err("no folder");
        assert!(refused.contains("keeps no volumes"), "{refused}");
    }

    #[test]
    fn the_newest_default_class_wins() {
        let class = |name: &str, default: &str, made_at: &str| -> std::sync::Arc<StorageClass> {
            std::sync::Arc::new(made(json!({"provisioner": "p", "metadata": {"name": name,
                "creationTimestamp": made_at, "annotations": {DEFAULT_CLASS: default}}})))
        };
        let classes = [
            class("old", "true", "2026-01-01T00:00:00Z"),
            class("new", "true", "2026-02-01T00:00:00Z"),
            class("no", "false", "2026-03-01T00:00:00Z"),
        ];
        assert_eq!(default_class(&classes).as_deref(), Some("new"));
        assert_eq!(default_class(&classes[2..]), None);
        for (spec, want) in [
            (json!({}), true),
            (json!({"storageClassName": ""}), false),
            (json!({"volumeName": "v"}), false),
        ] {
            let claim = made(json!({"metadata": {"name": "c"}, "spec": spec}));
            assert_eq!(lacks_class(&claim), want, "{spec}");
        }
    }

    #[test]
    fn growth_is_seen() {
        let volume = made(json!({"metadata": {}, "spec": {"capacity": {"storage": "1Gi"}}}));
        for (size, want) in [("1Gi", false), ("512Mi", false), ("2Gi", true)] {
            let claim = made(
                json!({"metadata": {}, "spec": {"resources": {"requests": {"storage": size}}}}),
            );
            assert_eq!(wants_more(&claim, &volume).is_some(), want, "{size}");
        }
    }
}
