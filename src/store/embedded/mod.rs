//! The embedded engine: one log file in one folder, everything else in memory.
//!
//! A writer thread takes all writes in order. Those that arrive while it syncs go out together with
//! the next sync (group commit). A write becomes visible only after it is as durable as asked.
//! When the log has become much larger than what it holds, it is written anew.
//!
//! `record.rs` has the bytes, `state.rs` what is in memory, `quota.rs` how much that may be,
//! `writer.rs` the thread.

mod quota;
mod record;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, mpsc},
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{oneshot, watch};

use super::{
    Committed, Entry, Error, Event, Op, Range, Revision, Slice, Store, Usage, Value, Watch, Write,
};
pub use quota::Quota;
use state::State;

/// etcd's limit on a request.
const MAX_VALUE_BYTES: usize = 3 << 19;
/// Events handed to a watcher at once.
const WATCH_CHUNK: usize = 1000;

/// The store in one folder. The writer ends when the last handle is dropped.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<writer::Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
    _lock: Flock<std::fs::File>,
}

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    /// The visible revision; watchers wait on it.
    revision: watch::Sender<Revision>,
    /// Whether the writer is there.
    writing: watch::Sender<bool>,
}

/// Says that the writer has ended, however it has.
struct Writing(Arc<Shared>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.send_replace(false);
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    /// Opens or makes the store in `dir`, with the usual quota.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, Quota::default())
    }

    /// Opens or makes the store in `dir`. A second process on the same folder is refused. What
    /// is there is read even if it is more than `quota`.
    pub fn open_with(dir: &Path, quota: Quota) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock = lock(dir)?;
        let (log, state) = writer::Log::open(dir, quota)?;
        let shared = Arc::new(Shared {
            revision: watch::channel(state.revision).0,
            writing: watch::channel(true).0,
            state: RwLock::new(state),
        });
        let (requests, inbox) = mpsc::channel();
        let for_writer = Writing(shared.clone());
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer::run(log, &for_writer.0, &inbox))
            .map_err(io_error("start a thread for", dir))?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
            _lock: lock,
        })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> writer::Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(request(reply)).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // It ends as soon as the channel is closed and what came before is synced.
            let _ = writer.join();
        }
    }
}

fn lock(dir: &Path) -> Result<Flock<std::fs::File>, Error> {
    let path = dir.join("lock");
    let file = std::fs::File::create(&path).map_err(io_error("create", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| Error::Io {
        action: "lock (is another vetch using it?)",
        path,
        source: errno.into(),
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    fn revision(&self) -> Revision {
        *self.shared.revision.borrow()
    }

    fn usage(&self) -> Usage {
        self.shared.read().usage()
    }

    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), Error> {
        let state = self.shared.read();
        Ok((state.get(key).cloned(), state.revision))
    }

    async fn range(&self, range: Range) -> Result<Slice, Error> {
        self.shared.read().range(&range)
    }

    async fn commit(&self, write: Write) -> Result<Committed, Error> {
        let kept = match &write.op {
            Op::Put { value, .. } if value.len() > MAX_VALUE_BYTES => {
                return Err(Error::TooLarge {
                    size: value.len(),
                    limit: MAX_VALUE_BYTES,
                });
            }
            Op::Put { value, .. } => Value::new(value.clone()),
            Op::Delete => Value::default(),
        };
        self.ask(|reply| writer::Request::Commit(write, kept, reply))
            .await?
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error> {
        let state = self.shared.read();
        if after < state.compacted {
            return Err(Error::Compacted {
                asked: after,
                oldest: state.compacted,
            });
        }
        Ok(Box::new(Watcher {
            shared: self.shared.clone(),
            revision: self.shared.revision.subscribe(),
            prefix: prefix.to_owned(),
            seen: after,
        }))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(|reply| writer::Request::Compact(revision, reply))
            .await
    }

    async fn failed(&self) {
        let mut writing = self.shared.writing.subscribe();
        // The sender is in `shared`, so that this ends only by the writer's end.
        let _ = writing.wait_for(|writing| !writing).await;
    }
}

/// Reads the shared history from where it was; holds nothing of its own, so that any number of
/// slow watchers costs nothing.
struct Watcher {
    shared: Arc<Shared>,
    revision: watch::Receiver<Revision>,
    prefix: String,
    seen: Revision,
}

#[async_trait::async_trait]
impl Watch for Watcher {
    async fn recv(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            self.revision.borrow_and_update();
            {
                let state = self.shared.read();
                if self.seen < state.compacted {
                    return Err(Error::Compacted {
                        asked: self.seen,
                        oldest: state.compacted,
                    });
                }
                let mut events = Vec::new();
                for event in state.after(self.seen) {
                    self.seen = event.revision();
                    if event.key().starts_with(&self.prefix) {
                        events.push(event.clone());
                        if events.len() == WATCH_CHUNK {
                            break;
                        }
                    }
                }
                if !events.is_empty() {
                    return Ok(events);
                }
            }
            self.revision.changed().await.map_err(|_| Error::Closed)?;
        }
    }
}
