//! The writer thread: checks, logs, syncs, then shows what was committed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Quota, Shared, io_error, record, record::Record, state, state::State};
use crate::store::{
    Committed, Durability, Entry, Error, Event, Expect, Op, Revision, Space, Value, Write,
};

/// Writes that go out with one sync at most.
const BATCH: usize = 1024;
/// A relaxed write is on disk after this, if neither a synced one nor the kernel took it along.
const RELAXED: Duration = Duration::from_secs(60);
/// Zeros kept behind the last record. A write into them changes neither the file's size nor its
/// blocks, so its sync waits for the data alone and not for the filesystem's journal.
const ROOM: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// The log is written anew when it is over this and over four times what it holds, or twice where
/// that is much: it is read whole at the next start.
const REWRITE_BYTES: u64 = 4 << 20;
const LARGE_LOG: u64 = 64 << 20;
/// Revisions that may be given out before the next one must be promised on disk.
const CEILING_STEP: Revision = 4096;
/// An entry whose time is over and that could not be deleted is tried again after this.
const EXPIRE_AGAIN: Duration = Duration::from_secs(10);

pub enum Request {
    /// With the value as it is kept: whoever writes makes that, and not the one thread for all.
    Commit(Write, Value, oneshot::Sender<Result<Committed, Error>>),
    Compact(Revision, oneshot::Sender<()>),
}

#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Where the last record ends.
    length: u64,
    /// Where the zeros behind it end.
    room: u64,
    batch: u64,
    /// Revisions up to this are promised never to be given out again.
    ceiling: Revision,
    /// Relaxed writes are in the file but not synced since then.
    unsynced: Option<Instant>,
    /// After a failed sync nobody knows what is on disk: only a new file helps.
    must_rewrite: bool,
    /// When entries end, by key and revision, soonest first.
    expiries: BinaryHeap<Reverse<(u64, Arc<str>, Revision)>>,
}

