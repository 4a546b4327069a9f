//! The objects and recent changes of one kind.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::watch;

use super::Object;
use crate::store::Revision;

/// Changes kept for watchers that resume; a watcher further behind must list again.
const HISTORY: usize = 4096;

#[derive(Debug)]
pub struct Kind {
    state: RwLock<State>,
    /// The revision of the last change; watchers wait on it.
    changed: watch::Sender<Revision>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    history: VecDeque<Change>,
    /// Changes up to and including this revision are gone from `history`.
    forgotten: Revision,
}

/// One change. `previous` is absent for an added object.
#[derive(Clone, Debug)]
pub struct Change {
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
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
            history: VecDeque::new(),
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
        self.changed.send_replace(revision);
    }

    pub fn apply(&self, object: Arc<Object>, deleted: bool) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let previous = match deleted {
            true => state.objects.remove(&object.key),
            false => state.objects.insert(object.key.clone(), object.clone()),
        };
        state.history.push_back(Change {
            object,
            previous,
            deleted,
        });
        if state.history.len() > HISTORY
            && let Some(oldest) = state.history.pop_front()
        {
            state.forgotten = oldest.object.revision;
        }
    }

    /// Wakes watchers, after the change can be seen.
    pub fn wake(&self) {
        let last = self
            .read()
            .history
            .back()
            .map(|change| change.object.revision);
        if let Some(last) = last {
            self.changed.send_replace(last);
        }
    }

    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// Rises with every change.
    pub fn last_change(&self) -> Revision {
        *self.changed.borrow()
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// Objects whose key begins with `prefix` and comes after `after`, in key order.
    pub fn list(&self, prefix: &str, after: &str) -> Vec<Arc<Object>> {
        let lower = if after >= prefix {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix)
        };
        let state = self.read();
        let range = state.objects.range::<str, _>((lower, Bound::Unbounded));
        range
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object.clone())
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
            .partition_point(|change| change.object.revision <= after);
        Past::Changes(state.history.range(start..).take(limit).cloned().collect())
    }
}
