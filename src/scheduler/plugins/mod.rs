//! The rules: which nodes a pod may go to, and how good each is. A file each, all pure.

pub mod balanced;
pub mod fit;
pub mod image;
pub mod interpod;
pub mod node_affinity;
pub mod ports;
pub mod spread;
pub mod taints;
pub mod volumes;

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

/// A set of rules, to remember which of them rejected a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plugins(u16);

impl Plugins {
    pub const UNSCHEDULABLE: Self = Self(1);
    pub const NODE_NAME: Self = Self(1 << 1);
    pub const TAINTS: Self = Self(1 << 2);
    pub const NODE_AFFINITY: Self = Self(1 << 3);
    pub const PORTS: Self = Self(1 << 4);
    pub const FIT: Self = Self(1 << 5);
    pub const SPREAD: Self = Self(1 << 6);
    pub const INTERPOD: Self = Self(1 << 7);
    pub const VOLUMES: Self = Self(1 << 8);
    pub const ALL: Self = Self(u16::MAX);

    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a node is no place for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub plugin: Plugins,
    pub reasons: Vec<Cow<'static, str>>,
    /// True if other pods leaving the node could help.
    pub preemption_helps: bool,
}

impl Reject {
    pub fn fixed(plugin: Plugins, reason: &'static str) -> Self {
        Self {
            plugin,
            reasons: vec![reason.into()],
            preemption_helps: false,
        }
    }

    pub fn by_pods(plugin: Plugins, reason: &'static str) -> Self {
        Self {
            preemption_helps: true,
            ..Self::fixed(plugin, reason)
        }
    }
}

/// Labels of a namespace, by name.
pub type NamespaceLabels<'a> = &'a dyn Fn(&str) -> Option<BTreeMap<String, String>>;

/// What the filters need to know of the whole cluster for one pod.
pub struct Filters {
    spread: spread::Filter,
    interpod: interpod::Filter,
    volumes: volumes::Filter,
}

impl Filters {
    pub fn new(pod: &PodInfo, cluster: &Cluster, labels: NamespaceLabels) -> Self {
        Self {
            spread: spread::Filter::new(pod, cluster),
            interpod: interpod::Filter::new(pod, cluster, labels),
            volumes: volumes::Filter::new(pod, cluster),
        }
    }

    /// `None` if the pod may go to the node.
    pub fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
        unschedulable(pod, node)
            .or_else(|| node_name(pod, node))
            .or_else(|| taints::filter(pod, node))
            .or_else(|| node_affinity::filter(pod, node))
            .or_else(|| ports::filter(pod, node))
            .or_else(|| fit::filter(pod, node))
            .or_else(|| self.volumes.check(pod, node))
            .or_else(|| self.spread.check(node))
            .or_else(|| self.interpod.check(node))
    }
}

/// Sum of the weighted scores of each node, in the order of `nodes`.
pub fn scores(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    cluster: &Cluster,
    labels: NamespaceLabels,
    spread_defaults: Option<kube::core::Selector>,
) -> Vec<i64> {
    let mut total = vec![0; nodes.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (sum, score) in total.iter_mut().zip(scores) {
            *sum += weight * score;
        }
    };
    add(3, taints::scores(pod, nodes));
    add(2, node_affinity::scores(pod, nodes));
    add(2, spread::scores(pod, nodes, cluster, spread_defaults));
    add(2, interpod::scores(pod, nodes, cluster, labels));
    add(1, nodes.iter().map(|node| fit::score(pod, node)).collect());
    add(
        1,
        nodes
            .iter()
            .map(|node| balanced::score(pod, node))
            .collect(),
    );
    add(1, image::scores(pod, nodes, cluster));
    total
}

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// A cordoned node takes only pods that tolerate it.
fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    let cordoned = node
        .node
        .spec
        .as_ref()
        .is_some_and(|spec| spec.unschedulable == Some(true));
    (cordoned && !taints::tolerates(pod, UNSCHEDULABLE_TAINT, "", "NoSchedule"))
        .then(|| Reject::fixed(Plugins::UNSCHEDULABLE, "node(s) were unschedulable"))
}

fn node_name(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    let wanted = pod.spec()?.node_name.as_deref()?;
    (!wanted.is_empty() && wanted != node.name).then(|| {
        Reject::fixed(
            Plugins::NODE_NAME,
            "node(s) didn't match the requested node name",
        )
    })
}

/// Brings scores to 0..=100, the highest to 100; `reverse` makes the lowest the best.
fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let share = if max == 0 { 0 } else { 100 * *score / max };
        *score = if reverse { 100 - share } else { share };
    }
}
