//! The status of a Deployment: counts, conditions and the progress deadline. Pure.

use std::time::Duration;

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::size::Bounds;
use crate::controllers::pods;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// What the rollout did to the new ReplicaSet in this sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Existing,
    Created,
}

pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    pub bounds: &'a Bounds,
    /// All ReplicaSets with the sizes they shall have.
    pub sets: &'a [&'a ReplicaSet],
    pub new: Option<&'a ReplicaSet>,
    pub found: Found,
    pub now: Timestamp,
}

/// The new status, and when the progress deadline must be looked at.
pub fn status(observed: &Observed) -> (DeploymentStatus, Option<Duration>) {
    let old = observed.deployment.status.clone().unwrap_or_default();
    let mut status = counts(observed, &old);
    let minimum = status.available_replicas.unwrap_or(0) >= observed.bounds.min_available();
    let available = if minimum {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(&mut status, observed.now, AVAILABLE, available);
    let paused = observed.deployment.spec.paused == Some(true);
    let deadline = deadline_seconds(observed.deployment);
    match deadline {
        None => remove(&mut status, PROGRESSING),
        Some(_) if paused => pause(&mut status, observed.now),
        Some(seconds) => progress(observed, &old, &mut status, seconds),
    }
    replica_failure(observed, &mut status);
    let recheck = deadline
        .filter(|_| !paused)
        .and_then(|seconds| recheck(&status, seconds, observed));
    (status, recheck)
}

/// Seconds without progress until a rollout counts as stuck; `None` if never.
fn deadline_seconds(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)
}

fn counts(observed: &Observed, old: &DeploymentStatus) -> DeploymentStatus {
    let sum =
        |count: fn(&ReplicaSet) -> i32| -> i32 { observed.sets.iter().map(|set| count(set)).sum() };
    let desired = sum(|set| set.spec.replicas.unwrap_or(0));
    let available = sum(available_of);
    DeploymentStatus {
        observed_generation: observed.deployment.metadata.generation,
        replicas: Some(sum(replicas_of)),
        updated_replicas: Some(observed.new.map_or(0, replicas_of)),
        ready_replicas: Some(sum(|set| {
            set.status
                .as_ref()
                .and_then(|status| status.ready_replicas)
                .unwrap_or(0)
        })),
        available_replicas: Some(available),
        unavailable_replicas: Some((desired - available).max(0)),
        terminating_replicas: Some(sum(|set| {
            set.status
                .as_ref()
                .and_then(|status| status.terminating_replicas)
                .unwrap_or(0)
        })),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    }
}

fn replicas_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub fn available_of(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

/// True once every replica wanted is of the new template and available, and nothing else is left.
pub fn is_complete(deployment: &Deployment, bounds: &Bounds, status: &DeploymentStatus) -> bool {
    let all = Some(bounds.replicas);
    status.updated_replicas.or(Some(0)) == all
        && status.replicas.or(Some(0)) == all
        && status.available_replicas.or(Some(0)) == all
        && status.observed_generation >= deployment.metadata.generation
}

fn pause(status: &mut DeploymentStatus, now: Timestamp) {
    if find(status, PROGRESSING).is_some_and(|held| held.reason.as_deref() == Some(TIMED_OUT)) {
        return;
    }
    let words = ("Unknown", PAUSED, "Deployment is paused");
    set(status, now, PROGRESSING, words);
}

fn progress(
    observed: &Observed,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    seconds: i32,
) {
    let now = observed.now;
    if find(status, PROGRESSING).is_some_and(|held| held.reason.as_deref() == Some(PAUSED)) {
        let words = ("Unknown", "DeploymentResumed", "Deployment is resumed");
        set(status, now, PROGRESSING, words);
    }
    let name = observed.new.map(ResourceExt::name_any).unwrap_or_default();
    let held = find(status, PROGRESSING).cloned();
    match observed.found {
        Found::Created => {
            let text = format!("Created new replica set {name:?}");
            set(
                status,
                now,
                PROGRESSING,
                ("True", "NewReplicaSetCreated", &text),
            );
        }
        Found::Existing if held.is_none() => {
            let text = format!("Found new replica set {name:?}");
            set(
                status,
                now,
                PROGRESSING,
                ("True", "FoundNewReplicaSet", &text),
            );
        }
        Found::Existing | Found::Nothing => {}
    }
    let was_complete = status.replicas == status.updated_replicas
        && held
            .as_ref()
            .is_some_and(|held| held.reason.as_deref() == Some(COMPLETE));
    if was_complete {
        return;
    }
    let who = if name.is_empty() {
        format!("Deployment {:?}", observed.deployment.name_any())
    } else {
        format!("ReplicaSet {name:?}")
    };
    if is_complete(observed.deployment, observed.bounds, status) {
        let text = format!("{who} has successfully progressed.");
        set(status, now, PROGRESSING, ("True", COMPLETE, &text));
    } else if has_progressed(old, status) {
        let text = format!("{who} is progressing.");
        // Each step moves the time from which the deadline counts.
        let since = find(status, PROGRESSING)
            .filter(|held| held.status.as_deref() == Some("True"))
            .and_then(|held| held.last_transition_time.clone());
        remove(status, PROGRESSING);
        set(
            status,
            now,
            PROGRESSING,
            ("True", "ReplicaSetUpdated", &text),
        );
        if let (Some(since), Some(condition)) = (since, find_mut(status, PROGRESSING)) {
            condition.last_transition_time = Some(since);
        }
    } else if timed_out(status, seconds, now) {
        let text = format!("{who} has timed out progressing.");
        set(status, now, PROGRESSING, ("False", TIMED_OUT, &text));
    }
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let more = |new: Option<i32>, old: Option<i32>| new.unwrap_or(0) > old.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| {
        status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
    };
    more(new.updated_replicas, old.updated_replicas)
        || outdated(new) < outdated(old)
        || more(new.ready_replicas, old.ready_replicas)
        || more(new.available_replicas, old.available_replicas)
}

fn timed_out(status: &DeploymentStatus, seconds: i32, now: Timestamp) -> bool {
    find(status, PROGRESSING).is_some_and(|held| match held.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => held
            .last_update_time
            .as_ref()
            .is_some_and(|since| pods::remaining(since.0, i64::from(seconds), now).is_none()),
    })
}

