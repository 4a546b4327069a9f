//! The node authorizer: a node may read what its pods need, and no other pod's.
//!
//! A node is user `system:node:NAME` in group `system:nodes`. Listing pods and nodes cannot be
//! narrowed here, since field selectors are not part of the attributes.

use std::sync::LazyLock;

use serde_json::Value;

use super::{Decision, bootstrap, rules::Rule};
use crate::apiserver::{
    objects::Lookup,
    request::{Attributes, Target},
};

/// What every node may do to any object; for the kinds below it is narrowed first.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(bootstrap::node_rules);

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion {
        reason: reason.into(),
    }
}

pub async fn decide(node: &str, attributes: &Attributes, lookup: &dyn Lookup) -> Decision {
    if !RULES.iter().any(|rule| rule.allows(attributes)) {
        return no("");
    }
    let Target::Resource {
        group,
        resource,
        subresource,
        namespace,
        name,
        ..
    } = &attributes.target
    else {
        return no("");
    };
    let place = namespace.as_deref().unwrap_or_default();
    let name = name.as_deref().unwrap_or_default();
    let own = || name == node || (name.is_empty() && attributes.verb == "create");
    let changes = !matches!(attributes.verb.as_str(), "get" | "list" | "watch");
    let narrowed = match (group.as_str(), resource.as_str(), subresource.as_deref()) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts", _) => {
            let kind = Kind::of(resource);
            !name.is_empty() && used_by_pods(node, kind, place, name, lookup).await
        }
        ("", "persistentvolumes", _) => !name.is_empty() && holds(node, name, lookup).await,
        ("resource.k8s.io", "resourceclaims", _) => {
            !name.is_empty() && used_by_pods(node, Kind::ResourceClaim, place, name, lookup).await
        }
        ("storage.k8s.io", "volumeattachments", _) => attached(node, name, lookup).await,
        ("storage.k8s.io", "csinodes", _) => own(),
        ("coordination.k8s.io", "leases", _) => place == "kube-node-lease" && own(),
        ("", "nodes", _) if changes => own(),
        ("", "pods", _) if changes && !name.is_empty() => runs(node, place, name, lookup).await,
        _ => true,
    };
    if narrowed {
        return Decision::Allow {
            reason: String::new(),
        };
    }
    no(format!(
        "no relationship found between node '{node}' and this object"
    ))
}

async fn runs(node: &str, namespace: &str, name: &str, lookup: &dyn Lookup) -> bool {
    match lookup.get("pods", namespace, name).await {
        Some(pod) => pod["spec"]["nodeName"] == node,
        // A node may be the last to hear that its pod is gone.
        None => true,
    }
}

async fn attached(node: &str, name: &str, lookup: &dyn Lookup) -> bool {
    let attachment = lookup
        .get("volumeattachments.storage.k8s.io", "", name)
        .await;
    attachment.is_some_and(|attachment| attachment["spec"]["nodeName"] == node)
}

/// What a pod can refer to by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

impl Kind {
    fn of(resource: &str) -> Self {
        match resource {
            "secrets" => Self::Secret,
            "configmaps" => Self::ConfigMap,
            "persistentvolumeclaims" => Self::Claim,
            _ => Self::ServiceAccount,
        }
    }
}

async fn used_by_pods(
    node: &str,
    kind: Kind,
    namespace: &str,
    name: &str,
    lookup: &dyn Lookup,
) -> bool {
    let pods = lookup.list("pods", namespace).await;
    let mut here = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node);
    here.any(|pod| uses(pod, kind, name))
}

/// Whether a volume, or a secret its driver needs, belongs to a claim of a pod on the node.
async fn holds(node: &str, volume: &str, lookup: &dyn Lookup) -> bool {
    let Some(volume) = lookup.get("persistentvolumes", "", volume).await else {
        return false;
    };
    let claim = &volume["spec"]["claimRef"];
    let (Some(namespace), Some(name)) = (claim["namespace"].as_str(), claim["name"].as_str())
    else {
        return false;
    };
    used_by_pods(node, Kind::Claim, namespace, name, lookup).await
}

