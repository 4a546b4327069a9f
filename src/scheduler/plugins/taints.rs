//! Taints of a node and what a pod tolerates.

use k8s_openapi::api::core::v1::Toleration;

use super::{Plugins, Reject, normalize};
use crate::scheduler::{cluster::NodeInfo, pod::PodInfo};

pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    node.taints()
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .any(|taint| {
            let value = taint.value.as_deref().unwrap_or_default();
            !tolerates(pod, &taint.key, value, &taint.effect)
        })
        .then(|| Reject::fixed(Plugins::TAINTS, "node(s) had untolerated taint(s)"))
}

/// Nodes with the fewest soft taints in the way are the best.
pub fn scores(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut scores: Vec<i64> = nodes
        .iter()
        .map(|node| {
            let bad = node.taints().iter().filter(|taint| {
                taint.effect == "PreferNoSchedule"
                    && !tolerates(
                        pod,
                        &taint.key,
                        taint.value.as_deref().unwrap_or_default(),
                        &taint.effect,
                    )
            });
            i64::try_from(bad.count()).unwrap_or(i64::MAX)
        })
        .collect();
    normalize(&mut scores, true);
    scores
}

pub fn tolerates(pod: &PodInfo, key: &str, value: &str, effect: &str) -> bool {
    pod.spec()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default()
        .iter()
        .any(|toleration| matches(toleration, key, value, effect))
}

fn matches(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|wanted| wanted != effect) {
        return false;
    }
    let wanted = given(&toleration.key);
    if wanted.as_ref().is_some_and(|wanted| wanted != key) {
        return false;
    }
    let held = toleration.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Lt" => compare(value, held).is_some_and(|(taint, bound)| taint < bound),
        "Gt" => compare(value, held).is_some_and(|(taint, bound)| taint > bound),
        _ => wanted.is_some() && held == value,
    }
}

fn compare(taint: &str, bound: &str) -> Option<(i64, i64)> {
    Some((taint.parse().ok()?, bound.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cluster::tests::pod;
    use serde_json::{Value, json};

    #[test]
    fn tolerations() {
        // Source: documentation of taints and tolerations.
        for (toleration, key, value, effect, want) in [
            (
                json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
                "k",
                "v",
                "NoSchedule",
                true,
            ),
            (
                json!({"key": "k", "value": "w", "effect": "NoSchedule"}),
                "k",
                "v",
                "NoSchedule",
                false,
            ),
            (
                json!({"key": "k", "value": "v"}),
                "k",
                "v",
                "NoExecute",
                true,
            ),
            (
                json!({"key": "k", "operator": "Exists"}),
                "k",
                "v",
                "NoExecute",
                true,
            ),
            (
                json!({"operator": "Exists"}),
                "any",
                "v",
                "NoSchedule",
                true,
            ),
            (
                json!({"operator": "Exists", "effect": "NoExecute"}),
                "k",
                "v",
                "NoSchedule",
                false,
            ),
            (
                json!({"key": "j", "operator": "Exists"}),
                "k",
                "v",
                "NoSchedule",
                false,
            ),
        ] {
            let spec: Value = json!({"tolerations": [toleration]});
            let pod = pod("p", json!({}), spec.clone());
            assert_eq!(tolerates(&pod, key, value, effect), want, "{spec}");
        }
    }
}
