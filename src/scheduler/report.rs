//! What the scheduler writes at once: bindings, and evictions of victims.
//!
//! Each function is one or two API calls; nothing here decides. What pods' statuses are to say goes
//! through `statuses.rs`.

use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{Status, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::pod::PodInfo;
use crate::deletion::Judged;

pub const COMPONENT: &str = "default-scheduler";

/// Binds the pod to the node.
pub async fn bind(client: Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: pod.pod.uid(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let _: Status = api
        .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
        .await?;
    Ok(())
}

/// Deletes a victim gracefully, after saying why in its status. One that is gone is fine.
pub async fn evict(client: Client, victim: &PodInfo) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &victim.key.namespace);
    let patch = json!({"metadata": {"uid": victim.pod.uid()}, "status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{COMPONENT}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": Time(Timestamp::now()),
    }]}});
    let patched = api
        .patch_status(
            &victim.key.name,
            &PatchParams::default(),
            &Patch::Strategic(&patch),
        )
        .await;
    if is_gone(&patched) {
        return Ok(());
    }
    patched?;
    // Its priority and its node cannot change.
    let params = Judged::Identity.params(&victim.pod.metadata, DeleteParams::default());
    let deleted = api.delete(&victim.key.name, &params).await;
    if is_gone(&deleted) {
        return Ok(());
    }
    deleted.map(drop)
}

fn is_gone<T>(answer: &Result<T, kube::Error>) -> bool {
    matches!(answer, Err(kube::Error::Api(status)) if status.is_not_found())
}
