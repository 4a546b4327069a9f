//! Requests against what a node has left; the emptier node is the better one.

use std::borrow::Cow;

use super::{Plugins, Reject};
use crate::scheduler::{cluster::NodeInfo, pod::PodInfo};

pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    // Not even an empty node would do.
    let mut hopeless = false;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) + 1 > node.max_pods {
        reasons.push("Too many pods".into());
        hopeless |= node.max_pods < 1;
    }
    let (need, have, used) = (&pod.requests.needed, &node.allocatable, &node.requested);
    let mut check = |name: &str, need: i64, have: i64, used: i64| {
        if need > 0 && need > have - used {
            reasons.push(format!("Insufficient {name}").into());
            hopeless |= need > have;
        }
    };
    check("cpu", need.milli_cpu, have.milli_cpu, used.milli_cpu);
    check("memory", need.memory, have.memory, used.memory);
    check(
        "ephemeral-storage",
        need.ephemeral,
        have.ephemeral,
        used.ephemeral,
    );
    for (name, need) in &need.extended {
        let of =
            |map: &std::collections::BTreeMap<String, i64>| map.get(name).copied().unwrap_or(0);
        check(name, *need, of(&have.extended), of(&used.extended));
    }
    (!reasons.is_empty()).then_some(Reject {
        plugin: Plugins::FIT,
        reasons,
        preemption_helps: !hopeless,
    })
}

/// LeastAllocated over CPU and memory, of equal weight.
pub fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let cpu = node.scored_milli_cpu + pod.requests.scored_milli_cpu;
    let memory = node.scored_memory + pod.requests.scored_memory;
    let mut sum = 0;
    let mut weights = 0;
    for (used, have) in [
        (cpu, node.allocatable.milli_cpu),
        (memory, node.allocatable.memory),
    ] {
        if have > 0 {
            sum += free_share(used, have);
            weights += 1;
        }
    }
    if weights == 0 { 0 } else { sum / weights }
}

fn free_share(used: i64, have: i64) -> i64 {
    if used > have {
        return 0;
    }
    (have - used) * 100 / have
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{
        cluster::{
            Cluster,
            tests::{asking, node},
        },
        plugins::balanced,
    };
    use serde_json::json;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        cluster.set_node(node("n", json!({}), json!({})));
        cluster
    }

    #[test]
    fn scores_of_a_node_with_four_cpus_and_eight_gib() {
        // Source: the scheduler's published formulas, worked: free (3/4 + 4/8)/2 = 62;
        // fractions 0.25 and 0.5 differ by 0.25, half of that is the deviation, 87.
        let cluster = cluster();
        let node = cluster.node("n").expect("known");
        let pod = asking("p", "1", "4Gi");
        assert_eq!(score(&pod, node), 62);
        assert_eq!(balanced::score(&pod, node), 87);
    }

    #[test]
    fn every_lack_is_named() {
        let mut cluster = cluster();
        cluster.set_pod(asking("a", "3", "1Gi"), "n");
        let node = cluster.node("n").expect("known");
        assert_eq!(filter(&asking("p", "1", "7Gi"), node), None);
        let reject = filter(&asking("p", "2", "8Gi"), node).expect("rejected");
        assert_eq!(reject.reasons, ["Insufficient cpu", "Insufficient memory"]);
        assert!(reject.preemption_helps);
        let reject = filter(&asking("p", "5", "1Gi"), node).expect("rejected");
        assert!(!reject.preemption_helps, "more than the node has");
    }
}
