//! Topology spread: like numbers of like pods in every zone, or on every node.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use kube::{
    ResourceExt,
    core::{Expression, Selector, SelectorExt},
};

use super::{Plugins, Reject, node_affinity, taints};
use crate::scheduler::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug)]
struct Constraint {
    max_skew: i64,
    key: String,
    selector: Selector,
    min_domains: usize,
    honors_affinity: bool,
    honors_taints: bool,
}

impl Constraint {
    /// True if pods on the node count for this pod.
    fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honors_affinity || node_affinity::matches(pod, node))
            && (!self.honors_taints || taints::filter(pod, node).is_none())
    }

    fn matching(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let alike = node.pods.values().filter(|other| {
            other.key.namespace == pod.key.namespace
                && !other.is_terminating()
                && self.selector.matches(other.pod.labels())
        });
        i64::try_from(alike.count()).unwrap_or(i64::MAX)
    }
}

/// What matters of the whole cluster for one pod.
pub struct Filter {
    constraints: Vec<State>,
}

struct State {
    constraint: Constraint,
    counts: HashMap<String, i64>,
    lowest: i64,
    own: i64,
}

impl Filter {
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Self {
        let constraints = constraints(pod, "DoNotSchedule");
        let mut counts: Vec<HashMap<String, i64>> = vec![HashMap::new(); constraints.len()];
        if !constraints.is_empty() {
            let eligible = cluster.nodes.iter().filter(|node| {
                constraints
                    .iter()
                    .all(|one| node.labels().contains_key(&one.key))
            });
            for node in eligible {
                for (constraint, counts) in constraints.iter().zip(&mut counts) {
                    if constraint.includes(pod, node)
                        && let Some(value) = node.labels().get(&constraint.key)
                    {
                        let count = counts.entry(value.clone()).or_default();
                        *count += constraint.matching(pod, node);
                    }
                }
            }
        }
        let states = constraints
            .into_iter()
            .zip(counts)
            .map(|(constraint, counts)| {
                let lowest = if counts.len() < constraint.min_domains {
                    0 // a domain that does not exist yet has no pods
                } else {
                    counts.values().copied().min().unwrap_or(0)
                };
                State {
                    own: i64::from(constraint.selector.matches(pod.pod.labels())),
                    constraint,
                    counts,
                    lowest,
                }
            });
        Self {
            constraints: states.collect(),
        }
    }