/// Whether the pod refers to the object of that kind and name in its namespace.
fn uses(pod: &Value, kind: Kind, name: &str) -> bool {
    let spec = &pod["spec"];
    match kind {
        Kind::ServiceAccount => spec["serviceAccountName"] == name,
        Kind::ResourceClaim => {
            let statuses = items(&pod["status"]["resourceClaimStatuses"]);
            items(&spec["resourceClaims"]).any(|claim| claim["resourceClaimName"] == name) || {
                statuses
            }
            .any(|claim| claim["resourceClaimName"] == name)
        }
        Kind::Claim => items(&spec["volumes"]).any(|volume| {
            let ephemeral = volume["ephemeral"].is_object()
                && name
                    == format!(
                        "{}-{}",
                        pod["metadata"]["name"].as_str().unwrap_or_default(),
                        volume["name"].as_str().unwrap_or_default()
                    );
            volume["persistentVolumeClaim"]["claimName"] == name || ephemeral
        }),
        Kind::Secret => {
            items(&spec["imagePullSecrets"]).any(|secret| secret["name"] == name)
                || items(&spec["volumes"]).any(|volume| volume_uses(volume, kind, name))
                || containers(spec).any(|container| env_uses(container, "secret", name))
        }
        Kind::ConfigMap => {
            items(&spec["volumes"]).any(|volume| volume_uses(volume, kind, name))
                || containers(spec).any(|container| env_uses(container, "configMap", name))
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    items(&spec["initContainers"])
        .chain(items(&spec["containers"]))
        .chain(items(&spec["ephemeralContainers"]))
}

fn volume_uses(volume: &Value, kind: Kind, name: &str) -> bool {
    let projected = items(&volume["projected"]["sources"]);
    if kind == Kind::ConfigMap {
        return volume["configMap"]["name"] == name || { projected }
            .any(|source| source["configMap"]["name"] == name);
    }
    // Every volume source that has a secret names it in one of these ways.
    let sources = volume.as_object().into_iter().flat_map(|map| map.values());
    volume["secret"]["secretName"] == name
        || { projected }.any(|source| source["secret"]["name"] == name)
        || { sources }.any(|source| {
            source["secretRef"]["name"] == name
                || source["nodePublishSecretRef"]["name"] == name
                || (source["shareName"].is_string() && source["secretName"] == name)
        })
}

fn env_uses(container: &Value, source: &str, name: &str) -> bool {
    items(&container["envFrom"]).any(|from| from[format!("{source}Ref")]["name"] == name)
        || items(&container["env"])
            .any(|env| env["valueFrom"][format!("{source}KeyRef")]["name"] == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_uses() {
        let pod = json!({
            "metadata": { "name": "web" },
            "spec": {
                "serviceAccountName": "till",
                "imagePullSecrets": [{ "name": "pull" }],
                "volumes": [
                    { "name": "a", "secret": { "secretName": "vol" } },
                    { "name": "b", "projected": { "sources": [
                        { "secret": { "name": "proj" } }, { "configMap": { "name": "conf" } } ] } },
                    { "name": "c", "persistentVolumeClaim": { "claimName": "data" } },
                    { "name": "d", "ephemeral": {} },
                    { "name": "e", "csi": { "nodePublishSecretRef": { "name": "csi" } } },
                ],
                "containers": [{
                    "envFrom": [{ "configMapRef": { "name": "all" } }],
                    "env": [{ "valueFrom": { "secretKeyRef": { "name": "env" } } }],
                }],
            },
        });
        for (kind, name, used) in [
            (Kind::ServiceAccount, "till", true),
            (Kind::Secret, "pull", true),
            (Kind::Secret, "vol", true),
            (Kind::Secret, "proj", true),
            (Kind::Secret, "csi", true),
            (Kind::Secret, "env", true),
            (Kind::Secret, "conf", false),
            (Kind::ConfigMap, "conf", true),
            (Kind::ConfigMap, "all", true),
            (Kind::ConfigMap, "env", false),
            (Kind::Claim, "data", true),
            (Kind::Claim, "web-d", true),
            (Kind::Claim, "web-c", false),
        ] {
            assert_eq!(uses(&pod, kind, name), used, "{kind:?} {name}");
        }
    }
}
