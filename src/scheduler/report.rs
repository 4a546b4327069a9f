//! What the scheduler writes: bindings, conditions, evictions of victims.
//!
//! Each function is one or two API calls; nothing here decides.

use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{Status, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use super::pod::PodInfo;

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

/// Sets the condition `PodScheduled` to false, if it does not say the same already, and the node
/// that the pod was promised.
pub async fn unscheduled(
    client: Client,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    nominated: Option<&str>,
) -> Result<(), kube::Error> {
    let status = pod.pod.status.as_ref();
    let held = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|held| held.type_ == "PodScheduled");
    let same = held.is_some_and(|held| {
        held.status == "False"
            && held.reason.as_deref() == Some(reason)
            && held.message.as_deref() == Some(message)
    });
    let promised = status.and_then(|status| status.nominated_node_name.as_deref());
    if same && (nominated.is_none() || nominated == promised) {
        return Ok(());
    }
    let since = held
        .filter(|held| held.status == "False")
        .and_then(|held| held.last_transition_time.clone())
        .unwrap_or(Time(Timestamp::now()));
    let mut patch = json!({"metadata": {"uid": pod.pod.uid()}, "status": {"conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    }]}});
    if let Some(node) = nominated {
        patch["status"]["nominatedNodeName"] = node.into();
    }
    patch_status(client, pod, &patch).await
}

/// Deletes a victim gracefully, after saying why in its status.
pub async fn evict(client: Client, victim: &PodInfo) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"uid": victim.pod.uid()}, "status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{COMPONENT}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": Time(Timestamp::now()),
    }]}});
    patch_status(client.clone(), victim, &patch).await?;
    let api: Api<Pod> = Api::namespaced(client, &victim.key.namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: victim.pod.uid(),
        resource_version: None,
    });
    api.delete(&victim.key.name, &params).await.map(drop)
}

async fn patch_status(
    client: Client,
    pod: &PodInfo,
    patch: &serde_json::Value,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
    api.patch_status(
        &pod.key.name,
        &PatchParams::default(),
        &Patch::Strategic(patch),
    )
    .await
    .map(drop)
}
