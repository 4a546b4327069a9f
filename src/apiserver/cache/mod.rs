//! The watch cache: every object, encoded once, and the recent changes of every kind.
//!
//! One task follows the store and feeds all kinds; readers wait until what they must see is in
//! ([`Cache::caught_up`]). Watchers read the shared history from where they are, so that a slow
//! one costs nothing and misses nothing: it is ended when its place is gone. When the store's own
//! watch ends, the task reads everything anew and goes on.
//! Called by `verbs`; the only reader of the store.

mod kind;
mod object;

pub use kind::{Change, Kind, Past};
use object::Recent;
pub use object::{JsonForm, LARGE, Object};

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    store::{self, Event, Range, Revision, Store, Watch},
    supervision::{Parts, Policy},
};

/// The check of the task that follows the store.
pub const PART: &str = "part/watch-cache";

/// All keys of the API lie under this.
pub const ROOT: &str = "/registry/";
/// Old changes are let go of this often.
const TIDY: Duration = Duration::from_secs(60);
/// One who has taken something in since then is at work.
const LATELY: Duration = Duration::from_secs(5);
/// For the first change after a while.
const MOMENT: Duration = Duration::from_millis(500);

pub struct Cache {
    store: Arc<dyn Store>,
    /// By the row's `storage`.
    kinds: RwLock<HashMap<String, Arc<Kind>>>,
    /// Everything up to this revision is in.
    applied: watch::Sender<Revision>,
    recent: Arc<Recent>,
    /// When it took something in last.
    progressed: Mutex<Instant>,
}

