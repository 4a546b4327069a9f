//! The daemon's place among those whom the kernel may kill when memory ends.

/// As the kubelet has it: only what cannot run out of memory at all is spared more.
const SCORE: &str = "-999";

/// Has the kernel kill others first. Pods have scores of their own, which do not follow from this.
pub fn be_spared() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", SCORE) {
        // A privilege that not every host gives. Pods' scores are above ours all the same.
        tracing::debug!(%error, "the daemon's out-of-memory score stays as it is");
    }
}
