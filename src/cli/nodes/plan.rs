//! Which pods must leave a node before it goes, and how. Pure.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use crate::cli::node_role;

/// The annotation of pods that stand for files on the node.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// How pods are made to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Through the Eviction API: no disruption budget is broken.
    Evict,
    /// By deleting them, whatever budgets say.
    Delete,
}

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Evict,
    Delete,
    /// It is being deleted already.
    Await,
}

/// A pod that must leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub step: Step,
    /// Nobody makes it anew elsewhere.
    pub is_alone: bool,
}

/// The pods that must leave, of all that are on a node. Those of DaemonSets would come back at once, and those of
/// the node's own files are no objects to delete: both end with the node.
pub fn leaving(pods: &[Pod], manner: Manner) -> Vec<Leaving> {
    let stays = |pod: &&Pod| {
        pod.annotations().contains_key(MIRROR)
            || controller(pod).is_some_and(|kind| kind == "DaemonSet")
    };
    pods.iter()
        .filter(|pod| !stays(pod))
        .map(|pod| Leaving {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            step: match manner {
                _ if pod.metadata.deletion_timestamp.is_some() => Step::Await,
                Manner::Evict => Step::Evict,
                Manner::Delete => Step::Delete,
            },
            is_alone: controller(pod).is_none(),
        })
        .collect()
}

fn controller(pod: &Pod) -> Option<&str> {
    let mut owners = pod.owner_references().iter();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(&owner.kind)
}

/// Why a node is not to be removed this way.
pub fn obstacle(node: &Node, manner: Manner, flag: &str) -> Option<String> {
    let name = node.name_any();
    if node.labels().contains_key(node_role::CONTROL_PLANE) {
        return Some(format!(
            "the node {name} has the control plane: `vetch reset{flag}` on its machine removes the whole cluster"
        ));
    }
    if manner == Manner::Evict && is_silent(node) {
        return Some(format!(
            "the node {name} does not answer, so that its pods cannot end there: `vetch node rm {name} \
             --force{flag}` gives them up"
        ));
    }
    None
}

/// Whether nothing has been heard of the node for a while: nobody ends pods there.
pub fn is_silent(node: &Node) -> bool {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    conditions.any(|one| one.type_ == "Ready" && one.status == "Unknown")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, more: &Value) -> Pod {
        let mut metadata = json!({"namespace": "shop", "name": name, "uid": name});
        for (key, value) in more.as_object().expect("a map") {
            metadata[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": metadata})).expect("a pod")
    }

    fn owned(kind: &str, controller: bool) -> Value {
        json!({"ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": "o", "uid": "o",
            "controller": controller}]})
    }

    #[test]
    fn what_becomes_of_pods() {
        let going = json!({"deletionTimestamp": "2030-01-01T00:00:00Z"});
        let mirror = json!({"annotations": {MIRROR: "x"}});
        for (more, manner, want) in [
            (
                owned("ReplicaSet", true),
                Manner::Evict,
                Some((Step::Evict, false)),
            ),
            (
                owned("ReplicaSet", true),
                Manner::Delete,
                Some((Step::Delete, false)),
            ),
            (
                owned("Job", true),
                Manner::Evict,
                Some((Step::Evict, false)),
            ),
            (json!({}), Manner::Evict, Some((Step::Evict, true))),
            // An owner that does not control it makes no other.
            (
                owned("ConfigMap", false),
                Manner::Evict,
                Some((Step::Evict, true)),
            ),
            (owned("DaemonSet", true), Manner::Evict, None),
            (owned("DaemonSet", true), Manner::Delete, None),
            (mirror.clone(), Manner::Evict, None),
            (mirror, Manner::Delete, None),
            (going.clone(), Manner::Evict, Some((Step::Await, true))),
            (going, Manner::Delete, Some((Step::Await, true))),
        ] {
            let got = leaving(&[pod("p", &more)], manner);
            let got = got.first().map(|one| (one.step, one.is_alone));
            assert_eq!(got, want, "{more} {manner:?}");
        }
    }

    #[test]
    fn which_nodes_stay() {
        let node = |labels: Value, ready: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a node")
        };
        let control_plane = json!({node_role::CONTROL_PLANE: ""});
        for (labels, ready, manner, want) in [
            (json!({}), "True", Manner::Evict, None),
            (json!({}), "False", Manner::Evict, None),
            (
                json!({}),
                "Unknown",
                Manner::Evict,
                Some("--force --root /x"),
            ),
            (json!({}), "Unknown", Manner::Delete, None),
            (
                control_plane.clone(),
                "True",
                Manner::Evict,
                Some("vetch reset --root /x"),
            ),
            (
                control_plane,
                "True",
                Manner::Delete,
                Some("vetch reset --root /x"),
            ),
        ] {
            let why = obstacle(&node(labels, ready), manner, " --root /x");
            match want {
                None => assert_eq!(why, None),
                Some(want) => assert!(
                    why.as_deref().is_some_and(|why| why.contains(want)),
                    "{why:?}"
                ),
            }
        }
    }
}
