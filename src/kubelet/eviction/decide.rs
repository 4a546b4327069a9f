//! Which thresholds are met, and what follows for the node's conditions. Pure: no clock, no I/O.

use std::{collections::BTreeMap, time::Instant};

use super::threshold::{Condition, Settings, Signal, Threshold};

/// How much there is of something, of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub available: u64,
    pub capacity: u64,
}

/// What could not be observed is not there, and meets no threshold.
pub type Observations = BTreeMap<Signal, Observed>;

/// What the node's conditions say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

impl Pressures {
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// What the last looks have shown.
#[derive(Debug, Default)]
pub struct State {
    /// Met and not yet resolved, since when.
    met: Vec<(Threshold, Instant)>,
    /// When each condition was seen last.
    seen: [Option<Instant>; 3],
}

#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub pressures: Pressures,
    /// Met for as long as they must be: something has to go. The most urgent first.
    pub due: Vec<Threshold>,
}

impl State {
    pub fn observe(
        &mut self,
        settings: &Settings,
        observations: &Observations,
        now: Instant,
    ) -> Decision {
        let before = std::mem::take(&mut self.met);
        let since = |threshold: &Threshold| {
            let known = before.iter().find(|(one, _)| one == threshold);
            known.map(|(_, since)| *since)
        };
        self.met = settings
            .thresholds
            .iter()
            .filter_map(|threshold| {
                let since = since(threshold);
                let reclaim = match since {
                    Some(_) => Reclaim::AndMore,
                    None => Reclaim::Enough,
                };
                is_met(threshold, observations, reclaim).then(|| (*threshold, since.unwrap_or(now)))
            })
            .collect();
        for (threshold, _) in &self.met {
            self.seen[index(threshold.signal.condition())] = Some(now);
        }
        let holds = |condition: Condition| {
            self.seen[index(condition)]
                .is_some_and(|seen| seen == now || now.duration_since(seen) < settings.transition)
        };
        let mut due: Vec<Threshold> = self
            .met
            .iter()
            .filter(|(threshold, since)| {
                now.duration_since(*since) >= threshold.grace.unwrap_or_default()
            })
            .map(|(threshold, _)| *threshold)
            .collect();
        // Memory cannot wait; the rest as it was configured.
        due.sort_by_key(|threshold| threshold.signal.condition() != Condition::Memory);
        Decision {
            pressures: Pressures {
                memory: holds(Condition::Memory),
                disk: holds(Condition::Disk),
                pid: holds(Condition::Pid),
            },
            due,
        }
    }
}

/// Whether every threshold has what it needs, the minimum to reclaim included.
pub fn is_relieved(settings: &Settings, observations: &Observations) -> bool {
    !settings
        .thresholds
        .iter()
        .any(|threshold| is_met(threshold, observations, Reclaim::AndMore))
}

/// How much must be there for a threshold not to be met.
#[derive(Clone, Copy)]
enum Reclaim {
    Enough,
    AndMore,
}

fn is_met(threshold: &Threshold, observations: &Observations, reclaim: Reclaim) -> bool {
    let Some(observed) = observations.get(&threshold.signal) else {
        return false;
    };
    let more = match reclaim {
        Reclaim::Enough => None,
        Reclaim::AndMore => threshold.reclaim,
    };
    let more = more.map_or(0, |amount| amount.of(observed.capacity));
    let needed = threshold.amount.of(observed.capacity).saturating_add(more);
    observed.available < needed
}

