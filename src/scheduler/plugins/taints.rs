//! Taints of a node and what a pod tolerates.

use super::{Plugins, Reject, normalize};
use crate::{
    placement,
    scheduler::{cluster::NodeInfo, pod::PodInfo},
};

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
        .any(|toleration| placement::tolerates(toleration, key, value, effect))
}
