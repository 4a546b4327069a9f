//! Which surplus pods go first. Pure.
//!
//! Source: the order that the ReplicaSet documentation gives, "pods selected for deletion", and
//! its reference implementation's ties.

use std::{cmp::Ordering, collections::HashMap};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use crate::controllers::pods;

/// Annotation by which a user says which pod is cheap to lose.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `pods` in the order in which they should be deleted. `related` are the pods that share a node
/// with them and count as doubles (for a Deployment, the pods of all its ReplicaSets).
pub fn first_to_go<'a>(pods: &[&'a Pod], related: &[&Pod], now: Timestamp) -> Vec<&'a Pod> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        if let Some(node) = pods::node_name(pod) {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let doubles = |pod: &Pod| {
        pods::node_name(pod)
            .and_then(|node| per_node.get(node))
            .copied()
            .unwrap_or(0)
    };
    let mut ordered = pods.to_vec();
    ordered.sort_by(|a, b| compare(a, b, doubles(a), doubles(b), now));
    ordered
}

fn compare(a: &Pod, b: &Pod, doubles_a: usize, doubles_b: usize, now: Timestamp) -> Ordering {
    let ready_since = |pod: &Pod| pods::ready_since(pod);
    pods::node_name(a)
        .is_some()
        .cmp(&pods::node_name(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| doubles_b.cmp(&doubles_a))
        .then_with(|| match (ready_since(a), ready_since(b)) {
            (Some(first), Some(second)) => younger_first(first, second, a, b, now),
            _ => Ordering::Equal,
        })
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| match (a.creation_timestamp(), b.creation_timestamp()) {
            (Some(first), Some(second)) => younger_first(first.0, second.0, a, b, now),
            _ => Ordering::Equal,
        })
        .then_with(|| a.uid().cmp(&b.uid()))
}

/// The younger first; ages in the same power of two are alike, and then the UID decides.
fn younger_first(
    first: Timestamp,
    second: Timestamp,
    a: &Pod,
    b: &Pod,
    now: Timestamp,
) -> Ordering {
    if first == second {
        return Ordering::Equal;
    }
    magnitude(first, now)
        .cmp(&magnitude(second, now))
        .then_with(|| a.uid().cmp(&b.uid()))
}

/// The power of two that holds the age in nanoseconds; -1 for the future.
fn magnitude(since: Timestamp, now: Timestamp) -> i32 {
    let age = now.as_nanosecond() - since.as_nanosecond();
    u128::try_from(age)
        .ok()
        .and_then(u128::checked_ilog2)
        .and_then(|power| i32::try_from(power).ok())
        .unwrap_or(-1)
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn cost(pod: &Pod) -> i32 {
    pod.annotations()
        .get(DELETION_COST)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, phase: &str, ready: Option<&str>, annotations: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "annotations": annotations,
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": ready.map(|since| json!([
                {"type": "Ready", "status": "True", "lastTransitionTime": since}
            ]))},
        }))
        .expect("a pod")
    }

    #[test]
    fn the_least_useful_goes_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().expect("a time");
        let ready = Some("2026-01-01T01:00:00Z");
        let pods = [
            pod("old", "n1", "Running", ready, json!({})),
            pod("doubled", "n2", "Running", ready, json!({})),
            pod(
                "doubled-too",
                "n2",
                "Running",
                Some("2026-01-01T23:59:59Z"),
                json!({}),
            ),
            pod(
                "cheap",
                "n1",
                "Running",
                ready,
                json!({DELETION_COST: "-1"}),
            ),
            pod("dear", "n1", "Running", ready, json!({DELETION_COST: "10"})),
            pod("unready", "n1", "Running", None, json!({})),
            pod("unknown", "n1", "Unknown", None, json!({})),
            pod("pending", "n1", "Pending", None, json!({})),
            pod("unassigned", "", "Pending", None, json!({})),
        ];
        let mut all: Vec<&Pod> = pods.iter().collect();
        all.reverse();
        // Only the two of n2 count as doubles.
        let related: Vec<&Pod> = pods[1..3].iter().collect();
        let order: Vec<String> = first_to_go(&all, &related, now)
            .iter()
            .map(|pod| pod.name_any())
            .collect();
        assert_eq!(
            order,
            [
                "unassigned",
                "pending",
                "unknown",
                "unready",
                "cheap",
                "doubled-too",
                "doubled",
                "old",
                "dear"
            ]
        );
    }
}
