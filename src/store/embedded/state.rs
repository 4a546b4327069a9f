//! What the store holds in memory: current entries and recent history. No I/O.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use super::quota::Quota;
use crate::store::{Entry, Error, Event, Expect, Range, Revision, Slice, Space, Usage};

/// History is kept this long ...
const HISTORY_SECONDS: u64 = 300;
/// ... and the last events longer, if they are small ...
const HISTORY_LEAST: usize = 256;
const HISTORY_LEAST_BYTES: usize = 1 << 20;
/// ... but never more than this.
const HISTORY_BYTES: usize = 16 << 20;

#[derive(Debug, Default)]
pub struct State {
    pub revision: Revision,
    /// History up to and including this revision is gone.
    pub compacted: Revision,
    current: BTreeMap<Arc<str>, Entry>,
    history: VecDeque<Past>,
    history_bytes: usize,
    /// Bytes of all current keys and values.
    pub live_bytes: usize,
    quota: Quota,
}

#[derive(Debug)]
struct Past {
    event: Event,
    at_second: u64,
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { entry, .. } => &entry.key,
            Self::Delete { previous, .. } => &previous.key,
        }
    }

    fn previous(&self) -> Option<&Entry> {
        match self {
            Self::Put { previous, .. } => previous.as_ref(),
            Self::Delete { previous, .. } => Some(previous),
        }
    }
}

impl State {
    pub fn new(quota: Quota) -> Self {
        Self {
            quota,
            ..Self::default()
        }
    }

    /// What counts against the quota. History has a limit of its own, and shares the bytes of what
    /// is still there.
    pub fn used(&self) -> usize {
        self.live_bytes + Quota::cost("", 0) * self.current.len()
    }

    pub fn usage(&self) -> Usage {
        Usage {
            used_bytes: self.used(),
            quota_bytes: self.quota.bytes(),
        }
    }

    /// Whether there is room for `growth` more bytes of `key` when `more` than what is here is used.
    pub fn has_room(&self, key: &str, growth: usize, more: usize, space: Space) -> bool {
        self.quota.allows(key, growth, self.used() + more, space)
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.current.get(key)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.current.values()
    }

    /// Puts an entry read back from the log; makes no history.
    pub fn restore(&mut self, entry: Entry) {
        self.live_bytes += size(&entry);
        self.quota.added(&entry.key, entry.value.size());
        if let Some(old) = self.current.insert(entry.key.clone(), entry) {
            self.let_go(&old);
        }
    }

    pub fn forget(&mut self, key: &str) {
        if let Some(old) = self.current.remove(key) {
            self.let_go(&old);
        }
    }

    fn let_go(&mut self, old: &Entry) {
        self.live_bytes -= size(old);
        self.quota.removed(&old.key, old.value.size());
    }

    /// Applies one committed change.
    pub fn apply(&mut self, event: Event, at_second: u64) {
        self.revision = event.revision();
        match &event {
            Event::Put { entry, .. } => self.restore(entry.clone()),
            Event::Delete { previous, .. } => self.forget(&previous.key),
        }
        self.history_bytes += weight(&event);
        self.history.push_back(Past { event, at_second });
        self.trim(at_second);
    }

    fn trim(&mut self, now: u64) {
        while let Some(oldest) = self.history.front() {
            let old = oldest.at_second + HISTORY_SECONDS < now;
            let many =
                self.history.len() > HISTORY_LEAST || self.history_bytes > HISTORY_LEAST_BYTES;
            if !(old && many) && self.history_bytes <= HISTORY_BYTES {
                break;
            }
            let revision = oldest.event.revision();
            self.compact(revision);
        }
    }

