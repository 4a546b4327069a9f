//! One attempt: filter the nodes, score what is left, choose. Pure but for the tie-break.

use std::{borrow::Cow, collections::BTreeMap};

use kube::core::Selector;
use rand::Rng;

use super::{
    cluster::{Cluster, NodeInfo},
    plugins::{Filters, NamespaceLabels, Plugins, Reject, scores},
    pod::PodInfo,
};

/// At least this many fitting nodes are looked for before the search is cut short.
const MIN_FEASIBLE: usize = 100;

/// Why no node will do.
#[derive(Debug)]
pub struct Unschedulable {
    /// Node names with what each objects to.
    pub rejects: Vec<(String, Reject)>,
    pub nodes: usize,
    /// What keeps it from every node alike.
    pub problem: Option<String>,
}

impl Unschedulable {
    pub fn plugins(&self) -> Plugins {
        if self.nodes == 0 {
            return Plugins::ALL;
        }
        if self.problem.is_some() {
            return Plugins::VOLUMES;
        }
        self.rejects
            .iter()
            .fold(Plugins::default(), |all, (_, reject)| {
                all.and(reject.plugin)
            })
    }

    /// In the words of the reference: `0/3 nodes are available: 1 Insufficient cpu, ...`.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        if let Some(problem) = &self.problem {
            return format!("0/{} nodes are available: {problem}.", self.nodes);
        }
        let mut counts: BTreeMap<&Cow<'static, str>, usize> = BTreeMap::new();
        for reason in self.rejects.iter().flat_map(|(_, reject)| &reject.reasons) {
            *counts.entry(reason).or_default() += 1;
        }
        let mut reasons: Vec<String> = counts
            .into_iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        format!(
            "0/{} nodes are available: {}.",
            self.nodes,
            reasons.join(", ")
        )
    }
}

/// The best node for the pod. `start` is where the search begins and moves on for the next pod.
pub fn schedule(
    pod: &PodInfo,
    cluster: &Cluster,
    labels: NamespaceLabels,
    spread_defaults: Option<Selector>,
    start: &mut usize,
) -> Result<String, Unschedulable> {
    let total = cluster.nodes.len();
    if let Some(problem) = cluster.storage.problem() {
        return Err(Unschedulable {
            rejects: Vec::new(),
            nodes: total,
            problem: Some(problem.to_owned()),
        });
    }
    let filters = Filters::new(pod, cluster, labels);
    let wanted = enough(total);
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let mut rejects = Vec::new();
    let mut looked_at = 0;
    for offset in 0..total {
        let node = &cluster.nodes[(*start + offset) % total];
        looked_at += 1;
        match check(pod, node, cluster, &filters) {
            None => feasible.push(node),
            Some(reject) => rejects.push((node.name.clone(), reject)),
        }
        if feasible.len() >= wanted {
            break;
        }
    }
    *start = (*start + looked_at) % total.max(1);
    match feasible.as_slice() {
        [] => Err(Unschedulable {
            rejects,
            nodes: total,
            problem: None,
        }),
        [only] => Ok(only.name.clone()),
        several => {
            let scores = scores(pod, several, cluster, labels, spread_defaults);
            Ok(several[best(&scores)].name.clone())
        }
    }
}

/// The filters, also with the pods in place that were promised room on the node.
pub fn check(
    pod: &PodInfo,
    node: &NodeInfo,
    cluster: &Cluster,
    filters: &Filters,
) -> Option<Reject> {
    let promised: Vec<_> = cluster
        .promises
        .on(&node.name)
        .filter(|other| other.priority >= pod.priority && other.uid != pod.uid)
        .collect();
    if promised.is_empty() {
        return filters.check(pod, node);
    }
    let mut crowded = node.clone();
    for other in promised {
        crowded.add(other.clone());
    }
    filters
        .check(pod, &crowded)
        .or_else(|| filters.check(pod, node))
}

/// How many fitting nodes are enough: all of a hundred, then a falling share, at least 5 %.
fn enough(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE {
        return nodes.max(1);
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(MIN_FEASIBLE)
}

/// Index of the highest score; of equals any, with the same chance.
fn best(scores: &[i64]) -> usize {
    let mut chosen = 0;
    let mut equals = 1;
    for (index, score) in scores.iter().enumerate().skip(1) {
        match score.cmp(&scores[chosen]) {
            std::cmp::Ordering::Greater => {
                chosen = index;
                equals = 1;
            }
            std::cmp::Ordering::Equal => {
                equals += 1;
                if rand::rng().random_range(0..equals) == 0 {
                    chosen = index;
                }
            }
            std::cmp::Ordering::Less => {}
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cluster::tests::{asking, node, pod};
    use serde_json::json;

    #[test]
    fn the_search_is_cut_short_in_large_clusters() {
        // Source: documentation of percentageOfNodesToScore.
        for (nodes, want) in [
            (0, 1),
            (50, 50),
            (100, 100),
            (1000, 420),
            (5000, 500),
            (6000, 300),
        ] {
            assert_eq!(enough(nodes), want, "{nodes} nodes");
        }
    }

    #[test]
    fn the_emptier_node_wins_and_objections_are_counted() {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            cluster.set_node(node(name, json!({}), json!({})));
        }
        let taint = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
        cluster.set_node(node("tainted", json!({}), taint));
        cluster.set_pod(asking("held", "2", "1Gi"), "a");
        let attempt = |cluster: &Cluster, pod: &PodInfo| {
            schedule(pod, cluster, &|_| None, None, &mut 0).map_err(|error| error.message())
        };
        let got = attempt(&cluster, &asking("p", "1", "1Gi"));
        assert_eq!(got, Ok("b".to_owned()));
        let got = attempt(&cluster, &asking("p", "5", "1Gi"));
        let words = "0/3 nodes are available: 1 node(s) had untolerated taint(s), \
                     2 Insufficient cpu.";
        assert_eq!(got, Err(words.to_owned()));
        let got = attempt(&Cluster::default(), &pod("p", json!({}), json!({})));
        assert_eq!(got, Err("no nodes available to schedule pods".to_owned()));
    }

    #[test]
    fn promised_room_is_kept_for_pods_that_matter_as_much() {
        let mut cluster = Cluster::default();
        cluster.set_node(node("a", json!({}), json!({})));
        let promised = asking("promised", "3", "1Gi");
        cluster.promises.make(&promised, "a");
        let attempt = |pod: &PodInfo| schedule(pod, &cluster, &|_| None, None, &mut 0).is_ok();
        assert!(!attempt(&asking("p", "2", "1Gi")));
        assert!(attempt(&asking("p", "1", "1Gi")));
        assert!(attempt(&promised));
    }
}
