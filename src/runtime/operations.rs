//! How often the runtime did what, how long that took, and how often it failed.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::Error;
use crate::exposition::{Histogram, Kind, Labels, Page};

/// Upper bounds of the histogram in seconds: those that Prometheus' clients have by themselves.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Attach,
    Exec,
    RemoveContainer,
    RemovePod,
    RunPod,
    StartContainer,
    StopContainer,
    UpdateContainer,
}

const ALL: [Operation; 8] = [
    Operation::Attach,
    Operation::Exec,
    Operation::RemoveContainer,
    Operation::RemovePod,
    Operation::RunPod,
    Operation::StartContainer,
    Operation::StopContainer,
    Operation::UpdateContainer,
];

impl Operation {
    /// As it is called where runtimes are spoken to by CRI.
    fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Exec => "exec",
            Self::RemoveContainer => "remove_container",
            Self::RemovePod => "remove_podsandbox",
            Self::RunPod => "run_podsandbox",
            Self::StartContainer => "start_container",
            Self::StopContainer => "stop_container",
            Self::UpdateContainer => "update_container",
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Tally {
    done: u64,
    failed: u64,
    took: Histogram<{ BUCKETS.len() }>,
}

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Operations(Arc<Mutex<[Tally; ALL.len()]>>);

impl Operations {
    /// Does it, and counts it; one that is given up in the middle is not counted.
    pub async fn count<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let done = work.await;
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = &mut tallies[operation as usize];
        tally.done += 1;
        tally.failed += u64::from(done.is_err());
        tally.took.observe(&BUCKETS, begun.elapsed());
        done
    }

    /// Of what was done or tried at all.
    pub fn write(&self, page: &mut Page) {
        let tallies = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let seen: Vec<(Labels, Tally)> = ALL
            .into_iter()
            .zip(tallies)
            .filter(|(_, tally)| tally.done > 0)
            .map(|(operation, tally)| {
                let labels = Labels::of(&[("operation_type", operation.name())]);
                (labels, tally)
            })
            .collect();
        page.family(
            "kubelet_runtime_operations_total",
            Kind::Counter,
            "[ALPHA] Cumulative number of runtime operations by operation type.",
            seen.iter()
                .map(|(labels, tally)| (labels.clone(), tally.done as f64)),
        );
        page.family(
            "kubelet_runtime_operations_errors_total",
            Kind::Counter,
            "[ALPHA] Cumulative number of runtime operation errors by operation type.",
            seen.iter()
                .filter(|(_, tally)| tally.failed > 0)
                .map(|(labels, tally)| (labels.clone(), tally.failed as f64)),
        );
        page.histograms(
            "kubelet_runtime_operations_duration_seconds",
            "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.",
            &BUCKETS,
            seen.into_iter().map(|(labels, tally)| (labels, tally.took)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_are_counted_and_what_was_never_done_is_left_out() {
        assert!(
            ALL.iter()
                .enumerate()
                .all(|(at, operation)| at == *operation as usize)
        );
        let operations = Operations::default();
        let good = operations.count(Operation::RunPod, async { Ok(1) }).await;
        assert_eq!(good.ok(), Some(1));
        let bad = async { Err::<(), _>(Error::NoPod("u".into())) };
        assert!(operations.count(Operation::RunPod, bad).await.is_err());
        let mut page = Page::new();
        operations.write(&mut page);
        let text = page.into_text();
        for line in [
            "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 2\n",
            "kubelet_runtime_operations_errors_total{operation_type=\"run_podsandbox\"} 1\n",
            "kubelet_runtime_operations_duration_seconds_count{operation_type=\"run_podsandbox\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("exec"), "{text}");
    }
}