fn recheck(status: &DeploymentStatus, seconds: i32, observed: &Observed) -> Option<Duration> {
    let held = find(status, PROGRESSING)?;
    if matches!(held.reason.as_deref(), Some(COMPLETE | TIMED_OUT)) {
        return None;
    }
    let since = held.last_update_time.as_ref()?.0;
    let left = pods::remaining(since, i64::from(seconds), observed.now).unwrap_or_default();
    // Times are stored in whole seconds, so that the deadline could be missed by one.
    Some(left + Duration::from_secs(1))
}

fn replica_failure(observed: &Observed, status: &mut DeploymentStatus) {
    let failure = |set: &&ReplicaSet| {
        set.status
            .as_ref()?
            .conditions
            .as_ref()?
            .iter()
            .find(|one| {
                one.type_.as_deref() == Some(FAILURE) && one.status.as_deref() == Some("True")
            })
            .cloned()
    };
    let held = observed
        .new
        .as_ref()
        .and_then(failure)
        .or_else(|| observed.sets.iter().find_map(failure));
    match held {
        Some(held) => {
            let reason = held.reason.unwrap_or_default();
            let message = held.message.unwrap_or_default();
            set(status, observed.now, FAILURE, ("True", &reason, &message));
        }
        None => remove(status, FAILURE),
    }
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|held| held.type_.as_deref() == Some(kind))
}

fn find_mut<'a>(
    status: &'a mut DeploymentStatus,
    kind: &str,
) -> Option<&'a mut DeploymentCondition> {
    status
        .conditions
        .iter_mut()
        .flatten()
        .find(|held| held.type_.as_deref() == Some(kind))
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|held| held.type_.as_deref() != Some(kind));
    }
}

/// Sets a condition given as status, reason and message. The same status and reason again change
/// nothing; the same status keeps its transition time.
fn set(status: &mut DeploymentStatus, now: Timestamp, kind: &str, words: (&str, &str, &str)) {
    let (value, reason, message) = words;
    let held = find(status, kind);
    if held.is_some_and(|held| {
        held.status.as_deref() == Some(value) && held.reason.as_deref() == Some(reason)
    }) {
        return;
    }
    let since = held
        .filter(|held| held.status.as_deref() == Some(value))
        .and_then(|held| held.last_transition_time.clone());
    let condition = DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(value.into()),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    };
    remove(status, kind);
    status.conditions.get_or_insert_default().push(condition);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reason_after(
        old: serde_json::Value,
        set: serde_json::Value,
        now: &str,
    ) -> (String, Option<Duration>) {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "generation": 1},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 600, "selector": {},
                     "template": {}},
            "status": old,
        }))
        .expect("a Deployment");
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "d-x"}, "spec": {"replicas": 2, "selector": {}}, "status": set,
        }))
        .expect("a ReplicaSet");
        let bounds = Bounds::of(&deployment);
        let (status, recheck) = status(&Observed {
            deployment: &deployment,
            bounds: &bounds,
            sets: &[&set],
            new: Some(&set),
            found: Found::Existing,
            now: now.parse().expect("a time"),
        });
        let held = find(&status, PROGRESSING).expect("a condition");
        (held.reason.clone().unwrap_or_default(), recheck)
    }

    #[test]
    fn progress_is_judged_by_the_deadline() {
        let since = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2,
            "conditions": [{"type": "Progressing", "status": "True",
                "reason": "ReplicaSetUpdated", "lastUpdateTime": "2026-01-01T00:00:00Z"}]});
        let stuck = json!({"replicas": 2});
        let done = json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 2});
        let some = json!({"replicas": 2, "readyReplicas": 1});
        for (set, now, reason, recheck) in [
            (
                &stuck,
                "2026-01-01T00:01:00Z",
                "ReplicaSetUpdated",
                Some(541),
            ),
            (&stuck, "2026-01-01T00:10:00Z", TIMED_OUT, None),
            (
                &some,
                "2026-01-01T00:09:00Z",
                "ReplicaSetUpdated",
                Some(601),
            ),
            (&done, "2026-01-01T00:20:00Z", COMPLETE, None),
        ] {
            let got = reason_after(since.clone(), set.clone(), now);
            assert_eq!(
                got,
                (reason.into(), recheck.map(Duration::from_secs)),
                "{now}"
            );
        }
    }
}
