//! Pods that wait for a node: ready to try, backing off, or unschedulable until something changes.
//!
//! Owned by the scheduling loop alone, so that no wake-up can fall between an attempt and its
//! result. Pure apart from the times handed in.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{plugins::Plugins, pod::PodInfo};
use crate::informer::Key;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod is tried again after this long even if nothing seemed to help it.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    /// Order of arrival among pods of the same priority.
    order: u64,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With the priority it was ranked by: that of the pod may change later.
    Active {
        priority: i32,
    },
    /// Being tried, or bound in the background.
    InFlight,
    Backoff {
        until: Instant,
    },
    Unschedulable {
        backoff: Instant,
        until: Instant,
        rejected_by: Plugins,
    },
}

#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Key, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, Key)>,
    /// Of pods that back off or are unschedulable.
    deadlines: BTreeSet<(Instant, Key)>,
    /// Those that an event may wake.
    unschedulable: HashSet<Key>,
    arrivals: u64,
}

impl Queue {
    /// Adds a pod, or takes over its new version; a change of what matters makes it active again.
    pub fn add(&mut self, pod: Arc<PodInfo>, matters: bool) {
        let key = pod.key.clone();
        if let Some(entry) = self.entries.get_mut(&key) {
            let same_priority = entry.pod.priority == pod.priority;
            entry.pod = pod;
            let move_up = match entry.place {
                Place::Active { .. } => !same_priority,
                Place::InFlight => false,
                Place::Backoff { .. } | Place::Unschedulable { .. } => matters,
            };
            if move_up {
                self.activate(&key);
            }
            return;
        }
        self.arrivals += 1;
        let entry = Entry {
            pod,
            order: self.arrivals,
            attempts: 0,
            place: Place::InFlight,
        };
        self.entries.insert(key.clone(), entry);
        self.activate(&key);
    }

    pub fn remove(&mut self, key: &Key) {
        if self.entries.contains_key(key) {
            self.place(key, Place::InFlight);
            self.entries.remove(key);
        }
    }

    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys().cloned().collect()
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// The most urgent pod, now in flight.
    pub fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let (.., key) = self.active.first()?.clone();
        self.place(&key, Place::InFlight);
        let entry = self.entries.get_mut(&key)?;
        entry.attempts += 1;
        Some(entry.pod.clone())
    }

    /// Puts a pod in flight aside until one of the plugins that rejected it may change its mind.
    pub fn unschedulable(&mut self, key: &Key, rejected_by: Plugins, now: Instant) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        let place = Place::Unschedulable {
            backoff: now + backoff(entry.attempts),
            until: now + PATIENCE,
            rejected_by,
        };
        self.place(key, place);
    }

    /// Puts a pod in flight aside after an error that has nothing to do with the cluster.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get(key) {
            let until = now + backoff(entry.attempts);
            self.place(key, Place::Backoff { until });
        }
    }

    /// Something happened that pods rejected by any of `plugins` may profit from.
    pub fn wake(&mut self, plugins: Plugins, now: Instant) {
        let woken: Vec<(Key, Instant)> = self
            .unschedulable
            .iter()
            .filter_map(|key| match self.entries.get(key)?.place {
                Place::Unschedulable {
                    backoff,
                    rejected_by,
                    ..
                } if rejected_by.intersects(plugins) => Some((key.clone(), backoff)),
                _ => None,
            })
            .collect();
        for (key, until) in woken {
            if until <= now {
                self.activate(&key);
            } else {
                self.place(&key, Place::Backoff { until });
            }
        }
    }

    /// When [`Queue::promote`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Makes pods active whose time has come.
    pub fn promote(&mut self, now: Instant) {
        while let Some((deadline, key)) = self.deadlines.first().cloned() {
            if deadline > now {
                return;
            }
            self.activate(&key);
        }
    }

    fn activate(&mut self, key: &Key) {
        if let Some(priority) = self.entries.get(key).map(|entry| entry.pod.priority) {
            self.place(key, Place::Active { priority });
        }
    }

    /// The only place where an entry changes places.
    fn place(&mut self, key: &Key, place: Place) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if let Place::Active { priority } = entry.place {
            self.active
                .remove(&(Reverse(priority), entry.order, key.clone()));
        }
        if let Some(deadline) = deadline(entry.place) {
            self.deadlines.remove(&(deadline, key.clone()));
        }
        self.unschedulable.remove(key);
        entry.place = place;
        if let Place::Active { priority } = place {
            self.active
                .insert((Reverse(priority), entry.order, key.clone()));
        }
        if let Some(deadline) = deadline(place) {
            self.deadlines.insert((deadline, key.clone()));
        }
        if matches!(place, Place::Unschedulable { .. }) {
            self.unschedulable.insert(key.clone());
        }
    }
}

fn deadline(place: Place) -> Option<Instant> {
    match place {
        Place::Active { .. } | Place::InFlight => None,
        Place::Backoff { until } | Place::Unschedulable { until, .. } => Some(until),
    }
}

/// Wait after the given number of attempts.
fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(LAST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cluster::tests::pod;
    use serde_json::json;

    #[test]
    fn waits_double_up_to_ten_seconds() {
        for (attempts, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10)] {
            assert_eq!(backoff(attempts), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn order_is_priority_then_arrival() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            queue.add(pod(name, json!({}), json!({"priority": priority})), true);
        }
        let order: Vec<String> = std::iter::from_fn(|| queue.pop())
            .map(|pod| pod.key.name.clone())
            .collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn only_what_helps_wakes_and_back_off_is_kept() {
        let mut queue = Queue::default();
        let one = pod("a", json!({}), json!({}));
        queue.add(one.clone(), true);
        queue.pop();
        let now = Instant::now();
        queue.unschedulable(&one.key, Plugins::FIT, now);
        queue.wake(Plugins::TAINTS, now + Duration::from_secs(2));
        assert!(!queue.has_active());
        queue.wake(Plugins::FIT, now);
        assert!(!queue.has_active(), "its second of back-off is not over");
        queue.promote(now + Duration::from_secs(1));
        assert!(queue.has_active());
        queue.pop();
        queue.unschedulable(&one.key, Plugins::FIT, now);
        queue.add(one.clone(), false);
        assert!(!queue.has_active(), "its own status does not wake it");
        queue.add(one.clone(), true);
        assert!(queue.has_active());
        queue.remove(&one.key);
        assert!(!queue.has_active() && queue.deadline().is_none());
    }
}