fn index(condition: Condition) -> usize {
    match condition {
        Condition::Memory => 0,
        Condition::Disk => 1,
        Condition::Pid => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kubelet::settings::TypedThresholds;

    fn settings(typed: TypedThresholds<'_>) -> Settings {
        Settings {
            thresholds: typed.parse().unwrap(),
            ..Settings::default()
        }
    }

    fn seen(signal: Signal, available: u64) -> Observations {
        let observed = Observed {
            available,
            capacity: 1000,
        };
        [(signal, observed)].into()
    }

    #[test]
    fn what_is_pressure() {
        let settings = settings(TypedThresholds {
            hard: Some(
                "memory.available<100,nodefs.available<10%,imagefs.inodesFree<5%,pid.available<5%",
            ),
            ..TypedThresholds::default()
        });
        let (memory, disk, pid) = ("memory", "disk", "pid");
        for (signal, available, want) in [
            (Signal::Memory, 100, ""),
            (Signal::Memory, 99, memory),
            (Signal::AllocatableMemory, 99, memory),
            (Signal::NodefsBytes, 100, ""),
            (Signal::NodefsBytes, 99, disk),
            (Signal::NodefsInodes, 0, ""), // no threshold
            (Signal::ImagefsInodes, 49, disk),
            (Signal::Pids, 49, pid),
        ] {
            let observations = seen(signal, available);
            let decision = State::default().observe(&settings, &observations, Instant::now());
            let Pressures {
                memory: m,
                disk: d,
                pid: p,
            } = decision.pressures;
            let shown: String = [(m, memory), (d, disk), (p, pid)]
                .iter()
                .filter(|(holds, _)| *holds)
                .map(|(_, name)| *name)
                .collect();
            assert_eq!(shown, want, "{signal:?} {available}");
            assert_eq!(decision.due.is_empty(), want.is_empty());
        }
        let nothing = State::default().observe(&settings, &Observations::new(), Instant::now());
        assert!(!nothing.pressures.any());
    }

    #[test]
    fn it_comes_at_once_and_goes_after_the_transition() {
        let settings = settings(TypedThresholds::default());
        let mut state = State::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let short = seen(Signal::NodefsBytes, 1);
        let fine = seen(Signal::NodefsBytes, 500);
        assert!(state.observe(&settings, &short, start).pressures.disk);
        let later = state.observe(&settings, &fine, after(299));
        assert!(later.pressures.disk && later.due.is_empty());
        assert!(!state.observe(&settings, &fine, after(300)).pressures.disk);
    }

    #[test]
    fn soft_thresholds_wait_and_start_anew() {
        let settings = settings(TypedThresholds {
            hard: Some("nodefs.available<10%"),
            soft: "nodefs.available<20%",
            soft_grace: "nodefs.available=60s",
            ..TypedThresholds::default()
        });
        let mut state = State::default();
        let start = Instant::now();
        for (seconds, available, due) in [
            (0, 150, 0),
            (59, 150, 0),
            (60, 150, 1),
            (61, 250, 0), // it is over
            (62, 150, 0), // and begins again
            (63, 50, 1),  // the hard one does not wait
            (130, 50, 2),
        ] {
            let now = start + Duration::from_secs(seconds);
            let decision = state.observe(&settings, &seen(Signal::NodefsBytes, available), now);
            assert_eq!(decision.due.len(), due, "after {seconds} s");
        }
    }

    #[test]
    fn a_minimum_to_reclaim_keeps_it_going() {
        let settings = settings(TypedThresholds {
            hard: Some("nodefs.available<10%"),
            minimum_reclaim: "nodefs.available=10%",
            ..TypedThresholds::default()
        });
        let mut state = State::default();
        let now = Instant::now();
        for (available, due) in [(150, 0), (99, 1), (150, 1), (199, 1), (200, 0), (150, 0)] {
            let observations = seen(Signal::NodefsBytes, available);
            let decision = state.observe(&settings, &observations, now);
            assert_eq!(decision.due.len(), due, "{available}");
        }
        assert!(!is_relieved(&settings, &seen(Signal::NodefsBytes, 199)));
        assert!(is_relieved(&settings, &seen(Signal::NodefsBytes, 200)));
    }

    #[test]
    fn memory_goes_first() {
        let settings = settings(TypedThresholds {
            hard: Some("nodefs.available<10%,memory.available<10%"),
            ..TypedThresholds::default()
        });
        let mut observations = seen(Signal::NodefsBytes, 0);
        observations.extend(seen(Signal::Memory, 0));
        let decision = State::default().observe(&settings, &observations, Instant::now());
        assert_eq!(decision.due[0].signal, Signal::Memory);
    }
}
