//! Health and taints of a node. Pure.

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What the condition `Ready` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    NotReady,
    Unknown,
}

pub fn health(node: &Node) -> Health {
    match status_of(node, "Ready") {
        Some("True") => Health::Ready,
        Some("False") => Health::NotReady,
        _ => Health::Unknown,
    }
}

fn status_of<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
        .map(|condition| condition.status.as_str())
}

/// The status of a node that has not been heard of: every condition of its kubelet is unknown.
/// `None` if it says so already.
pub fn silent(node: &Node, now: Timestamp) -> Option<NodeStatus> {
    let mut status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|held| held.type_ == kind) {
            Some(held) if held.status == "Unknown" => {}
            Some(held) => {
                changed = true;
                held.status = "Unknown".into();
                held.reason = Some("NodeStatusUnknown".into());
                held.message = Some("Kubelet stopped posting node status.".into());
                held.last_transition_time = Some(Time(now));
            }
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
            }
        }
    }
    changed.then_some(status)
}

/// Whether pods may be driven from a node that is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    Allowed,
    /// Too much of the zone is in the same state: more likely the fault is ours.
    Held,
}

/// The node's taints as they shall be; `None` if they are. Taints of others stay.
pub fn taints(node: &Node, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let held = spec
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let health = health(node);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let (not_ready, unreachable) = (health == Health::NotReady, health == Health::Unknown);
    let mut when = |is: bool, key: &'static str, effect: &'static str| {
        if is {
            wanted.push((key, effect));
        }
    };
    when(not_ready, NOT_READY, "NoSchedule");
    when(unreachable, UNREACHABLE, "NoSchedule");
    for (key, _, effect) in OTHERS {
        let (kind, taint) = (*key, *effect);
        when(status_of(node, kind) == Some("True"), taint, "NoSchedule");
    }
    let cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    when(cordoned, UNSCHEDULABLE, "NoSchedule");
    for (is, key) in [(not_ready, NOT_READY), (unreachable, UNREACHABLE)] {
        let there = held
            .iter()
            .any(|taint| taint.key == key && taint.effect == "NoExecute");
        when(
            is && (there || eviction == Eviction::Allowed),
            key,
            "NoExecute",
        );
    }
    let mut new: Vec<Taint> = held
        .iter()
        .filter(|taint| {
            !is_ours(taint)
                || wanted
                    .iter()
                    .any(|(key, effect)| taint.key == *key && taint.effect == *effect)
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !new
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            new.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (new != held).then_some(new)
}

/// Condition, what it means, and its taint.
const OTHERS: &[(&str, &str, &str)] = &[
    (
        "MemoryPressure",
        "little memory",
        "node.kubernetes.io/memory-pressure",
    ),
    (
        "DiskPressure",
        "little disk",
        "node.kubernetes.io/disk-pressure",
    ),
    (
        "PIDPressure",
        "few process numbers",
        "node.kubernetes.io/pid-pressure",
    ),
    (
        "NetworkUnavailable",
        "no network",
        "node.kubernetes.io/network-unavailable",
    ),
];

fn is_ours(taint: &Taint) -> bool {
    match taint.effect.as_str() {
        "NoSchedule" => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
                || OTHERS.iter().any(|(_, _, key)| taint.key == *key)
        }
        "NoExecute" => [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()),
        _ => false,
    }
}

/// Whether a zone with these numbers of ready and other nodes may lose pods.
/// Source: documentation of nodes, "Rate limits on eviction".
pub fn eviction(ready_here: usize, bad_here: usize, ready_anywhere: usize) -> Eviction {
    let all = ready_here + bad_here;
    if ready_anywhere == 0 {
        return Eviction::Held;
    }
    let mostly_bad = bad_here > 2 && bad_here * 100 >= all * 55;
    if mostly_bad && all <= 50 && ready_here > 0 {
        return Eviction::Held;
    }
    Eviction::Allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(ready: &str, more: &Value) -> Node {
        let mut value = json!({
            "metadata": {"name": "n"},
            "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        json_patch::merge(&mut value, more);
        serde_json::from_value(value).expect("a node")
    }

    #[test]
    fn taints_follow_conditions() {
        let not_ready = json!({"spec": {"taints": [
            {"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]}});
        let cordoned = json!({"spec": {"unschedulable": true}});
        for (ready, more, eviction, want) in [
            ("True", json!({}), Eviction::Allowed, None),
            ("True", not_ready, Eviction::Allowed, Some(vec![])),
            (
                "Unknown",
                json!({}),
                Eviction::Allowed,
                Some(vec!["mine", UNREACHABLE, UNREACHABLE]),
            ),
            (
                "False",
                json!({}),
                Eviction::Held,
                Some(vec!["mine", NOT_READY]),
            ),
            (
                "True",
                cordoned,
                Eviction::Allowed,
                Some(vec!["mine", UNSCHEDULABLE]),
            ),
        ] {
            let got = taints(&node(ready, &more), eviction, Timestamp::UNIX_EPOCH);
            let keys = got.as_ref().map(|taints| {
                let keys = taints.iter().map(|taint| taint.key.as_str());
                keys.collect::<Vec<_>>()
            });
            assert_eq!(keys, want, "{ready} {more}");
        }
    }

    #[test]
    fn a_zone_that_is_mostly_bad_keeps_its_pods() {
        for (ready, bad, anywhere, want) in [
            (0, 1, 0, Eviction::Held),
            (1, 1, 1, Eviction::Allowed),
            (1, 3, 1, Eviction::Held),
            (40, 60, 40, Eviction::Allowed),
            (0, 3, 5, Eviction::Allowed),
        ] {
            assert_eq!(
                eviction(ready, bad, anywhere),
                want,
                "{ready} {bad} {anywhere}"
            );
        }
    }

    #[test]
    fn silence_is_told_once() {
        let status = silent(&node("True", &json!({})), Timestamp::UNIX_EPOCH);
        let mut quiet = node("True", &json!({}));
        quiet.status = status;
        assert_eq!(health(&quiet), Health::Unknown);
        assert_eq!(silent(&quiet, Timestamp::UNIX_EPOCH), None);
    }
}
