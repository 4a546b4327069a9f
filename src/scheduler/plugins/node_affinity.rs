//! `nodeSelector` and node affinity.

use super::{Plugins, Reject, normalize};
use crate::{
    placement,
    scheduler::{cluster::NodeInfo, pod::PodInfo},
};

pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    (!matches(pod, node)).then(|| {
        Reject::fixed(
            Plugins::NODE_AFFINITY,
            "node(s) didn't match Pod's node affinity/selector",
        )
    })
}

/// True if the node has what the pod requires of labels and fields.
pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.spec()
        .is_none_or(|spec| placement::wants_node(spec, node.labels(), &node.name))
}

/// Sum of the weights of preferred terms that the node meets.
pub fn scores(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let preferred = pod
        .spec()
        .and_then(|spec| spec.affinity.as_ref())
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default();
    let mut scores: Vec<i64> = nodes
        .iter()
        .map(|node| {
            preferred
                .iter()
                .filter(|one| placement::meets(&one.preference, node.labels(), &node.name))
                .map(|one| i64::from(one.weight))
                .sum()
        })
        .collect();
    normalize(&mut scores, false);
    scores
}
