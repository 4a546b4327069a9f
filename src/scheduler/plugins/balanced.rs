//! Prefers nodes whose CPU and memory would be used to a like degree.

use crate::scheduler::{cluster::NodeInfo, pod::PodInfo};

/// (1 - deviation of the fractions) x 100; of two fractions the deviation is half their distance.
pub fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    if pod.requests.is_best_effort() {
        return 0;
    }
    let needed = &pod.requests.needed;
    let cpu = fraction(
        node.requested.milli_cpu + needed.milli_cpu,
        node.allocatable.milli_cpu,
    );
    let memory = fraction(
        node.requested.memory + needed.memory,
        node.allocatable.memory,
    );
    let deviation = match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
        _ => 0.0,
    };
    percent(1.0 - deviation)
}

#[allow(clippy::cast_precision_loss)] // amounts of one node are far below 2^53
fn fraction(used: i64, have: i64) -> Option<f64> {
    (have > 0).then(|| (used as f64 / have as f64).min(1.0))
}

#[allow(clippy::cast_possible_truncation)] // between 0 and 100
fn percent(share: f64) -> i64 {
    (share * 100.0) as i64
}
