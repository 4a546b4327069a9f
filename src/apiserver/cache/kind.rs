//! The objects and recent changes of one kind.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::Object;
use crate::store::Revision;

/// Changes are kept this long for watchers that resume; one further behind must list again.
const KEPT: Duration = Duration::from_secs(300);
/// Changes kept of a kind that changes rarely, however old they are.
const LEAST: usize = 100;
/// Bytes of memory of objects that only these hold, at most.
const LEAST_BYTES: usize = 1 << 20;
/// Changes kept at most.
const MOST: usize = 4096;
/// Bytes of memory of objects that only changes hold, at most.
const MOST_BYTES: usize = 32 << 20;

#[derive(Debug)]
pub struct Kind {
    state: RwLock<State>,
    /// The revision of the last change; watchers wait on it.
    changed: watch::Sender<Revision>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    /// The revision of the last change; `objects` are as of then, and of all revisions since.
    last: Revision,
    /// With when they came.
    history: VecDeque<(Instant, Change)>,
    history_bytes: usize,
    /// Changes up to and including this revision are gone from `history`.
    forgotten: Revision,
}

impl State {
    fn forget(&mut self, now: Instant) {
        while let Some((came, oldest)) = self.history.front() {
            let count = self.history.len();
            let spare = count > LEAST || self.history_bytes > LEAST_BYTES;
            let old = now.saturating_duration_since(*came) > KEPT && spare;
            if !old && count <= MOST && self.history_bytes <= MOST_BYTES {
                break;
            }
            self.forgotten = oldest.object.revision;
            self.history_bytes -= oldest.weight();
            self.history.pop_front();
        }
    }
}

/// One change. `previous` is absent for an added object.
#[derive(Clone, Debug)]
pub struct Change {
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
}

impl Change {
    fn weight(&self) -> usize {
        self.object.weight + self.previous.as_ref().map_or(0, |previous| previous.weight)
    }
}

/// What a watcher gets when it looks.
#[derive(Debug)]
pub enum Past {
    Changes(Vec<Change>),
    /// Its place in the history is gone.
    Forgotten,
}