impl Log {
    /// Reads the log of `dir`, or makes an empty one.
    pub fn open(dir: &Path, quota: Quota) -> Result<(Self, State), Error> {
        let path = dir.join("log");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Bytes::new(),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let scan = record::scan(&bytes).map_err(|damage| Error::Corrupt {
            path: path.clone(),
            offset: damage.offset as u64,
            reason: damage.reason.to_owned(),
        })?;
        let mut state = State::new(quota);
        let (mut ceiling, mut batch) = (0, 0);
        let mut expiries = HashMap::new();
        for record in scan.records {
            batch = batch.max(record.batch());
            match record {
                Record::Ceiling { revision, .. } => ceiling = ceiling.max(revision),
                Record::Put {
                    revision,
                    created,
                    expires,
                    key,
                    value,
                    ..
                } => {
                    state.revision = state.revision.max(revision);
                    expiries.insert(key.clone(), (expires, revision));
                    // A copy of its own: a slice would keep the whole log in memory.
                    let value = Value::new(Bytes::copy_from_slice(&value));
                    state.restore(Entry {
                        key,
                        value,
                        create_revision: created,
                        mod_revision: revision,
                    });
                }
                Record::Delete { revision, key, .. } => {
                    state.revision = state.revision.max(revision);
                    expiries.remove(&key);
                    state.forget(&key);
                }
            }
        }
        // Relaxed writes may have been lost with revisions that clients saw.
        state.revision = state.revision.max(ceiling);
        state.compacted = state.revision;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let good = scan.good as u64;
        let torn = bytes.iter().skip(scan.good).any(|byte| *byte != 0);
        if torn {
            file.set_len(good)
                .map_err(io_error("cut the torn end of", &path))?;
        }
        // What a killed daemon wrote may not be on disk yet; it counts from now on.
        file.sync_data().map_err(io_error("sync", &path))?;
        let expiries = expiries
            .into_iter()
            .filter(|(_, (expires, _))| *expires > 0)
            .map(|(key, (expires, revision))| Reverse((expires, key, revision)))
            .collect();
        let mut log = Self {
            path,
            file,
            length: good,
            room: if torn { good } else { bytes.len() as u64 },
            batch: batch + 1,
            ceiling,
            unsynced: None,
            must_rewrite: false,
            expiries,
        };
        if log.length == 0 {
            log.write(record::MAGIC)
                .and_then(|()| log.sync())
                .map_err(io_error("write", &log.path))?;
            sync_dir(dir)?;
        }
        Ok((log, state))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all_at(bytes, self.length) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                if self.length > self.room {
                    self.make_room();
                }
                Ok(())
            }
            Err(error) => {
                // Half a record must not stay in front of later ones.
                match self.file.set_len(self.length) {
                    Ok(()) => self.room = self.length,
                    Err(_) => self.must_rewrite = true,
                }
                Err(error)
            }
        }
    }

    /// Page by page: of what was written at once the kernel keeps one large page in its cache, and
    /// counts each later write into it as a write of all of it.
    fn make_room(&mut self) {
        self.room = self.length;
        while self.room < self.length + ROOM {
            let part = PAGE - self.room % PAGE;
            let zeros = &[0; PAGE as usize][..part as usize];
            if self.file.write_all_at(zeros, self.room).is_err() {
                // A disk without this room may still have enough for the records.
                break;
            }
            self.room += part;
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = None;
        match self.file.sync_data() {
            Ok(()) => {
                self.batch += 1;
                Ok(())
            }
            Err(error) => {
                self.must_rewrite = true;
                Err(error)
            }
        }
    }

    /// Writes a new log that holds the current entries only.
    fn rewrite(&mut self, state: &State, expiries: &HashMap<Arc<str>, u64>) -> Result<(), Error> {
        let staging = self.path.with_extension("new");
        let ceiling = self.ceiling.max(state.revision);
        let mut bytes = record::MAGIC.to_vec();
        Record::Ceiling {
            batch: self.batch,
            revision: ceiling,
        }
        .encode(&mut bytes);
        let mut file = File::create(&staging).map_err(io_error("create", &staging))?;
        let mut length = 0;
        let mut flush = |bytes: &mut Vec<u8>| {
            length += bytes.len() as u64;
            let written = file.write_all(bytes);
            bytes.clear();
            written.map_err(io_error("write", &staging))
        };
        for entry in state.entries() {
            let expires = expiries.get(&entry.key).copied().unwrap_or(0);
            put(self.batch, entry, entry.value.bytes(), expires).encode(&mut bytes);
            if bytes.len() > 1 << 20 {
                flush(&mut bytes)?;
            }
        }
        flush(&mut bytes)?;
        file.sync_all().map_err(io_error("sync", &staging))?;
        std::fs::rename(&staging, &self.path).map_err(io_error("rename", &staging))?;
        sync_dir(self.path.parent().unwrap_or(Path::new("/")))?;
        self.file = file;
        (self.length, self.room) = (length, length);
        (self.batch, self.ceiling) = (self.batch + 1, ceiling);
        (self.unsynced, self.must_rewrite) = (None, false);
        Ok(())
    }

    fn is_mostly_garbage(&self, state: &State) -> bool {
        let times = if self.length > LARGE_LOG { 2 } else { 4 };
        self.length > REWRITE_BYTES && self.length > times * state.live_bytes as u64
    }
}

