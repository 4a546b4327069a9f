//! How many pods of a budget may go. Pure.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
    jiff::Timestamp,
};
use kube::ResourceExt;

use crate::controllers::{
    percent::{Round, of_total},
    pods,
};

/// An eviction whose pod is not deleted within this time has failed.
const PATIENCE_SECONDS: i64 = 120;

#[derive(Debug)]
pub struct Plan {
    pub status: PodDisruptionBudgetStatus,
    pub recheck: Option<Duration>,
}

/// What stands behind the pods: how many their controllers want together, if that can be told.
pub type Scale = Result<i32, String>;

pub fn plan(budget: &PodDisruptionBudget, pods: &[&Pod], scale: &Scale, now: Timestamp) -> Plan {
    let old = budget.status.clone().unwrap_or_default();
    let (disrupted, recheck) = still_disrupted(&old, pods, now);
    let healthy = pods
        .iter()
        .filter(|pod| {
            !pods::is_terminating(**pod)
                && !disrupted.contains_key(&pod.name_any())
                && pods::is_ready(pod)
        })
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let generation = budget.metadata.generation;
    let status = match expected(budget, pods, scale) {
        Ok((expected, desired)) => {
            let allowed = if expected > 0 {
                (healthy - desired).max(0)
            } else {
                0
            };
            let (state, reason) = match allowed {
                0 => ("False", "InsufficientPods"),
                _ => ("True", "SufficientPods"),
            };
            PodDisruptionBudgetStatus {
                current_healthy: Some(healthy),
                desired_healthy: Some(desired),
                expected_pods: Some(expected),
                disruptions_allowed: Some(allowed),
                disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
                observed_generation: generation,
                conditions: Some(conditions(&old, generation, (state, reason, ""), now)),
            }
        }
        // What cannot be told allows nothing.
        Err(why) => PodDisruptionBudgetStatus {
            disruptions_allowed: Some(0),
            observed_generation: generation,
            conditions: Some(conditions(
                &old,
                generation,
                ("False", "SyncFailed", &why),
                now,
            )),
            ..old
        },
    };
    Plan { status, recheck }
}

/// Evicted pods that are not gone yet, and when the next one is no longer waited for.
fn still_disrupted(
    old: &PodDisruptionBudgetStatus,
    pods: &[&Pod],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut kept = BTreeMap::new();
    let mut recheck: Option<Duration> = None;
    for (name, since) in old.disrupted_pods.iter().flatten() {
        let waits = pods
            .iter()
            .any(|pod| pod.name_any() == *name && !pods::is_terminating(*pod));
        let left = pods::remaining(since.0, PATIENCE_SECONDS, now);
        if let Some(left) = left.filter(|_| waits) {
            recheck = Some(recheck.map_or(left, |other| other.min(left)));
            kept.insert(name.clone(), since.clone());
        }
    }
    (kept, recheck)
}

/// How many pods there should be, and how many of them must be healthy.
fn expected(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    scale: &Scale,
) -> Result<(i32, i32), String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    match (spec.max_unavailable, spec.min_available) {
        (Some(unavailable), _) => {
            let expected = scale.clone()?;
            let most = of_total(&unavailable, expected, Round::Up);
            Ok((expected, (expected - most).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((count, least)),
        (None, Some(least)) => {
            let expected = scale.clone()?;
            Ok((expected, of_total(&least, expected, Round::Up)))
        }
        (None, None) => Ok((count, count)),
    }
}

fn conditions(
    old: &PodDisruptionBudgetStatus,
    generation: Option<i64>,
    (state, reason, message): (&str, &str, &str),
    now: Timestamp,
) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let mut all = old.conditions.clone().unwrap_or_default();
    let held = all.iter().position(|one| one.type_ == KIND);
    let held = held.map(|at| all.remove(at));
    let since = match held {
        Some(held) if held.status == state => held.last_transition_time,
        _ => Time(now),
    };
    all.push(Condition {
        type_: KIND.to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since,
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn allowances() {
        let pod = |name: &str, ready: bool| -> Pod {
            let status = if ready { "True" } else { "False" };
            serde_json::from_value(json!({"metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": status}]}}))
            .expect("a pod")
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let held = [
            pod("a", true),
            pod("b", true),
            pod("c", true),
            pod("d", false),
        ];
        let held: Vec<&Pod> = held.iter().collect();
        let four: Scale = Ok(4);
        for (spec, disrupted, scale, want) in [
            (json!({"minAvailable": 2}), json!({}), &four, (1, 2, 4)),
            (json!({"minAvailable": "50%"}), json!({}), &four, (1, 2, 4)),
            (json!({"maxUnavailable": 1}), json!({}), &four, (0, 3, 4)),
            (
                json!({"maxUnavailable": "50%"}),
                json!({}),
                &Ok(10),
                (0, 5, 10),
            ),
            (
                json!({"minAvailable": 2}),
                json!({"a": "2025-12-31T23:59:30Z"}),
                &four,
                (0, 2, 4),
            ),
            // The eviction came to nothing.
            (
                json!({"minAvailable": 2}),
                json!({"a": "2025-12-31T23:57:30Z"}),
                &four,
                (1, 2, 4),
            ),
            (
                json!({"maxUnavailable": 1}),
                json!({}),
                &Err("why".to_owned()),
                (0, 0, 0),
            ),
        ] {
            let status = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0,
                "expectedPods": 0, "disruptedPods": disrupted});
            let budget: PodDisruptionBudget = serde_json::from_value::<PodDisruptionBudget>(
                json!({"metadata": {"name": "b"}, "spec": spec, "status": status}) as Value,
            )
            .expect("a budget");
            let status = plan(&budget, &held, scale, now).status;
            let got = [
                status.disruptions_allowed,
                status.desired_healthy,
                status.expected_pods,
            ];
            let want: (i32, i32, i32) = want;
            assert_eq!(got, [Some(want.0), Some(want.1), Some(want.2)], "{spec}");
        }
    }
}
