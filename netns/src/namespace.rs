//! Network namespaces as descriptors, and work done inside one.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::at("/proc/thread-self/ns/net")
    }

    pub fn of_process(pid: i32) -> Result<Self, Error> {
        Self::at(format!("/proc/{pid}/ns/net"))
    }

    /// From a path such as `/proc/1/ns/net` or a bind mount of one.
    pub fn at(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        match File::open(path) {
            Ok(file) => Ok(Self(file.into())),
            Err(source) => Err(Error::Path {
                action: "open the network namespace",
                path: path.into(),
                source,
            }),
        }
    }

    /// A new, empty namespace: only `lo`, and that down.
    pub fn create() -> Result<Self, Error> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Io {
                action: "make a network namespace",
                source: errno.into(),
            })?;
            Self::current()
        })
    }

    /// Runs `work` in this namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        run_in(self.0.as_fd(), work)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Namespace {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// Runs `work` in the namespace `netns` on a thread that ends with it, so that no other thread
/// ever changes its namespace.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Io {
            action: "enter the network namespace",
            source: errno.into(),
        })?;
        Ok(work())
    })
}

/// Runs `work` on a thread that ends with it: what it changes of itself concerns nobody else.
pub(crate) fn on_thread<T: Send>(
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::Io {
                action: "start a thread",
                source,
            })?;
        thread.join().unwrap_or(Err(Error::Panicked))
    })
}