fn put(batch: u64, entry: &Entry, value: Bytes, expires: u64) -> Record {
    Record::Put {
        batch,
        revision: entry.mod_revision,
        created: entry.create_revision,
        expires,
        key: entry.key.clone(),
        value,
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", dir))
}

/// Serves requests until every sender is gone.
pub fn run(mut log: Log, shared: &Shared, inbox: &mpsc::Receiver<Request>) {
    let mut live_expiries: HashMap<Arc<str>, u64> = log
        .expiries
        .iter()
        .map(|Reverse((at, key, _))| (key.clone(), *at))
        .collect();
    loop {
        let first = match wait(&log, inbox) {
            Woken::Request(request) => Some(request),
            Woken::Deadline => None,
            Woken::Closed => break,
        };
        let mut commits = Vec::new();
        for request in first.into_iter().chain(inbox.try_iter().take(BATCH)) {
            match request {
                Request::Commit(write, kept, reply) => commits.push((write, kept, Some(reply))),
                Request::Compact(revision, reply) => {
                    shared
                        .state
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .compact(revision);
                    let _ = reply.send(());
                }
            }
        }
        let over = expired(&mut log);
        commit(&mut log, shared, commits, over, &mut live_expiries);
        if log.unsynced.is_some_and(|since| since.elapsed() >= RELAXED)
            && let Err(error) = log.sync()
        {
            tracing::error!(%error, path = %log.path.display(), "sync failed");
        }
        let state = shared.read();
        if log.is_mostly_garbage(&state)
            && let Err(error) = log.rewrite(&state, &live_expiries)
        {
            tracing::warn!(%error, "the log could not be shortened");
        }
    }
    if log.unsynced.is_some()
        && let Err(error) = log.sync()
    {
        tracing::error!(%error, path = %log.path.display(), "sync failed");
    }
}

enum Woken {
    Request(Request),
    Deadline,
    Closed,
}

fn wait(log: &Log, inbox: &mpsc::Receiver<Request>) -> Woken {
    let sync_in = log
        .unsynced
        .map(|since| RELAXED.saturating_sub(since.elapsed()));
    let expiry_in = log
        .expiries
        .peek()
        .map(|Reverse((at, ..))| Duration::from_secs(at.saturating_sub(now())));
    match sync_in.into_iter().chain(expiry_in).min() {
        None => inbox.recv().map_or(Woken::Closed, Woken::Request),
        Some(timeout) => match inbox.recv_timeout(timeout) {
            Ok(request) => Woken::Request(request),
            Err(mpsc::RecvTimeoutError::Timeout) => Woken::Deadline,
            Err(mpsc::RecvTimeoutError::Disconnected) => Woken::Closed,
        },
    }
}

/// Deletes for the entries whose time is over.
fn expired(log: &mut Log) -> Vec<Write> {
    let now = now();
    let mut writes = Vec::new();
    while log
        .expiries
        .peek()
        .is_some_and(|Reverse((at, ..))| *at <= now)
    {
        if let Some(Reverse((_, key, revision))) = log.expiries.pop() {
            let expect = Expect::ModRevision(revision);
            writes.push(Write {
                key,
                expect,
                guards: Vec::new(),
                op: Op::Delete,
                durability: Durability::Relaxed,
                space: Space::Reserved,
            });
        }
    }
    writes
}

type Reply = Option<oneshot::Sender<Result<Committed, Error>>>;

/// A write with the value as it is kept.
type Asked = (Write, Value, Reply);

/// That nobody has asked for: a deletion, which has no value.
fn deletion(write: Write) -> Asked {
    (write, Value::default(), None)
}

/// Checks a batch against what is there, logs it, and shows it when it is as durable as asked. The
/// time of `over` has passed: that needs no disk.
fn commit(
    log: &mut Log,
    shared: &Shared,
    mut commits: Vec<Asked>,
    over: Vec<Write>,
    live_expiries: &mut HashMap<Arc<str>, u64>,
) {
    commits.extend(over.iter().cloned().map(deletion));
    if commits.is_empty() {
        return;
    }
    let answer = |reply: Reply, result| {
        if let Some(reply) = reply {
            // Whoever asked may have gone away; the write stands.
            let _ = reply.send(result);
        }
    };
    // Read before, for what is over is written below.
    let rewritten = match log.must_rewrite {
        true => log.rewrite(&shared.read(), live_expiries),
        false => Ok(()),
    };
    if let Err(error) = rewritten {
        let reason = error.to_string();
        for (.., reply) in commits {
            answer(
                reply,
                Err(Error::ReadOnly {
                    reason: reason.clone(),
                }),
            );
        }
        expire_unlogged(log, shared, over, live_expiries);
        return;
    }
    let plan = plan(log, &shared.read(), commits);
    for (reply, error) in plan.refused {
        answer(reply, Err(error));
    }
    if plan.accepted.is_empty() {
        return;
    }
    let logged = log.write(&plan.bytes).and_then(|()| {
        if plan.sync {
            return log.sync();
        }
        log.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    });
    if let Err(error) = logged {
        let reason = format!("write to {}: {error}", log.path.display());
        for (_, reply, _) in plan.accepted {
            answer(
                reply,
                Err(Error::ReadOnly {
                    reason: reason.clone(),
                }),
            );
        }
        expire_unlogged(log, shared, over, live_expiries);
        return;
    }
    log.ceiling = plan.ceiling;
    let replies = show(log, shared, plan.accepted, live_expiries);
    for (reply, revision) in replies {
        answer(reply, Ok(Committed { revision }));
    }
}

/// Deletes what cannot be logged as deleted. Each entry says in the log when its time is over, so that
/// it goes again should it be read from there; and revisions up to the ceiling are not given out twice.
fn expire_unlogged(
    log: &mut Log,
    shared: &Shared,
    over: Vec<Write>,
    live_expiries: &mut HashMap<Arc<str>, u64>,
) {
    if over.is_empty() {
        return;
    }
    let again = now() + EXPIRE_AGAIN.as_secs();
    let due = over.iter().filter_map(|write| match write.expect {
        Expect::ModRevision(revision) => Some((again, write.key.clone(), revision)),
        _ => None,
    });
    let due: Vec<_> = due.map(Reverse).collect();
    let commits = over.into_iter().map(deletion).collect();
    let plan = plan(log, &shared.read(), commits);
    if plan.ceiling > log.ceiling {
        log.expiries.extend(due);
        return;
    }
    show(log, shared, plan.accepted, live_expiries);
}

/// Makes what was committed what readers and watchers see.
fn show(
    log: &mut Log,
    shared: &Shared,
    accepted: Vec<(Event, Reply, u64)>,
    live_expiries: &mut HashMap<Arc<str>, u64>,
) -> Vec<(Reply, Revision)> {
    let second = now();
    let mut replies = Vec::with_capacity(accepted.len());
    let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
    for (event, reply, expires) in accepted {
        let revision = event.revision();
        if expires > 0 {
            log.expiries
                .push(Reverse((expires, event.key().clone(), revision)));
            live_expiries.insert(event.key().clone(), expires);
        } else {
            live_expiries.remove(event.key());
        }
        state.apply(event, second);
        replies.push((reply, revision));
    }
    shared.revision.send_replace(state.revision);
    replies
}

/// What a batch will do.
struct Plan {
    bytes: Vec<u8>,
    accepted: Vec<(Event, Reply, u64)>,
    refused: Vec<(Reply, Error)>,
    sync: bool,
    ceiling: Revision,
}

fn plan(log: &Log, state: &State, commits: Vec<Asked>) -> Plan {
    let mut plan = Plan {
        bytes: Vec::new(),
        accepted: Vec::new(),
        refused: Vec::new(),
        sync: false,
        ceiling: log.ceiling,
    };
    // What earlier writes of this batch made of a key.
    let mut pending: HashMap<Arc<str>, Option<Entry>> = HashMap::new();
    let mut revision = state.revision;
    // What earlier writes of this batch take.
    let mut grown = 0;
    for (write, kept, reply) in commits {
        let current = pending
            .get(&write.key)
            .cloned()
            .unwrap_or_else(|| state.get(&write.key).cloned());
        let broken = write.guards.iter().find(|guard| {
            let found = match pending.get(&guard.key) {
                Some(found) => found.as_ref(),
                None => state.get(&guard.key),
            };
            !state::holds(guard.expect, found)
        });
        if let Some(guard) = broken {
            let key = guard.key.clone();
            plan.refused.push((reply, Error::Guarded { key }));
            continue;
        }
        let deletes_nothing = current.is_none() && matches!(write.op, Op::Delete);
        if !state::holds(write.expect, current.as_ref()) || deletes_nothing {
            plan.refused.push((reply, Error::Conflict { current }));
            continue;
        }
        if let Op::Put { value, .. } = &write.op {
            let new = Quota::cost(&write.key, value.len());
            let old = current
                .as_ref()
                .map_or(0, |entry| Quota::cost(&entry.key, entry.value.size()));
            let growth = new.saturating_sub(old);
            if !state.has_room(&write.key, growth, grown, write.space) {
                plan.refused.push((reply, Error::NoSpace));
                continue;
            }
            grown += growth;
        }
        revision += 1;
        plan.sync |= write.durability == Durability::Synced;
        if revision > plan.ceiling {
            plan.ceiling = revision + CEILING_STEP;
            plan.sync = true;
            Record::Ceiling {
                batch: log.batch,
                revision: plan.ceiling,
            }
            .encode(&mut plan.bytes);
        }
        let (event, expires) = match (write.op, current) {
            (Op::Put { value, ttl }, previous) => {
                let create_revision = previous
                    .as_ref()
                    .map_or(revision, |entry| entry.create_revision);
                let entry = Entry {
                    key: write.key,
                    value: kept,
                    create_revision,
                    mod_revision: revision,
                };
                let expires = ttl.map_or(0, |ttl| now() + ttl.as_secs().max(1));
                put(log.batch, &entry, value, expires).encode(&mut plan.bytes);
                pending.insert(entry.key.clone(), Some(entry.clone()));
                (Event::Put { entry, previous }, expires)
            }
            (Op::Delete, Some(previous)) => {
                Record::Delete {
                    batch: log.batch,
                    revision,
                    key: write.key.clone(),
                }
                .encode(&mut plan.bytes);
                pending.insert(write.key, None);
                (Event::Delete { revision, previous }, 0)
            }
            (Op::Delete, None) => continue,
        };
        plan.accepted.push((event, reply, expires));
    }
    plan
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use tokio::sync::watch;

    use super::*;

    fn put(key: &str, ttl: Option<Duration>) -> Write {
        Write {
            key: key.into(),
            expect: Expect::Absent,
            guards: Vec::new(),
            op: Op::Put {
                value: Bytes::from_static(b"value"),
                ttl,
            },
            durability: Durability::Relaxed,
            space: Space::Ordinary,
        }
    }

    fn asked(write: Write, reply: Reply) -> Asked {
        (write, Value::new(Bytes::from_static(b"value")), reply)
    }

    #[test]
    fn what_is_over_goes_though_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, state) = Log::open(dir.path(), Quota::default()).unwrap();
        let shared = Shared {
            revision: watch::channel(state.revision).0,
            writing: watch::channel(true).0,
            state: RwLock::new(state),
        };
        let mut live = HashMap::new();
        let hour = Some(Duration::from_secs(3600));
        let events = ["a", "b", "c"];
        let commits = events.map(|key| asked(put(key, hour), None)).into();
        commit(&mut log, &shared, commits, Vec::new(), &mut live);
        let revision = |key: &str| shared.read().get(key).map(|entry| entry.mod_revision);
        let ends = |log: &mut Log, key: &str| {
            let end = (0, key.into(), revision(key).unwrap());
            log.expiries = BinaryHeap::from([Reverse(end)]);
        };
        // Full, and no room for a new log either.
        log.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        std::fs::create_dir(dir.path().join("log.new")).unwrap();
        for key in ["a", "b"] {
            ends(&mut log, key);
            let (reply, mut answer) = oneshot::channel();
            let over = expired(&mut log);
            let commits = vec![asked(put("user", None), Some(reply))];
            commit(&mut log, &shared, commits, over, &mut live);
            let refused = answer.try_recv().unwrap();
            assert!(
                matches!(refused, Err(Error::ReadOnly { .. })),
                "{refused:?}"
            );
            assert_eq!(revision(key), None, "{key}");
            assert!(!live.contains_key(key));
        }
        assert_eq!(*shared.revision.borrow(), shared.read().revision);
        // Without a revision that is promised it waits, and is not forgotten.
        ends(&mut log, "c");
        log.ceiling = shared.read().revision;
        let over = expired(&mut log);
        commit(&mut log, &shared, Vec::new(), over, &mut live);
        assert!(revision("c").is_some());
        let Reverse((again, key, _)) = log.expiries.peek().unwrap();
        assert!(*again > now() && &**key == "c");
    }
}