impl Cache {
    /// Loads everything and follows the store from there.
    pub async fn start(store: Arc<dyn Store>, parts: &Parts) -> Result<Arc<Self>, store::Error> {
        let slice = store
            .range(Range {
                prefix: ROOT.to_owned(),
                ..Range::default()
            })
            .await?;
        let cache = Arc::new(Self {
            store,
            kinds: RwLock::default(),
            applied: watch::channel(slice.revision).0,
            recent: Arc::default(),
            progressed: Mutex::new(Instant::now()),
        });
        for entry in slice.entries {
            if let Some((kind, object)) = cache.place(&entry.key, &entry.value, entry.mod_revision)
            {
                kind.load(object, slice.revision);
            }
        }
        let mut first = Some(cache.store.watch(ROOT, slice.revision).await?);
        let feeding = Arc::downgrade(&cache);
        parts.start(PART, Policy::Restart, move |shutdown| {
            let (cache, first) = (feeding.clone(), first.take());
            async move {
                let fed = feed(cache, first);
                shutdown.run_until_cancelled(fed).await.unwrap_or(Ok(()))?;
                // Nobody reads the cache any more.
                shutdown.cancelled().await;
                Ok::<(), store::Error>(())
            }
        });
        Ok(cache)
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The cache of the kind stored under `storage`.
    pub fn kind(&self, storage: &str) -> Arc<Kind> {
        if let Some(kind) = self
            .kinds
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(storage)
        {
            return kind.clone();
        }
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        kinds
            .entry(storage.to_owned())
            .or_insert_with(|| Arc::new(Kind::new(*self.applied.borrow())))
            .clone()
    }

    /// Lets go of a kind that is not served any more and has no objects, with its history.
    pub fn forget_kind(&self, storage: &str) {
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        if kinds.get(storage).is_some_and(|kind| kind.count() == 0) {
            kinds.remove(storage);
        }
    }

    /// The revision that everything here is as of.
    pub fn revision(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Waits until every finished write can be seen; returns the revision reached.
    pub async fn caught_up(&self) -> Revision {
        self.reached(self.store.revision()).await
    }

    /// Whether what is written comes in: at once, or at least something of it lately or within a moment.
    pub async fn follows(&self) -> bool {
        let mut applied = self.applied.subscribe();
        let behind = *applied.borrow_and_update() < self.store.revision();
        let progressed = *self.progressed();
        if !behind || progressed.elapsed() < LATELY {
            return true;
        }
        tokio::time::timeout(MOMENT, applied.changed())
            .await
            .is_ok()
    }

    fn progressed(&self) -> MutexGuard<'_, Instant> {
        self.progressed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `revision` is in.
    pub async fn reached(&self, revision: Revision) -> Revision {
        let mut applied = self.applied.subscribe();
        match applied.wait_for(|applied| *applied >= revision).await {
            Ok(applied) => *applied,
            Err(_) => revision,
        }
    }

    /// For waiting until something past a revision is in.
    pub fn applied(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// Lets go of changes that no watcher may ask for any more.
    fn forget(&self, now: Instant) {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        for kind in kinds.values() {
            kind.forget(now);
        }
        self.recent.forget();
    }

    /// Makes up for changes that were missed: what differs from the store is a change of now.
    async fn resync(&self) -> Result<Box<dyn Watch>, store::Error> {
        let slice = self
            .store
            .range(Range {
                prefix: ROOT.to_owned(),
                ..Range::default()
            })
            .await?;
        let now = Instant::now();
        let mut entries: HashMap<Arc<str>, crate::store::Entry> = slice
            .entries
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        let kinds: Vec<Arc<Kind>> = {
            let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
            kinds.values().cloned().collect()
        };
        let mut gone = Vec::new();
        for kind in &kinds {
            for (object, revision) in kind.revisions() {
                match entries.get(&object.key) {
                    Some(entry) if entry.mod_revision == revision => {
                        entries.remove(&object.key);
                    }
                    Some(_) => {}
                    None => gone.push((kind.clone(), object)),
                }
            }
        }
        let mut changed: Vec<_> = entries.into_values().collect();
        changed.sort_unstable_by_key(|entry| entry.mod_revision);
        for entry in changed {
            if let Some((kind, object)) = self.place(&entry.key, &entry.value, entry.mod_revision) {
                kind.apply(object, false, now);
            }
        }
        for (kind, object) in gone {
            let rest = split(&object.key).map_or("", |(_, rest)| rest);
            let mut stored = (*object.value()).clone();
            if let Some(metadata) = stored["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            let last = Object::new(
                object.key.clone(),
                rest,
                stored.to_string().as_bytes(),
                slice.revision,
            );
            match last {
                Ok(last) => kind.apply(Arc::new(last), true, now),
                Err(error) => tracing::error!(%error, "an object cannot be read back"),
            }
        }
        *self.progressed() = Instant::now();
        self.applied.send_replace(slice.revision);
        for kind in kinds {
            kind.wake();
        }
        self.store.watch(ROOT, slice.revision).await
    }

    fn apply(&self, batch: Vec<Event>) {
        let mut last = None;
        let now = Instant::now();
        let mut touched: HashMap<*const Kind, Arc<Kind>> = HashMap::new();
        for event in batch {
            let revision = event.revision();
            let placed = match &event {
                Event::Put { entry, .. } => self.place(&entry.key, &entry.value, revision),
                // The event of a deletion carries the last state with the deletion's revision.
                Event::Delete { previous, .. } => {
                    self.place(&previous.key, &previous.value, revision)
                }
            };
            if let Some((kind, object)) = placed {
                kind.apply(object, matches!(event, Event::Delete { .. }), now);
                touched.insert(Arc::as_ptr(&kind), kind);
            }
            last = Some(revision);
        }
        if let Some(last) = last {
            *self.progressed() = now;
            self.applied.send_replace(last);
        }
        for kind in touched.into_values() {
            kind.wake();
        }
    }

    fn place(
        &self,
        key: &Arc<str>,
        value: &store::Value,
        revision: Revision,
    ) -> Option<(Arc<Kind>, Arc<Object>)> {
        let (storage, rest) = split(key)?;
        match Object::kept(key.clone(), rest, value.clone(), revision, &self.recent) {
            Ok(object) => Some((self.kind(storage), Arc::new(object))),
            Err(error) => {
                tracing::error!(%key, %error, "an object in the store is not JSON");
                None
            }
        }
    }
}

/// Follows the store until it fails, or nobody has the cache any more. Without a watch to go on with,
/// everything is compared first.
async fn feed(cache: Weak<Cache>, watch: Option<Box<dyn Watch>>) -> Result<(), store::Error> {
    let resync = async || match cache.upgrade() {
        Some(cache) => cache.resync().await.map(Some),
        None => Ok(None),
    };
    let mut events = match watch {
        Some(watch) => watch,
        None => match resync().await? {
            Some(watch) => watch,
            None => return Ok(()),
        },
    };
    let mut tidied = Instant::now();
    loop {
        let batch = events.recv().await;
        let Some(cache) = cache.upgrade() else {
            return Ok(());
        };
        match batch {
            Ok(batch) => {
                cache.apply(batch);
                // Heartbeats come all the time, so quiet kinds are tidied too.
                if tidied.elapsed() >= TIDY {
                    tidied = Instant::now();
                    cache.forget(tidied);
                }
            }
            // Large objects came faster than they could be read.
            Err(store::Error::Compacted { .. }) => events = cache.resync().await?,
            Err(error) => return Err(error),
        }
    }
}

/// `/registry/<storage>/<namespace>/<name>`, or without the namespace. The storage of a grouped
/// kind has no slash, so that the first part is all of it.
fn split(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(ROOT)?.split_once('/')
}

/// The store's key of an object; `namespace` empty for cluster scope.
pub fn key(storage: &str, namespace: &str, name: &str) -> Arc<str> {
    match namespace {
        "" => format!("{ROOT}{storage}/{name}").into(),
        namespace => format!("{ROOT}{storage}/{namespace}/{name}").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::{
        Committed, Durability, Entry, Error, Expect, Op, Slice, Space, Write, embedded::Embedded,
    };

    /// A store whose first watch ends when there is something to see.
    struct Fickle {
        store: Embedded,
        ended: AtomicBool,
    }

    struct Ends(Box<dyn Watch>);

    #[async_trait::async_trait]
    impl Watch for Ends {
        async fn recv(&mut self) -> Result<Vec<Event>, Error> {
            self.0.recv().await?;
            Err(Error::Closed)
        }
    }

    #[async_trait::async_trait]
    impl Store for Fickle {
        fn revision(&self) -> Revision {
            self.store.revision()
        }
        fn usage(&self) -> store::Usage {
            self.store.usage()
        }
        async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), Error> {
            self.store.get(key).await
        }
        async fn range(&self, range: Range) -> Result<Slice, Error> {
            self.store.range(range).await
        }
        async fn commit(&self, write: Write) -> Result<Committed, Error> {
            self.store.commit(write).await
        }
        async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error> {
            let watch = self.store.watch(prefix, after).await?;
            Ok(match self.ended.swap(true, Ordering::SeqCst) {
                false => Box::new(Ends(watch)),
                true => watch,
            })
        }
        async fn compact(&self, revision: Revision) -> Result<(), Error> {
            self.store.compact(revision).await
        }
        async fn failed(&self) {
            self.store.failed().await;
        }
    }

    #[tokio::test]
    async fn a_watch_of_the_store_that_ends_is_made_up_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Fickle {
            store: Embedded::open(dir.path()).expect("a store"),
            ended: AtomicBool::new(false),
        };
        let parts = Parts::default();
        let cache = Cache::start(Arc::new(store), &parts)
            .await
            .expect("a cache");
        for number in 0..3 {
            let write = Write {
                key: key("configmaps", "n", &number.to_string()),
                expect: Expect::Absent,
                op: Op::Put {
                    value: "{}".into(),
                    ttl: None,
                },
                durability: Durability::Relaxed,
                space: Space::Ordinary,
                guards: Vec::new(),
            };
            cache.store().commit(write).await.expect("written");
            let seen = tokio::time::timeout(Duration::from_secs(10), cache.caught_up()).await;
            assert!(seen.is_ok(), "write {number} is never seen");
        }
        assert_eq!(cache.kind("configmaps").count(), 3);
        assert_eq!(parts.report()[0].restarts, 1);
    }
}
