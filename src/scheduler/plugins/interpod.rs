//! Affinity between pods: near to some, far from others, in both directions.

use std::collections::HashMap;

use super::{NamespaceLabels, Plugins, Reject};
use crate::scheduler::{
    cluster::{Cluster, NodeInfo},
    pod::{PodInfo, Term},
};

/// Counts by topology key and its value.
type Counts = HashMap<(String, String), i64>;

/// Weight of a required affinity of another pod when nodes are scored.
const REQUIRED_WEIGHT: i64 = 1;

/// What matters of the whole cluster for one pod.
pub struct Filter {
    /// Where pods are that do not want this one near.
    unwelcome: Counts,
    near: Vec<String>,
    near_counts: Counts,
    /// The pod matches its own terms, so that the first of a group may start it.
    near_itself: bool,
    far: Vec<(String, Counts)>,
}

impl Filter {
    pub fn new(pod: &PodInfo, cluster: &Cluster, labels: NamespaceLabels) -> Self {
        let mut unwelcome = Counts::new();
        for (node, other) in cluster.pods_with_affinity() {
            for term in &other.anti_affinity {
                if term.matches(pod, labels) {
                    count(&mut unwelcome, node, &term.topology_key, 1);
                }
            }
        }
        let mut this = Self {
            unwelcome,
            near: keys(&pod.affinity),
            near_counts: Counts::new(),
            near_itself: pod.affinity.iter().all(|term| term.matches(pod, labels)),
            far: keys(&pod.anti_affinity)
                .into_iter()
                .map(|key| (key, Counts::new()))
                .collect(),
        };
        if pod.affinity.is_empty() && pod.anti_affinity.is_empty() {
            return this;
        }
        for node in &cluster.nodes {
            for other in node.pods.values() {
                if !pod.affinity.is_empty()
                    && pod.affinity.iter().all(|term| term.matches(other, labels))
                {
                    for key in &this.near {
                        count(&mut this.near_counts, node, key, 1);
                    }
                }
                for (term, (key, counts)) in pod.anti_affinity.iter().zip(&mut this.far) {
                    if term.matches(other, labels) {
                        count(counts, node, key, 1);
                    }
                }
            }
        }
        this
    }

    pub fn check(&self, node: &NodeInfo) -> Option<Reject> {
        if !self.is_near(node) {
            return Some(Reject::fixed(
                Plugins::INTERPOD,
                "node(s) didn't match pod affinity rules",
            ));
        }
        if self.far.iter().any(|(key, counts)| has(counts, node, key)) {
            return Some(Reject::by_pods(
                Plugins::INTERPOD,
                "node(s) didn't match pod anti-affinity rules",
            ));
        }
        let unwelcome = self
            .unwelcome
            .keys()
            .any(|(key, value)| node.labels().get(key) == Some(value));
        unwelcome.then(|| {
            Reject::by_pods(
                Plugins::INTERPOD,
                "node(s) didn't satisfy existing pods anti-affinity rules",
            )
        })
    }

    fn is_near(&self, node: &NodeInfo) -> bool {
        if !self.near.iter().all(|key| node.labels().contains_key(key)) {
            return false;
        }
        self.near
            .iter()
            .all(|key| has(&self.near_counts, node, key))
            || (self.near_counts.is_empty() && self.near_itself)
    }
}

/// Weights of preferred terms, the pod's own and those of others about it, brought to 0..=100.
pub fn scores(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    cluster: &Cluster,
    labels: NamespaceLabels,
) -> Vec<i64> {
    let mut weights = Counts::new();
    for (node, other) in cluster.pods_with_affinity() {
        for preferred in &other.preferred {
            if preferred.term.matches(pod, labels) {
                let key = &preferred.term.topology_key;
                count(&mut weights, node, key, preferred.weight);
            }
        }
        for term in &other.affinity {
            if term.matches(pod, labels) {
                count(&mut weights, node, &term.topology_key, REQUIRED_WEIGHT);
            }
        }
    }
    if !pod.preferred.is_empty() {
        for node in &cluster.nodes {
            for other in node.pods.values() {
                for preferred in &pod.preferred {
                    if preferred.term.matches(other, labels) {
                        let key = &preferred.term.topology_key;
                        count(&mut weights, node, key, preferred.weight);
                    }
                }
            }
        }
    }
    if weights.is_empty() {
        return vec![0; nodes.len()];
    }
    let sums: Vec<i64> = nodes
        .iter()
        .map(|node| {
            weights
                .iter()
                .filter(|((key, value), _)| node.labels().get(key) == Some(value))
                .map(|(_, weight)| weight)
                .sum()
        })
        .collect();
    let low = sums.iter().copied().min().unwrap_or(0);
    let range = sums.iter().copied().max().unwrap_or(0) - low;
    sums.iter()
        .map(|sum| {
            if range > 0 {
                100 * (sum - low) / range
            } else {
                0
            }
        })
        .collect()
}

fn keys(terms: &[Term]) -> Vec<String> {
    terms.iter().map(|term| term.topology_key.clone()).collect()
}

fn count(counts: &mut Counts, node: &NodeInfo, key: &str, by: i64) {
    if let Some(value) = node.labels().get(key) {
        *counts.entry((key.to_owned(), value.clone())).or_default() += by;
    }
}

fn has(counts: &Counts, node: &NodeInfo, key: &str) -> bool {
    node.labels().get(key).is_some_and(|value| {
        counts
            .get(&(key.to_owned(), value.clone()))
            .is_some_and(|count| *count > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cluster::tests::{node, pod};
    use serde_json::{Value, json};

    fn rule(kind: &str, app: &str) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]}}})
    }

    fn allowed(cluster: &Cluster, pod: &PodInfo) -> Vec<String> {
        let filter = Filter::new(pod, cluster, &|_| None);
        let nodes = cluster.nodes.iter();
        nodes
            .filter(|node| filter.check(node).is_none())
            .map(|node| node.name.clone())
            .collect()
    }

    #[test]
    fn both_directions_and_the_first_of_a_group() {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a", "1"), ("b", "1"), ("c", "2")] {
            cluster.set_node(node(name, json!({"zone": zone}), json!({})));
        }
        let web = |name: &str, spec: Value| pod(name, json!({"app": "web"}), spec);
        let first = web("first", rule("podAffinity", "web"));
        assert_eq!(
            allowed(&cluster, &first),
            ["a", "b", "c"],
            "nobody there yet"
        );
        let stranger = pod("s", json!({"app": "db"}), rule("podAffinity", "web"));
        assert_eq!(allowed(&cluster, &stranger), Vec::<String>::new());
        cluster.set_pod(web("w", rule("podAntiAffinity", "db")), "a");
        assert_eq!(allowed(&cluster, &first), ["a", "b"]);
        let plain = pod("d", json!({"app": "db"}), json!({}));
        assert_eq!(allowed(&cluster, &plain), ["c"], "the other pod objects");
        let shy = pod("x", json!({}), rule("podAntiAffinity", "web"));
        assert_eq!(allowed(&cluster, &shy), ["c"]);
    }
}
