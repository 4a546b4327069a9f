//! Read your own writes: which writes of a controller its caches have not shown yet.
//!
//! A sync that looked at caches older than its own last write would count wrongly and create or
//! delete twice. So each write of dependents is noted here by resource version, and a key whose
//! writes are not all visible only updates its status.
//! Always true: a note is dropped once the cache has caught up or after [`PATIENCE`].

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::Resource;

use crate::informer::{Informer, Key, revision_of};

/// A write whose event never came (its object was gone before a fresh list) is forgotten then.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<Key, Notes>>);

#[derive(Debug)]
struct Notes {
    revision: u64,
    /// Deleted at once by the server: their last event has a revision unknown to us.
    deleted: HashSet<Key>,
    until: Instant,
}

impl Written {
    /// Notes a write made while syncing `owner`.
    pub fn wrote<K: Resource>(&self, owner: &Key, object: &K) {
        let revision = revision_of(object);
        self.with(owner, |notes| notes.revision = notes.revision.max(revision));
    }

    /// Notes that the server deleted `object` at once, without a grace period.
    pub fn deleted(&self, owner: &Key, object: Key) {
        self.with(owner, |notes| {
            notes.deleted.insert(object);
        });
    }

    /// True if `informer` shows every write noted for `owner`.
    pub fn visible<K: Resource>(&self, owner: &Key, informer: &Informer<K>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(notes) = all.get_mut(owner) else {
            return true;
        };
        let seen = informer.revision() >= notes.revision;
        notes.deleted.retain(|key| {
            informer
                .get(key)
                .is_some_and(|object| object.meta().deletion_timestamp.is_none())
        });
        if (seen && notes.deleted.is_empty()) || notes.until <= Instant::now() {
            all.remove(owner);
            return true;
        }
        false
    }

    pub fn forget(&self, owner: &Key) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(owner);
    }

    fn with(&self, owner: &Key, change: impl FnOnce(&mut Notes)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let notes = all.entry(owner.clone()).or_insert_with(|| Notes {
            revision: 0,
            deleted: HashSet::new(),
            until: Instant::now(),
        });
        notes.until = Instant::now() + PATIENCE;
        change(notes);
    }
}
