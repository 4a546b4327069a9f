//! What a pod refers to by name in its own namespace. Pure.
//!
//! Used by the node authorizer (a node reads what its pods need) and by admission (a mirror pod
//! needs nothing), so that what one of them counts as a reference counts for the other.

use serde_json::Value;

use crate::apiserver::registry::kinds::value::{at, items, text};

/// The annotation of a pod that stands for one of its node's manifests.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

pub fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"]
        .get(MIRROR)
        .is_some_and(|value| !value.is_null())
}

/// Containers of every sort.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(spec, list))
}

pub fn volumes(pod: &Value) -> &[Value] {
    items(pod, "spec.volumes")
}

/// The sources of projected volumes.
pub fn projections(pod: &Value) -> impl Iterator<Item = &Value> {
    volumes(pod)
        .iter()
        .flat_map(|volume| items(volume, "projected.sources"))
}

pub fn secrets(pod: &Value) -> impl Iterator<Item = &str> {
    let pull = items(pod, "spec.imagePullSecrets")
        .iter()
        .map(|one| text(one, "name"));
    let projected = projections(pod).map(|source| text(source, "secret.name"));
    let env = containers(&pod["spec"]).flat_map(|container| env(container, "secret"));
    let mounted = volumes(pod).iter().flat_map(volume_secrets);
    named(pull.chain(projected).chain(env).chain(mounted))
}

pub fn config_maps(pod: &Value) -> impl Iterator<Item = &str> {
    let mounted = volumes(pod)
        .iter()
        .map(|volume| text(volume, "configMap.name"));
    let projected = projections(pod).map(|source| text(source, "configMap.name"));
    let env = containers(&pod["spec"]).flat_map(|container| env(container, "configMap"));
    named(mounted.chain(projected).chain(env))
}

/// Claims, also those that are made for the pod.
pub fn claims(pod: &Value) -> impl Iterator<Item = String> {
    let owner = text(pod, "metadata.name");
    volumes(pod).iter().filter_map(move |volume| {
        if at(volume, "ephemeral").is_some() {
            return Some(format!("{owner}-{}", text(volume, "name")));
        }
        let name = text(volume, "persistentVolumeClaim.claimName");
        (!name.is_empty()).then(|| name.to_owned())
    })
}

pub fn resource_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let lists = ["spec.resourceClaims", "status.resourceClaimStatuses"];
    let all = lists.into_iter().flat_map(|list| items(pod, list));
    named(all.map(|claim| text(claim, "resourceClaimName")))
}

/// Every volume source that has a secret names it in one of these ways.
fn volume_secrets(volume: &Value) -> impl Iterator<Item = &str> {
    let sources = volume.as_object().into_iter().flat_map(|map| map.values());
    sources.flat_map(|source| {
        ["secretName", "secretRef.name", "nodePublishSecretRef.name"]
            .into_iter()
            .map(|path| text(source, path))
    })
}

fn env<'a>(container: &'a Value, source: &'static str) -> impl Iterator<Item = &'a str> {
    let whole = items(container, "envFrom")
        .iter()
        .map(move |from| text(&from[format!("{source}Ref")], "name"));
    let keys = items(container, "env")
        .iter()
        .map(move |env| text(&env["valueFrom"][format!("{source}KeyRef")], "name"));
    whole.chain(keys)
}

fn named<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    names.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_refer() {
        let pod = json!({
            "metadata": { "name": "web" },
            "spec": {
                "imagePullSecrets": [{ "name": "pull" }],
                "volumes": [
                    { "name": "a", "secret": { "secretName": "vol" } },
                    { "name": "b", "projected": { "sources": [
                        { "secret": { "name": "proj" } }, { "configMap": { "name": "conf" } } ] } },
                    { "name": "c", "persistentVolumeClaim": { "claimName": "data" } },
                    { "name": "d", "ephemeral": {} },
                    { "name": "e", "csi": { "nodePublishSecretRef": { "name": "csi" } } },
                    { "name": "f", "rbd": { "secretRef": { "name": "rbd" } } },
                    { "name": "g", "azureFile": { "secretName": "azure", "shareName": "s" } },
                ],
                "resourceClaims": [{ "name": "gpu", "resourceClaimName": "own" }],
                "containers": [{
                    "envFrom": [{ "configMapRef": { "name": "all" } }],
                    "env": [{ "valueFrom": { "secretKeyRef": { "name": "env" } } }, { "value": "x" }],
                }],
                "ephemeralContainers": [{ "envFrom": [{ "secretRef": { "name": "debug" } }] }],
            },
            "status": { "resourceClaimStatuses": [{ "name": "nic", "resourceClaimName": "made" }] },
        });
        let mut found: Vec<&str> = secrets(&pod).collect();
        found.sort_unstable();
        let want = ["azure", "csi", "debug", "env", "proj", "pull", "rbd", "vol"];
        assert_eq!(found, want);
        assert_eq!(config_maps(&pod).collect::<Vec<_>>(), ["conf", "all"]);
        assert_eq!(claims(&pod).collect::<Vec<_>>(), ["data", "web-d"]);
        let found: Vec<&str> = resource_claims(&pod).collect();
        assert_eq!(found, ["own", "made"]);
    }
}
