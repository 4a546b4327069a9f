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

use super::{
    plugins::Plugins,
    pod::{PodInfo, Uid},
};

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
    entries: HashMap<Uid, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, Uid)>,
    /// Of pods that back off or are unschedulable.
    deadlines: BTreeSet<(Instant, Uid)>,
    /// Those that an event may wake.
    unschedulable: HashSet<Uid>,
    arrivals: u64,
}

impl Queue {
    /// Adds a pod, or takes over its new version; a change of what matters makes it active again.
    pub fn add(&mut self, pod: Arc<PodInfo>, matters: bool) {
        let uid = pod.uid.clone();
        if let Some(entry) = self.entries.get_mut(&uid) {
            let same_priority = entry.pod.priority == pod.priority;
            entry.pod = pod;
            let move_up = match entry.place {
                Place::Active { .. } => !same_priority,
                Place::InFlight => false,
                Place::Backoff { .. } | Place::Unschedulable { .. } => matters,
            };
            if move_up {
                self.activate(&uid);
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
        self.entries.insert(uid.clone(), entry);
        self.activate(&uid);
    }

    pub fn remove(&mut self, uid: &Uid) {
        if self.entries.contains_key(uid) {
            self.place(uid, Place::InFlight);
            self.entries.remove(uid);
        }
    }

    pub fn pods(&self) -> Vec<Uid> {
        self.entries.keys().cloned().collect()
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// The most urgent pod, now in flight.
    pub fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let (.., uid) = self.active.first()?.clone();
        self.place(&uid, Place::InFlight);
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts += 1;
        Some(entry.pod.clone())
    }

    /// Puts a pod in flight aside until one of the plugins that rejected it may change its mind.
    pub fn unschedulable(&mut self, uid: &Uid, rejected_by: Plugins, now: Instant) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let place = Place::Unschedulable {
            backoff: now + backoff(entry.attempts),
            until: now + PATIENCE,
            rejected_by,
        };
        self.place(uid, place);
    }

    /// Puts a pod in flight aside after an error that has nothing to do with the cluster.
    pub fn failed(&mut self, uid: &Uid, now: Instant) {
        if let Some(entry) = self.entries.get(uid) {
            let until = now + backoff(entry.attempts);
            self.place(uid, Place::Backoff { until });
        }
    }

    /// Something happened that pods rejected by any of `plugins` may profit from.
    pub fn wake(&mut self, plugins: Plugins, now: Instant) {
        let woken: Vec<(Uid, Instant)> = self
            .unschedulable
            .iter()
            .filter_map(|uid| match self.entries.get(uid)?.place {
                Place::Unschedulable {
                    backoff,
                    rejected_by,
                    ..
                } if rejected_by.intersects(plugins) => Some((uid.clone(), backoff)),
                _ => None,
            })
            .collect();
        for (uid, until) in woken {
            if until <= now {
                self.activate(&uid);
            } else {
                self.place(&uid, Place::Backoff { until });
            }
        }
    }

    /// What the pods waited for that `which` tells has come: they are tried at once.
    pub fn wake_at_once(&mut self, plugins: Plugins, which: impl Fn(&PodInfo) -> bool) {
        let woken: Vec<Uid> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                let rejected = match entry.place {
                    Place::Unschedulable { rejected_by, .. } => rejected_by.intersects(plugins),
                    _ => false,
                };
                rejected && which(&entry.pod)
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in woken {
            self.activate(&uid);
        }
    }

    /// When [`Queue::promote`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Makes pods active whose time has come.
    pub fn promote(&mut self, now: Instant) {
        while let Some((deadline, uid)) = self.deadlines.first().cloned() {
            if deadline > now {
                return;
            }
            self.activate(&uid);
        }
    }

    fn activate(&mut self, uid: &Uid) {
        if let Some(priority) = self.entries.get(uid).map(|entry| entry.pod.priority) {
            self.place(uid, Place::Active { priority });
        }
    }

    /// The only place where an entry changes places.
    fn place(&mut self, uid: &Uid, place: Place) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        if let Place::Active { priority } = entry.place {
            self.active
                .remove(&(Reverse(priority), entry.order, uid.clone()));
        }
        if let Some(deadline) = deadline(entry.place) {
            self.deadlines.remove(&(deadline, uid.clone()));
        }
        self.unschedulable.remove(uid);
        entry.place = place;
        if let Place::Active { priority } = place {
            self.active
                .insert((Reverse(priority), entry.order, uid.clone()));
        }
        if let Some(deadline) = deadline(place) {
            self.deadlines.insert((deadline, uid.clone()));
        }
        if matches!(place, Place::Unschedulable { .. }) {
            self.unschedulable.insert(uid.clone());
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
        queue.unschedulable(&one.uid, Plugins::FIT, now);
        queue.wake(Plugins::TAINTS, now + Duration::from_secs(2));
        assert!(!queue.has_active());
        queue.wake(Plugins::FIT, now);
        assert!(!queue.has_active(), "its second of back-off is not over");
        queue.promote(now + Duration::from_secs(1));
        assert!(queue.has_active());
        queue.pop();
        queue.unschedulable(&one.uid, Plugins::FIT, now);
        queue.add(one.clone(), false);
        assert!(!queue.has_active(), "its own status does not wake it");
        queue.add(one.clone(), true);
        assert!(queue.has_active());
        queue.remove(&one.uid);
        assert!(!queue.has_active() && queue.deadline().is_none());
    }
}
