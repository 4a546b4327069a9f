//! Prefers nodes that hold the pod's images already, the more so the larger and the commoner.

use crate::scheduler::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

const MIB: i64 = 1024 * 1024;
/// Below this an image is pulled sooner than it is worth moving for.
const LOWEST: i64 = 23 * MIB;
/// Above this a larger image makes no difference, for each container.
const HIGHEST: i64 = 1000 * MIB;

pub fn scores(pod: &PodInfo, nodes: &[&NodeInfo], cluster: &Cluster) -> Vec<i64> {
    let names: Vec<String> = pod
        .spec()
        .into_iter()
        .flat_map(|spec| {
            spec.init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
        })
        .filter_map(|container| container.image.as_deref().map(normalized))
        .collect();
    let count = i64::try_from(names.len()).unwrap_or(i64::MAX).max(1);
    let total = i64::try_from(cluster.nodes.len())
        .unwrap_or(i64::MAX)
        .max(1);
    // A node alone is not worth the reckoning: all get the same.
    if nodes.len() < 2 {
        return vec![0; nodes.len()];
    }
    let spread: Vec<i64> = names
        .iter()
        .map(|name| {
            let holders = cluster
                .nodes
                .iter()
                .filter(|node| node.images.contains_key(name));
            i64::try_from(holders.count()).unwrap_or(i64::MAX)
        })
        .collect();
    nodes
        .iter()
        .map(|node| {
            let sum: i64 = names
                .iter()
                .zip(&spread)
                .filter_map(|(name, holders)| Some(node.images.get(name)? * holders / total))
                .sum();
            score(sum, count)
        })
        .collect()
}

fn score(bytes: i64, containers: i64) -> i64 {
    let highest = HIGHEST * containers;
    let clamped = bytes.clamp(LOWEST, highest);
    100 * (clamped - LOWEST) / (highest - LOWEST)
}

/// A name without a tag or digest means `latest`.
fn normalized(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_between_the_thresholds() {
        // Source: the ImageLocality plugin's documented thresholds.
        for (bytes, containers, want) in [
            (0, 1, 0),
            (23 * MIB, 1, 0),
            (1000 * MIB, 1, 100),
            (5000 * MIB, 1, 100),
            (1000 * MIB, 2, 49),
        ] {
            assert_eq!(score(bytes, containers), want, "{bytes} in {containers}");
        }
        assert_eq!(normalized("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(normalized("a@sha256:0"), "a@sha256:0");
    }
}
