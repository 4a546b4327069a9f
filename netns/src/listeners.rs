//! Who of this process listens for changes of nf_tables, and large transactions that are not listened to.
//!
//! For whoever listens, in any namespace of the machine, the kernel writes a notice of each element that is
//! added: as much work as adding it. Those who listen have no use for them where this process itself
//! makes the change, so they leave for as long as it takes.
//! Always true:
//! - Nothing that others change goes unnoticed. The kernel counts transactions, so that it is known whether there was
//!   another one while nobody listened; if so, or if it cannot be told, those who listen hear that
//!   they have missed something ([`crate::monitor::Changes::overrun`]).
//! - Transactions of this process in one namespace wait for such a one, and are not taken for others'.
//!
//! [`crate::nft::Socket::commit`] uses this; a [`crate::monitor::Monitor`] is a listener.
#![allow(unsafe_code)] // a socket option that nix does not know

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        linux::fs::MetadataExt,
    },
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

const NF_TABLES: libc::c_int = 7;

/// A namespace by what `stat` says of it, which no other has as long as a socket is in it.
type Name = (u64, u64);

static NAMESPACES: LazyLock<Mutex<HashMap<Name, Weak<Listeners>>>> = LazyLock::new(Mutex::default);

/// Those of this process in one network namespace.
#[derive(Debug, Default)]
pub struct Listeners {
    all: Mutex<Vec<Weak<Listener>>>,
    /// Whoever writes nf_tables has this, and alone who is not listened to. Taken before `all`.
    writing: RwLock<()>,
    /// Others wrote at the same time as the last one that was not listened to.
    is_disturbed: AtomicBool,
}

impl Listeners {
    /// Those in the calling thread's namespace; `None` if it cannot be told which that is.
    pub fn here() -> Option<Arc<Self>> {
        let found = std::fs::metadata("/proc/thread-self/ns/net").ok()?;
        let name = (found.st_dev(), found.st_ino());
        let mut namespaces = locked(&NAMESPACES);
        if let Some(known) = namespaces.get(&name).and_then(Weak::upgrade) {
            return Some(known);
        }
        let new = Arc::<Self>::default();
        namespaces.retain(|_, listeners| listeners.strong_count() > 0);
        namespaces.insert(name, Arc::downgrade(&new));
        Some(new)
    }

    /// Takes in a socket that listens.
    pub fn add(&self, socket: BorrowedFd<'_>) -> io::Result<Arc<Listener>> {
        let listener = Arc::new(Listener::new(Some(socket.try_clone_to_owned()?)));
        let mut all = locked(&self.all);
        all.retain(|listener| listener.strong_count() > 0);
        all.push(Arc::downgrade(&listener));
        Ok(listener)
    }

    /// For a transaction that is listened to.
    pub fn write(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one that is not.
    pub fn write_alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.writing.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next large transaction should be listened to after all: others who write all the time would have
    /// it repeated for ever.
    pub fn take_disturbed(&self) -> bool {
        self.is_disturbed.swap(false, Ordering::Relaxed)
    }

    /// Nobody listens until this is dropped.
    pub fn leave(&self) -> Absence<'_> {
        let present = locked(&self.all);
        let present = present.iter().filter_map(Weak::upgrade);
        Absence {
            of: self,
            absent: present.filter(|listener| listener.leave()).collect(),
            is_back: false,
        }
    }
}

/// Listeners that do not listen. Unless it is shown that they missed nothing, they hear of that.
#[derive(Debug)]
#[must_use]
pub struct Absence<'a> {
    of: &'a Listeners,
    absent: Vec<Arc<Listener>>,
    is_back: bool,
}

impl Absence<'_> {
    /// They listen again. Then `has_missed_nothing` is asked.
    pub fn end(mut self, has_missed_nothing: impl FnOnce() -> bool) {
        self.come_back();
        if has_missed_nothing() {
            self.absent.clear();
        }
    }

    fn come_back(&mut self) {
        if !self.is_back {
            self.absent.iter().for_each(|listener| listener.join());
        }
        self.is_back = true;
    }
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        self.come_back();
        for listener in &self.absent {
            listener.tell(Hearing::Missed);
            self.of.is_disturbed.store(true, Ordering::Relaxed);
        }
    }
}

/// What a listener has heard since it was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hearing {
    /// Whatever there was.
    All,
    /// Perhaps not all.
    Missed,
    /// It hears nothing any more.
    Ended,
}

#[derive(Debug)]
pub struct Listener {
    /// The same socket as the monitor's; without one it is always there.
    socket: Option<OwnedFd>,
    hearing: Mutex<Hearing>,
    told: Notify,
}

impl Listener {
    /// One that nobody can ask to leave.
    pub fn alone() -> Arc<Self> {
        Arc::new(Self::new(None))
    }

    fn new(socket: Option<OwnedFd>) -> Self {
        Self {
            socket,
            hearing: Mutex::new(Hearing::All),
            told: Notify::new(),
        }
    }

    /// Once there may be something other to [`Listener::take`] than before.
    pub async fn told(&self) {
        self.told.notified().await;
    }

    pub fn take(&self) -> Hearing {
        std::mem::replace(&mut locked(&self.hearing), Hearing::All)
    }

    fn tell(&self, what: Hearing) {
        let mut hearing = locked(&self.hearing);
        *hearing = what.max(*hearing);
        self.told.notify_one();
    }

    /// Whether it has left: one that cannot goes on listening.
    fn leave(&self) -> bool {
        self.set(libc::NETLINK_DROP_MEMBERSHIP).is_ok()
    }

    fn join(&self) {
        if self.set(libc::NETLINK_ADD_MEMBERSHIP).is_err() {
            self.tell(Hearing::Ended);
        }
    }

    fn set(&self, option: libc::c_int) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let group = NF_TABLES;
        // SAFETY: the descriptor is open and the kernel reads exactly one c_int from `group`.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const group).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