impl Kind {
    pub fn new(revision: Revision) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            last: revision,
            history: VecDeque::new(),
            history_bytes: 0,
            forgotten: revision,
        };
        Self {
            state: RwLock::new(state),
            changed: watch::channel(revision).0,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object that was there before the cache.
    pub fn load(&self, object: Arc<Object>, revision: Revision) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.objects.insert(object.key.clone(), object);
        state.forgotten = revision;
        state.last = state.last.max(revision);
        self.changed.send_replace(revision);
    }

    pub fn apply(&self, object: Arc<Object>, deleted: bool, now: Instant) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let previous = match deleted {
            true => state.objects.remove(&object.key),
            false => state.objects.insert(object.key.clone(), object.clone()),
        };
        state.last = state.last.max(object.revision);
        let change = Change {
            object,
            previous,
            deleted,
        };
        state.history_bytes += change.weight();
        state.history.push_back((now, change));
        state.forget(now);
    }

    /// Lets go of changes that are too old.
    pub fn forget(&self, now: Instant) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.forget(now);
    }

    /// Wakes watchers, after the change can be seen.
    pub fn wake(&self) {
        let last = self
            .read()
            .history
            .back()
            .map(|(_, change)| change.object.revision);
        if let Some(last) = last {
            self.changed.send_replace(last);
        }
    }

    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// Rises with every change.
    pub fn last_change(&self) -> Revision {
        self.read().last
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// Objects whose key begins with `prefix` and comes after `after`, in key order.
    pub fn list(&self, prefix: &str, after: &str) -> Vec<Arc<Object>> {
        self.snapshot(prefix, after).0
    }

    /// As [`Kind::list`], with the revision of this kind's last change, deletions too: the objects are
    /// as of that revision, and of each later one up to the next change.
    pub fn snapshot(&self, prefix: &str, after: &str) -> (Vec<Arc<Object>>, Revision) {
        let lower = if after >= prefix {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix)
        };
        let state = self.read();
        let range = state.objects.range::<str, _>((lower, Bound::Unbounded));
        let objects = range
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object.clone())
            .collect();
        (objects, state.last)
    }

    /// The revision of each object, by key.
    pub fn revisions(&self) -> Vec<(Arc<Object>, Revision)> {
        let state = self.read();
        let objects = state.objects.values();
        objects
            .map(|object| (object.clone(), object.revision))
            .collect()
    }

    pub fn count(&self) -> usize {
        self.read().objects.len()
    }

    /// Changes after `after`, oldest first, at most `limit`.
    pub fn past(&self, after: Revision, limit: usize) -> Past {
        let state = self.read();
        if after < state.forgotten {
            return Past::Forgotten;
        }
        let start = state
            .history
            .partition_point(|(_, change)| change.object.revision <= after);
        let changes = state.history.range(start..).take(limit);
        Past::Changes(changes.map(|(_, change)| change.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(kind: &Kind, revisions: std::ops::RangeInclusive<Revision>, now: Instant) {
        for revision in revisions {
            let (key, value) = ("/registry/pods/d/p".into(), br#"{"metadata":{}}"#);
            let object = Object::new(key, "d/p", value, revision).unwrap();
            kind.apply(Arc::new(object), false, now);
        }
    }

    /// How many changes after a revision are told, if they are.
    fn told(kind: &Kind, after: Revision) -> Option<usize> {
        match kind.past(after, usize::MAX) {
            Past::Changes(changes) => Some(changes.len()),
            Past::Forgotten => None,
        }
    }

    #[test]
    fn a_snapshot_is_of_the_last_change() {
        let kind = Kind::new(0);
        add(&kind, 1..=3, Instant::now());
        // Watchers are woken later; who lists now has the change already.
        assert_eq!(kind.last_change(), 3);
        let (objects, last) = kind.snapshot("/registry/pods/", "");
        assert_eq!((objects.len(), last), (1, 3));
        let (key, value) = ("/registry/pods/d/p".into(), br#"{"metadata":{}}"#);
        let gone = Object::new(key, "d/p", value, 4).unwrap();
        kind.apply(Arc::new(gone), true, Instant::now());
        let (objects, last) = kind.snapshot("/registry/pods/", "");
        assert_eq!((objects.len(), last), (0, 4), "a deletion counts as well");
    }

    #[test]
    fn changes_of_large_objects_are_forgotten_by_size() {
        let kind = Kind::new(0);
        let value = format!(r#"{{"data":"{}"}}"#, "x".repeat(1 << 20));
        for revision in 1..=100 {
            let object = Object::new("/registry/a/b".into(), "b", value.as_bytes(), revision);
            kind.apply(Arc::new(object.unwrap()), false, Instant::now());
        }
        let kept = 100 - (MOST_BYTES >> 21) as Revision;
        assert!(told(&kind, kept).is_none() && told(&kind, kept + 1).is_some());
        // Old ones even if they are few.
        kind.forget(Instant::now() + 2 * KEPT);
        assert!(told(&kind, 99).is_none() && told(&kind, 100).is_some());
    }

    #[test]
    fn changes_are_forgotten_by_age_and_number() {
        let start = Instant::now();
        let kind = Kind::new(0);
        add(&kind, 1..=300, start);
        kind.forget(start + KEPT);
        assert_eq!(told(&kind, 0), Some(300));
        kind.forget(start + 2 * KEPT);
        assert_eq!((told(&kind, 199), told(&kind, 200)), (None, Some(LEAST)));
        // A change of the same kind forgets older ones as well.
        add(&kind, 301..=301, start + 2 * KEPT);
        assert_eq!((told(&kind, 200), told(&kind, 201)), (None, Some(LEAST)));
        add(&kind, 302..=5000, start + 2 * KEPT);
        assert_eq!(told(&kind, 5000 - MOST as Revision), Some(MOST));
        assert_eq!(told(&kind, 4999 - MOST as Revision), None);
    }
}