    pub fn compact(&mut self, revision: Revision) {
        while self
            .history
            .front()
            .is_some_and(|past| past.event.revision() <= revision)
        {
            if let Some(past) = self.history.pop_front() {
                self.history_bytes -= weight(&past.event);
            }
        }
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    pub fn check_revision(&self, asked: Revision) -> Result<(), Error> {
        if asked > self.revision {
            return Err(Error::Future {
                asked,
                latest: self.revision,
            });
        }
        // The state as of the compacted revision itself can still be told.
        if asked < self.compacted {
            return Err(Error::Compacted {
                asked,
                oldest: self.compacted,
            });
        }
        Ok(())
    }

    /// Changes after `after`, oldest first.
    pub fn after(&self, after: Revision) -> impl Iterator<Item = &Event> {
        let start = self
            .history
            .partition_point(|past| past.event.revision() <= after);
        self.history.range(start..).map(|past| &past.event)
    }

    pub fn range(&self, range: &Range) -> Result<Slice, Error> {
        let at = range.at.unwrap_or(self.revision);
        self.check_revision(at)?;
        let lower = if range.after.as_str() >= range.prefix.as_str() {
            Bound::Excluded(range.after.as_str())
        } else {
            Bound::Included(range.prefix.as_str())
        };
        let within = |key: &str| key.starts_with(range.prefix.as_str());
        let current = self
            .current
            .range::<str, _>((lower, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(|entry| within(&entry.key));
        let mut entries: Vec<Entry> = Vec::new();
        let limit = if range.limit == 0 {
            usize::MAX
        } else {
            range.limit
        };
        let mut remaining = 0;
        let mut take = |entry: &Entry| {
            if entries.len() < limit {
                entries.push(entry.clone());
            } else {
                remaining += 1;
            }
        };
        if at == self.revision {
            current.for_each(&mut take);
        } else {
            // What a key was at `at` is what the first change after it replaced.
            let mut then: HashMap<&str, Option<&Entry>> = HashMap::new();
            for event in self.after(at).filter(|event| within(event.key())) {
                then.entry(event.key()).or_insert_with(|| event.previous());
            }
            let unchanged = current.filter(|entry| !then.contains_key(&*entry.key));
            let bounded = |key: &str| match lower {
                Bound::Excluded(bound) => key > bound,
                _ => true,
            };
            let changed = then
                .values()
                .filter_map(|entry| *entry)
                .filter(|entry| bounded(&entry.key));
            let all: BTreeMap<&str, &Entry> = unchanged
                .chain(changed)
                .map(|entry| (&*entry.key, entry))
                .collect();
            all.into_values().for_each(&mut take);
        }
        Ok(Slice {
            entries,
            revision: at,
            remaining,
        })
    }
}

/// Whether a key is as a write expects it.
pub fn holds(expect: Expect, current: Option<&Entry>) -> bool {
    match (expect, current) {
        (Expect::Absent, None) => true,
        (Expect::ModRevision(revision), Some(entry)) => entry.mod_revision == revision,
        _ => false,
    }
}

fn size(entry: &Entry) -> usize {
    entry.key.len() + entry.value.size()
}

/// What it takes in memory.
fn memory(entry: &Entry) -> usize {
    entry.key.len() + entry.value.memory()
}

fn weight(event: &Event) -> usize {
    const OVERHEAD: usize = 200;
    // The former state is held by this event alone once the one that made it is gone.
    OVERHEAD
        + match event {
            Event::Put { entry, previous } => memory(entry) + previous.as_ref().map_or(0, memory),
            Event::Delete { previous, .. } => memory(previous),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Value, noise};

    /// A new value of as many bytes as that.
    fn put(state: &mut State, bytes: usize, second: u64) {
        let revision = state.revision + 1;
        let entry = Entry {
            key: "/registry/a/b".into(),
            value: Value::new(noise(bytes).into()),
            create_revision: 1,
            mod_revision: revision,
        };
        let previous = state.get("/registry/a/b").cloned();
        state.apply(Event::Put { entry, previous }, second);
    }

    #[test]
    fn old_history_is_small() {
        let mut state = State::default();
        for _ in 0..100 {
            put(&mut state, 100, 0);
        }
        for _ in 0..30 {
            put(&mut state, 200 << 10, 10);
        }
        assert_eq!((state.compacted, state.history.len()), (0, 130));
        // Old and large: it goes, though it is little.
        put(&mut state, 100, 10 + HISTORY_SECONDS + 1);
        assert!(state.history_bytes <= HISTORY_LEAST_BYTES);
        assert!(state.history.len() < 10, "{}", state.history.len());
        // Old and small: the last of it stays.
        for _ in 0..1000 {
            put(&mut state, 100, 1000);
        }
        put(&mut state, 100, 10_000);
        assert_eq!(state.history.len(), HISTORY_LEAST);
        // However new it is, there is an end to it.
        for _ in 0..200 {
            put(&mut state, 200 << 10, 10_000);
        }
        assert!(state.history_bytes <= HISTORY_BYTES);
    }
}
