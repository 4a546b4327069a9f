//! How often probes have succeeded and failed, and how long they took: `/metrics/probes`.
//!
//! Always true: what is counted of a pod goes with its probes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Kind, Target};
use crate::exposition::{Histogram, Kind as Family, Labels, Page};

/// Upper bounds of the histogram in seconds: those that Prometheus' clients have by themselves.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Which probe of which container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    kind: Kind,
}

impl Of {
    pub fn new(target: &Target, kind: Kind) -> Self {
        let metadata = &target.pod.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            pod: metadata.name.clone().unwrap_or_default(),
            uid: target.uid().to_owned(),
            container: target.container.clone(),
            kind,
        }
    }

    fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    successful: u64,
    failed: u64,
    took: Histogram<{ BUCKETS.len() }>,
}

/// Of one pod: at most three for each of its containers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tallies(Arc<Mutex<BTreeMap<Of, Tally>>>);

impl Tallies {
    pub fn count(&self, of: Of, good: bool, took: Duration) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = tallies.entry(of).or_default();
        match good {
            true => tally.successful += 1,
            false => tally.failed += 1,
        }
        tally.took.observe(&BUCKETS, took);
    }

    pub fn read(&self) -> BTreeMap<Of, Tally> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

pub fn write(page: &mut Page, all: &[(Of, Tally)]) {
    let totals = all.iter().flat_map(|(of, tally)| {
        let results = [("failed", tally.failed), ("successful", tally.successful)];
        let seen = results.into_iter().filter(|(_, count)| *count > 0);
        seen.map(move |(result, count)| {
            let labels = Labels::of(&[
                ("container", &of.container),
                ("namespace", &of.namespace),
                ("pod", &of.pod),
                ("pod_uid", &of.uid),
                ("probe_type", of.kind()),
                ("result", result),
            ]);
            (labels, count as f64)
        })
    });
    page.family(
        "prober_probe_total",
        Family::Counter,
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
        totals,
    );
    // Without the UID, as in the original; of two pods of one name only the newer would be looked for.
    let mut by_name: BTreeMap<Labels, Histogram<{ BUCKETS.len() }>> = BTreeMap::new();
    for (of, tally) in all {
        let labels = Labels::of(&[
            ("container", &of.container),
            ("namespace", &of.namespace),
            ("pod", &of.pod),
            ("probe_type", of.kind()),
        ]);
        by_name.insert(labels, tally.took.clone());
    }
    page.histograms(
        "prober_probe_duration_seconds",
        "[ALPHA] Duration in seconds for a probe response.",
        &BUCKETS,
        by_name,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_by_result() {
        let of = |kind| Of {
            namespace: "n".into(),
            pod: "p".into(),
            uid: "u".into(),
            container: "c".into(),
            kind,
        };
        let tallies = Tallies::default();
        for (kind, good) in [
            (Kind::Liveness, true),
            (Kind::Liveness, true),
            (Kind::Liveness, false),
            (Kind::Startup, false),
        ] {
            tallies.count(of(kind), good, Duration::from_millis(30));
        }
        let mut page = Page::new();
        write(&mut page, &tallies.read().into_iter().collect::<Vec<_>>());
        let text = page.into_text();
        let labels = "container=\"c\",namespace=\"n\",pod=\"p\"";
        for (kind, result, count) in [
            ("Liveness", "successful", 2),
            ("Liveness", "failed", 1),
            ("Startup", "failed", 1),
        ] {
            let line = format!(
                "prober_probe_total{{{labels},pod_uid=\"u\",probe_type=\"{kind}\",result=\"{result}\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        let line = format!(
            "prober_probe_duration_seconds_bucket{{{labels},probe_type=\"Liveness\",le=\"0.05\"}} 3\n"
        );
        assert!(text.contains(&line), "{line} in\n{text}");
        assert!(!text.contains("Readiness"), "{text}");
    }
}
