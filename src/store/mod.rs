//! Revisioned key-value store behind the API server.
//!
//! Owns every object's bytes and history; knows no Kubernetes kind.
//! Called by `apiserver` only: everything else goes through the API.
//! Always true:
//! - A revision is given out once and never again, even after a crash.
//! - A watcher sees rising revisions without gaps, or the error `Compacted`.
//!
//! The engines: [`embedded`] here; a real etcd cluster later behind the same trait.

pub mod embedded;
mod value;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

pub use value::Value;
#[cfg(test)]
pub use value::noise;

/// One number for the whole store, +1 per write.
pub type Revision = u64;

/// A key with its value as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Value,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key has no value.
    Absent,
    /// The key's last write was this revision.
    ModRevision(Revision),
}

/// Another key that a write depends on, and what must hold for it at the moment of the write: so that
/// what was judged is what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    pub key: Arc<str>,
    pub expect: Expect,
}

/// How soon a write must be safe on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged after it is synced (group commit).
    Synced,
    /// Heartbeats and Events: acknowledged when logged, on disk with the next synced write or
    /// within a minute. Lost at a power cut at worst, never torn, never reordered.
    Relaxed,
}

/// What a write may take of a store that is nearly full. One that does not make its entry larger, and
/// a deletion, always may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Up to the quota.
    Ordinary,
    /// Of the reserve behind the quota too: what is needed to recover.
    Reserved,
}

/// What a write does to its key.
#[derive(Clone, Debug)]
pub enum Op {
    /// `ttl`: the entry is deleted, with an event, when that time has passed.
    Put {
        value: Bytes,
        ttl: Option<Duration>,
    },
    Delete,
}

/// One conditional write of one key.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Arc<str>,
    pub expect: Expect,
    /// All of them must hold as well.
    pub guards: Vec<Guard>,
    pub op: Op,
    pub durability: Durability,
    pub space: Space,
}

/// A write that happened.
#[derive(Clone, Debug)]
pub struct Committed {
    pub revision: Revision,
}

/// Which keys to read: those that start with `prefix` and come after `after`.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub prefix: String,
    /// Exclusive lower bound; empty for none.
    pub after: String,
    /// 0 for no limit.
    pub limit: usize,
    /// Read as of this revision; `None` for the latest.
    pub at: Option<Revision>,
}

/// What [`Store::range`] found, one snapshot.
#[derive(Clone, Debug)]
pub struct Slice {
    pub entries: Vec<Entry>,
    pub revision: Revision,
    /// How many more keys of the range come after the last entry.
    pub remaining: usize,
}

/// One change, as watchers see it.
#[derive(Clone, Debug)]
pub enum Event {
    Put {
        entry: Entry,
        previous: Option<Entry>,
    },
    /// `revision` is that of the deletion; `previous` the last state before it.
    Delete { revision: Revision, previous: Entry },
}

/// Changes in revision order. `recv` waits; an error ends the stream.
#[async_trait::async_trait]
pub trait Watch: Send {
    /// The next changes, at least one, in rising revision order. [`Error::Compacted`] when the
    /// watcher fell too far behind; [`Error::Closed`] when the store ends.
    async fn recv(&mut self) -> Result<Vec<Event>, Error>;
}

/// The interface with etcd's semantics that both engines offer.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The revision of the last committed write.
    fn revision(&self) -> Revision;
    /// How much it holds, and may hold.
    fn usage(&self) -> Usage;
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), Error>;
    async fn range(&self, range: Range) -> Result<Slice, Error>;
    /// Writes if `expect` holds, else [`Error::Conflict`], and all guards, else [`Error::Guarded`];
    /// on an error nothing changes.
    async fn commit(&self, write: Write) -> Result<Committed, Error>;
    /// Every change to keys under `prefix` after revision `after`.
    /// [`Error::Compacted`] if that history is gone.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error>;
    /// Forgets history up to and including `revision` (never current values).
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
    /// Resolves when the store has failed for good: no write can happen any more.
    async fn failed(&self);
}

/// Bytes that count against the store's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used_bytes: usize,
    pub quota_bytes: usize,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not as expected; `current` is what it is.
    #[error("the key was changed by another writer")]
    Conflict { current: Option<Entry> },
    /// A key that the write depends on is not as it was judged.
    #[error("{key}, on which the write depends, was changed by another writer")]
    Guarded { key: Arc<str> },
    #[error("revision {asked} is compacted; the oldest is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("revision {asked} is in the future; the latest is {latest}")]
    Future { asked: Revision, latest: Revision },
    #[error("value of {size} bytes is over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// The quota is used up, or the share of it that this key's prefix has.
    #[error("the store's quota is used up")]
    NoSpace,
    /// Writes are refused (disk full, say) while reads go on; clears by itself.
    #[error("the store is read-only: {reason}")]
    ReadOnly { reason: String },
    #[error("{path}: corrupt at byte {offset}: {reason}")]
    Corrupt {
        path: std::path::PathBuf,
        offset: u64,
        reason: String,
    },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("the store is closed")]
    Closed,
}
