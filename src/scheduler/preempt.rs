//! Which pods of lower priority must leave so that a pod finds room. Pure.
//!
//! Source: documentation of pod priority and preemption; of several nodes the one is chosen where
//! the least important, then the fewest, then the youngest pods must go.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::jiff::Timestamp;

use super::{
    cluster::Cluster,
    cycle::{Unschedulable, check},
    plugins::{Filters, NamespaceLabels},
    pod::PodInfo,
};

#[derive(Clone, Debug)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

/// At most a tenth of the nodes are tried, but always a hundred.
const MIN_CANDIDATES: usize = 100;

/// Why there is nobody to preempt, with the message that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pod may not, or not now: what it was promised still holds.
    NotEligible(String),
    NoVictims(String),
}

impl Refusal {
    pub fn message(&self) -> &str {
        match self {
            Self::NotEligible(why) | Self::NoVictims(why) => why,
        }
    }
}

/// The node and its victims, or why there are none.
///
/// `cluster` is changed while nodes are tried and is as before afterwards.
pub fn preempt(
    pod: &PodInfo,
    cluster: &mut Cluster,
    failed: &Unschedulable,
    labels: NamespaceLabels,
) -> Result<Preemption, Refusal> {
    let ineligible = |why: &str| Err(Refusal::NotEligible(why.to_owned()));
    let never = pod
        .spec()
        .is_some_and(|spec| spec.preemption_policy.as_deref() == Some("Never"));
    if never {
        return ineligible("not eligible due to preemptionPolicy=Never.");
    }
    if waits_for_victims(pod, cluster) {
        return ineligible("not eligible due to a terminating pod on the nominated node.");
    }
    let helpful: Vec<&str> = failed
        .rejects
        .iter()
        .filter(|(_, reject)| reject.preemption_helps)
        .map(|(name, _)| name.as_str())
        .collect();
    let limit = (failed.nodes / 10).max(MIN_CANDIDATES);
    let candidates: Vec<Preemption> = helpful
        .iter()
        .filter_map(|node| victims(pod, cluster, node, labels))
        .take(limit)
        .collect();
    candidates
        .into_iter()
        .min_by_key(rank)
        .ok_or_else(|| Refusal::NoVictims(words(failed.nodes, helpful.len())))
}

/// Victims of an earlier preemption are still leaving.
fn waits_for_victims(pod: &PodInfo, cluster: &Cluster) -> bool {
    let Some(node) = cluster.promises.of(&pod.uid) else {
        return false;
    };
    cluster.node(node).is_some_and(|node| {
        node.pods
            .values()
            .any(|other| other.is_terminating() && other.priority < pod.priority)
    })
}

/// Removes all that may go, then takes back the most important ones that can stay.
fn victims(
    pod: &PodInfo,
    cluster: &mut Cluster,
    node: &str,
    labels: NamespaceLabels,
) -> Option<Preemption> {
    let mut lower: Vec<Arc<PodInfo>> = cluster
        .node(node)?
        .pods
        .values()
        .filter(|other| other.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    lower.sort_by_key(|other| (Reverse(other.priority), started(other)));
    let assumed: Vec<bool> = lower
        .iter()
        .map(|other| cluster.is_assumed(&other.uid))
        .collect();
    for other in &lower {
        cluster.remove_pod(&other.uid);
    }
    let fits = |cluster: &Cluster| {
        let filters = Filters::new(pod, cluster, labels);
        cluster
            .node(node)
            .is_some_and(|info| check(pod, info, cluster, &filters).is_none())
    };
    let possible = fits(cluster);
    let mut victims = Vec::new();
    if possible {
        for other in &lower {
            cluster.set_pod(other.clone(), node);
            if !fits(cluster) {
                cluster.remove_pod(&other.uid);
                victims.push(other.clone());
            }
        }
    }
    for (other, assumed) in lower.iter().zip(assumed) {
        if assumed {
            cluster.assume(other.clone(), node);
        } else {
            cluster.set_pod(other.clone(), node);
        }
    }
    (possible && !victims.is_empty()).then(|| Preemption {
        node: node.to_owned(),
        victims,
    })
}

/// The lowest is the best.
fn rank(candidate: &Preemption) -> (i32, i64, usize, Reverse<Option<Timestamp>>) {
    let top = candidate.victims.iter().map(|pod| pod.priority).max();
    let top = top.unwrap_or(i32::MIN);
    let sum = candidate
        .victims
        .iter()
        .map(|pod| i64::from(pod.priority) - i64::from(i32::MIN))
        .sum();
    let earliest = candidate
        .victims
        .iter()
        .filter(|pod| pod.priority == top)
        .filter_map(|pod| started(pod))
        .min();
    (top, sum, candidate.victims.len(), Reverse(earliest))
}

fn started(pod: &PodInfo) -> Option<Timestamp> {
    pod.pod
        .status
        .as_ref()?
        .start_time
        .as_ref()
        .map(|time| time.0)
}

fn words(nodes: usize, helpful: usize) -> String {
    let mut reasons = Vec::new();
    if helpful > 0 {
        reasons.push(format!(
            "{helpful} No preemption victims found for incoming pod"
        ));
    }
    if nodes > helpful {
        let count = nodes - helpful;
        reasons.push(format!("{count} Preemption is not helpful for scheduling"));
    }
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{
        cluster::tests::{node, pod},
        cycle::schedule,
    };
    use serde_json::json;

    fn asking(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
        let spec = json!({"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        pod(name, json!({}), spec)
    }

    fn attempt(cluster: &mut Cluster, pod: &PodInfo) -> Result<(String, Vec<String>), String> {
        let failed = schedule(pod, cluster, &|_| None, None, &mut 0).expect_err("no room");
        preempt(pod, cluster, &failed, &|_| None)
            .map(|preemption| {
                let victims = preemption.victims.iter();
                let names = victims.map(|victim| victim.key.name.clone());
                (preemption.node, names.collect())
            })
            .map_err(|refusal| refusal.message().to_owned())
    }

    #[test]
    fn the_least_important_goes() {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            cluster.set_node(node(name, json!({}), json!({})));
        }
        for (name, cpu, priority, node) in [
            ("small", "1", 1, "a"),
            ("mid", "3", 5, "a"),
            ("low", "2", 2, "b"),
            ("lower", "2", 1, "b"),
        ] {
            cluster.set_pod(asking(name, cpu, priority), node);
        }
        let got = attempt(&mut cluster, &asking("p", "2", 10));
        assert_eq!(got, Ok(("b".into(), vec!["lower".into()])));
        let got = attempt(&mut cluster, &asking("p", "1", 10));
        assert_eq!(got.map(|(_, victims)| victims.len()), Ok(1));
        let got = attempt(&mut cluster, &asking("p", "4", 2));
        let none = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
        assert_eq!(got, Err(none.into()));
        let got = attempt(&mut cluster, &asking("p", "5", 10));
        let none = "0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(got, Err(none.into()));
        let cpu = |name: &str| cluster.node(name).expect("known").requested.milli_cpu;
        assert_eq!((cpu("a"), cpu("b")), (4000, 4000), "all is as before");
    }
}