    pub fn check(&self, node: &NodeInfo) -> Option<Reject> {
        for state in &self.constraints {
            let Some(value) = node.labels().get(&state.constraint.key) else {
                return Some(Reject::fixed(
                    Plugins::SPREAD,
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let count = state.counts.get(value).copied().unwrap_or(0);
            if count + state.own - state.lowest > state.constraint.max_skew {
                return Some(Reject::by_pods(
                    Plugins::SPREAD,
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        None
    }
}

/// Fewer like pods around are better. `defaults` selects the pods of the same service or owner,
/// for pods that name no constraints.
pub fn scores(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    cluster: &Cluster,
    defaults: Option<Selector>,
) -> Vec<i64> {
    let named = pod
        .spec()
        .and_then(|spec| spec.topology_spread_constraints.as_ref())
        .is_some_and(|all| !all.is_empty());
    let constraints = match defaults {
        Some(selector) if !named => default_constraints(&selector),
        _ => constraints(pod, "ScheduleAnyway"),
    };
    if constraints.is_empty() || nodes.len() < 2 {
        return vec![0; nodes.len()];
    }
    // Nodes without the wanted labels score nothing; the defaults forgive that.
    let ignored: Vec<bool> = nodes
        .iter()
        .map(|node| {
            named
                && !constraints
                    .iter()
                    .all(|one| node.labels().contains_key(&one.key))
        })
        .collect();
    let mut sums = vec![0.0; nodes.len()];
    for constraint in &constraints {
        add_costs(&mut sums, constraint, pod, nodes, &ignored, cluster);
    }
    normalized(&sums, &ignored)
}

fn add_costs(
    sums: &mut [f64],
    constraint: &Constraint,
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    ignored: &[bool],
    cluster: &Cluster,
) {
    let kept = nodes.iter().zip(ignored).filter(|(_, ignored)| !**ignored);
    let domains: HashSet<&String> = kept
        .filter_map(|(node, _)| node.labels().get(&constraint.key))
        .collect();
    let mut counts: HashMap<&String, i64> = HashMap::new();
    for node in &cluster.nodes {
        if let Some(value) = node.labels().get(&constraint.key)
            && domains.contains(value)
            && constraint.includes(pod, node)
        {
            *counts.entry(value).or_default() += constraint.matching(pod, node);
        }
    }
    #[allow(clippy::cast_precision_loss)] // numbers of nodes and pods
    let weight = ((domains.len() + 2) as f64).ln();
    for (node, sum) in nodes.iter().zip(sums) {
        if let Some(count) = node
            .labels()
            .get(&constraint.key)
            .and_then(|value| counts.get(value))
        {
            *sum += cost(*count, weight, constraint.max_skew);
        }
    }
}

#[allow(clippy::cast_precision_loss)] // numbers of pods
fn cost(count: i64, weight: f64, max_skew: i64) -> f64 {
    count as f64 * weight + (max_skew - 1) as f64
}

fn normalized(sums: &[f64], ignored: &[bool]) -> Vec<i64> {
    #[allow(clippy::cast_possible_truncation)] // rounded, and `as` saturates
    let sums: Vec<i64> = sums.iter().map(|sum| sum.round() as i64).collect();
    let kept = || {
        let all = sums.iter().zip(ignored);
        all.filter(|(_, ignored)| !**ignored).map(|(sum, _)| *sum)
    };
    let (low, high) = (kept().min().unwrap_or(0), kept().max().unwrap_or(0));
    sums.iter()
        .zip(ignored)
        .map(|(sum, ignored)| match (*ignored, high) {
            (true, _) => 0,
            (false, 0) => 100,
            (false, high) => 100 * (high + low - sum) / high,
        })
        .collect()
}

fn constraints(pod: &PodInfo, when: &str) -> Vec<Constraint> {
    pod.spec()
        .and_then(|spec| spec.topology_spread_constraints.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|one| one.when_unsatisfiable == when)
        .filter_map(|one| constraint(pod, one))
        .collect()
}

/// `None` for a selector that validation would not have let in.
fn constraint(pod: &PodInfo, of: &TopologySpreadConstraint) -> Option<Constraint> {
    let labels = pod.pod.labels();
    let mut selector = match of.label_selector.clone() {
        Some(selector) => Selector::try_from(selector).ok()?,
        // No selector selects nothing: a label that must both be and not be.
        None => [
            Expression::Exists(String::new()),
            Expression::DoesNotExist(String::new()),
        ]
        .into_iter()
        .collect(),
    };
    for key in of.match_label_keys.iter().flatten() {
        if let Some(value) = labels.get(key) {
            let values = BTreeSet::from([value.clone()]);
            selector.extend([Expression::In(key.clone(), values)]);
        }
    }
    Some(Constraint {
        max_skew: i64::from(of.max_skew),
        key: of.topology_key.clone(),
        selector,
        min_domains: of
            .min_domains
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(1),
        honors_affinity: of.node_affinity_policy.as_deref() != Some("Ignore"),
        honors_taints: of.node_taints_policy.as_deref() == Some("Honor"),
    })
}

fn default_constraints(selector: &Selector) -> Vec<Constraint> {
    [(HOSTNAME, 3), (ZONE, 5)]
        .into_iter()
        .map(|(key, max_skew)| Constraint {
            max_skew,
            key: key.into(),
            selector: selector.clone(),
            min_domains: 1,
            honors_affinity: true,
            honors_taints: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cluster::tests::{node, pod};
    use serde_json::{Value, json};

    fn cluster(pods: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a", "1"), ("b", "1"), ("c", "2")] {
            cluster.set_node(node(name, json!({"zone": zone}), json!({})));
        }
        cluster.set_node(node("bare", json!({}), json!({})));
        for (name, node) in pods {
            cluster.set_pod(pod(name, json!({"app": "x"}), json!({})), node);
        }
        cluster
    }

    fn spread(when: &str, more: &Value) -> std::sync::Arc<PodInfo> {
        let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "x"}}});
        for (key, value) in more.as_object().expect("a map") {
            constraint[key] = value.clone();
        }
        let spec = json!({"topologySpreadConstraints": [constraint]});
        pod("new", json!({"app": "x"}), spec)
    }

    fn allowed(cluster: &Cluster, pod: &PodInfo) -> Vec<String> {
        let filter = Filter::new(pod, cluster);
        let nodes = cluster.nodes.iter();
        nodes
            .filter(|node| filter.check(node).is_none())
            .map(|node| node.name.clone())
            .collect()
    }

    #[test]
    fn skew_between_zones() {
        // Source: documentation of pod topology spread constraints.
        let pod = spread("DoNotSchedule", &json!({}));
        assert_eq!(allowed(&cluster(&[]), &pod), ["a", "b", "c"]);
        assert_eq!(allowed(&cluster(&[("p", "a")]), &pod), ["c"]);
        assert_eq!(
            allowed(&cluster(&[("p", "a"), ("q", "c")]), &pod),
            ["a", "b", "c"]
        );
        let three = spread("DoNotSchedule", &json!({"minDomains": 3}));
        let held = cluster(&[("p", "a"), ("q", "c")]);
        assert_eq!(allowed(&held, &three), Vec::<String>::new());
    }

    #[test]
    fn fewer_alike_score_higher() {
        let pod = spread("ScheduleAnyway", &json!({}));
        let cluster = cluster(&[("p", "a"), ("q", "b")]);
        let nodes: Vec<&NodeInfo> = cluster.nodes.iter().collect();
        // Zone 1 costs 2 ln 4 = 2.77, rounded 3; zone 2 nothing; without the label no score.
        assert_eq!(scores(&pod, &nodes, &cluster, None), [0, 0, 100, 0]);
    }
}
