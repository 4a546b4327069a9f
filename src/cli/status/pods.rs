//! Which pods do not run as they should, and how they are shown. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::facts::{PodLine, Trouble};

/// What the kubelet says of containers that are just being started.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// The pod, unless it runs or is done.
pub fn line(pod: &Pod) -> Option<PodLine> {
    let (status, why, since, trouble) = state(pod)?;
    Some(PodLine {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        status,
        why,
        since,
        trouble,
    })
}

type State = (String, Option<String>, Option<Timestamp>, Trouble);

fn state(pod: &Pod) -> Option<State> {
    let created = pod.creation_timestamp().map(|time| time.0);
    if let Some(time) = &pod.metadata.deletion_timestamp {
        // The time at which its grace is over.
        let status = "Terminating".to_owned();
        return Some((status, None, Some(time.0), Trouble::IfItStays));
    }
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    if phase == "Succeeded" {
        return None;
    }
    if phase == "Failed" {
        let reason = status.reason.unwrap_or_else(|| "Failed".to_owned());
        let trouble = match is_of_job(pod) {
            true => Trouble::None,
            false => Trouble::Now,
        };
        return Some((reason, status.message, created, trouble));
    }
    let conditions = status.conditions.unwrap_or_default();
    let unscheduled = conditions
        .iter()
        .find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(one) = unscheduled {
        let why = one.message.clone();
        return Some(("Pending".to_owned(), why, created, Trouble::IfItStays));
    }
    let init = status.init_container_statuses.unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    if let Some((reason, why)) = init.iter().chain(&containers).find_map(waits) {
        let trouble = match reason.contains("BackOff") || reason.contains("Err") {
            true => Trouble::Now,
            false => Trouble::IfItStays,
        };
        return Some((reason, why, created, trouble));
    }
    if phase != "Running" {
        return Some((
            phase.to_owned(),
            status.message,
            created,
            Trouble::IfItStays,
        ));
    }
    let ready = conditions.iter().find(|one| one.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    let since = ready.last_transition_time.as_ref().map(|time| time.0);
    let why = ready.message.clone();
    Some((
        "NotReady".to_owned(),
        why,
        since.or(created),
        Trouble::IfItStays,
    ))
}

/// What a container waits for, if not just for its start.
fn waits(container: &ContainerStatus) -> Option<(String, Option<String>)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone()?;
    (!STARTING.contains(&reason.as_str())).then(|| (reason, waiting.message.clone()))
}

/// A Job makes others in the place of those that fail, and says itself when it gives up.
fn is_of_job(pod: &Pod) -> bool {
    let mut owners = pod.owner_references().iter();
    owners.any(|owner| owner.kind == "Job" && owner.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn state_of(metadata: Value, status: Value) -> Option<(String, Trouble)> {
        let mut whole = json!({"namespace": "shop", "name": "p",
            "creationTimestamp": "2030-01-01T00:00:00Z"});
        for (key, value) in metadata.as_object().expect("a map") {
            whole[key] = value.clone();
        }
        let pod = json!({"metadata": whole, "status": status});
        let line = line(&serde_json::from_value(pod).expect("a pod"))?;
        Some((line.status, line.trouble))
    }

    #[test]
    fn which_pods_are_shown() {
        let waiting = |reason: &str| {
            json!({"phase": "Pending", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}}]})
        };
        let condition = |kind: &str, status: &str, phase: &str| json!({"phase": phase, "conditions": [{"type": kind, "status": status}]});
        let job = json!({"ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j",
            "uid": "j", "controller": true}]});
        let going = json!({"deletionTimestamp": "2030-01-01T00:00:00Z"});
        let plain = json!({});
        for (metadata, status, want) in [
            (&plain, condition("Ready", "True", "Running"), None),
            (&plain, json!({"phase": "Succeeded"}), None),
            (
                &plain,
                condition("Ready", "False", "Running"),
                Some(("NotReady", Trouble::IfItStays)),
            ),
            (
                &plain,
                json!({"phase": "Failed", "reason": "Evicted"}),
                Some(("Evicted", Trouble::Now)),
            ),
            (
                &job,
                json!({"phase": "Failed"}),
                Some(("Failed", Trouble::None)),
            ),
            (&plain, json!({}), Some(("Pending", Trouble::IfItStays))),
            (
                &plain,
                condition("PodScheduled", "False", "Pending"),
                Some(("Pending", Trouble::IfItStays)),
            ),
            (
                &plain,
                waiting("ContainerCreating"),
                Some(("Pending", Trouble::IfItStays)),
            ),
            (
                &plain,
                waiting("CrashLoopBackOff"),
                Some(("CrashLoopBackOff", Trouble::Now)),
            ),
            (
                &plain,
                waiting("ErrImageNeverPull"),
                Some(("ErrImageNeverPull", Trouble::Now)),
            ),
            (
                &going,
                condition("Ready", "True", "Running"),
                Some(("Terminating", Trouble::IfItStays)),
            ),
        ] {
            let got = state_of(metadata.clone(), status.clone());
            let got = got.as_ref().map(|(status, trouble)| (&**status, *trouble));
            assert_eq!(got, want, "{metadata} {status}");
        }
    }
}
