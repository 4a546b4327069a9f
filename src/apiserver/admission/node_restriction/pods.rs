//! What a node may write of pods: mirrors of its own manifests, the status of pods bound to it, and
//! their end.

use std::sync::Arc;

use serde_json::Value;

use super::{Asked, operation};
use crate::apiserver::{
    admission::Operation,
    registry::kinds::{
        pods::references::{self, MIRROR},
        value::{at, has, items, members, text},
    },
    status::Status,
};

/// Creation and deletion.
pub async fn whole(asked: &Asked<'_>) -> Result<(), Status> {
    let node = asked.node;
    match (asked.request.operation, asked.request.old) {
        (Operation::Create, _) => created(asked).await,
        (Operation::Delete, Some(pod)) if text(pod, "spec.nodeName") == node => Ok(()),
        (Operation::Delete, _) => asked.refuse(&format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        (other, _) => asked.refuse(&format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation(other)
        )),
    }
}

async fn created(asked: &Asked<'_>) -> Result<(), Status> {
    let node = asked.node;
    let owner = match mirrored(node, asked.object) {
        Ok(owner) => text(owner, "uid"),
        Err(why) => return asked.refuse(&why),
    };
    let found = asked.lookup.get("nodes", "", node).await;
    let found = found.ok_or_else(|| Status::not_found("", "nodes", node))?;
    let uid = text(&found, "metadata.uid");
    if owner != uid {
        return asked.refuse(&format!(
            "node {node} UID mismatch: expected {owner} got {uid}"
        ));
    }
    match refers_to(asked.object) {
        Some(what) => asked.refuse(&format!(
            "node {node:?} can not create pods that reference {what}"
        )),
        None => Ok(()),
    }
}

/// The owner of a pod that stands for one of the node's manifests.
fn mirrored<'a>(node: &str, pod: &'a Value) -> Result<&'a Value, String> {
    if !references::is_mirror(pod) {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if text(pod, "spec.nodeName") != node {
        return Err(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let owner = match items(pod, "metadata.ownerReferences") {
        [owner] => owner,
        [] => {
            return Err(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    let is_node = text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Node";
    if !is_node || text(owner, "name") != node {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if at(owner, "controller") != Some(&Value::Bool(true)) {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if at(owner, "blockOwnerDeletion") == Some(&Value::Bool(true)) {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    Ok(owner)
}

/// What a pod needs of the API. A node that could name it in a pod of its own making could then
/// read it.
fn refers_to(pod: &Value) -> Option<&'static str> {
    let projects = |field: &str| references::projections(pod).any(|source| has(source, field));
    [
        (
            "a service account",
            !text(pod, "spec.serviceAccountName").is_empty(),
        ),
        ("secrets", references::secrets(pod).next().is_some()),
        ("configmaps", references::config_maps(pod).next().is_some()),
        ("clustertrustbundles", projects("clusterTrustBundle")),
        ("podcertificates", projects("podCertificate")),
        ("service account tokens", projects("serviceAccountToken")),
        (
            "persistentvolumeclaims",
            references::claims(pod).next().is_some(),
        ),
        (
            "resourceclaims",
            !items(pod, "spec.resourceClaims").is_empty(),
        ),
    ]
    .into_iter()
    .find_map(|(what, refers)| refers.then_some(what))
}

pub fn status(asked: &Asked<'_>) -> Result<(), Status> {
    let node = asked.node;
    let (Operation::Update, Some(old)) = (asked.request.operation, asked.request.old) else {
        return asked.unexpected_operation();
    };
    if text(old, "spec.nodeName") != node {
        return asked.refuse(&format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels = |pod| members(pod, "metadata.labels").filter(|labels| !labels.is_empty());
    if labels(asked.object) != labels(old) {
        return asked.refuse(&format!(
            "node {node:?} cannot update labels through pod status"
        ));
    }
    // What the node may read follows from these.
    let statuses = ["resourceClaimStatuses", "extendedResourceClaimStatus"];
    if statuses
        .iter()
        .any(|field| at(&asked.object["status"], field) != at(&old["status"], field))
    {
        return asked.refuse(&format!(
            "node {node:?} cannot update resource claim statues"
        ));
    }
    Ok(())
}

pub async fn eviction(asked: &Asked<'_>) -> Result<(), Status> {
    if asked.request.operation != Operation::Create {
        return asked.unexpected_operation();
    }
    let name = match asked.request.name {
        "" => text(asked.object, "metadata.name"),
        name => name,
    };
    if name.is_empty() {
        return asked.refuse("could not determine pod from request data");
    }
    let pod = pod(asked, name).await?;
    match text(&pod, "spec.nodeName") == asked.node {
        true => Ok(()),
        false => asked.refuse(&format!(
            "node {} can only evict pods with spec.nodeName set to itself",
            asked.node
        )),
    }
}

pub async fn pod(asked: &Asked<'_>, name: &str) -> Result<Arc<Value>, Status> {
    let found = asked.lookup.get("pods", asked.request.namespace, name);
    found
        .await
        .ok_or_else(|| Status::not_found("", "pods", name))
}
