//! A whole host of one's own: namespaces for network, mounts, name, IPC and process ids, held by its first process.
//!
//! When that process ends, the kernel ends all others in its process-id namespace, and the namespaces go.
//! Always true: no thread of the caller leaves its namespaces but one that ends with the work.
#![allow(unsafe_code)] // two calls about descriptors of processes that nix does not know

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::signal::Signal,
};

use crate::{Error, namespace::on_thread};

/// All that a host has of its own. Users and control groups are the machine's.
const OWN: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWPID);

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Io {
        action,
        source: source.into(),
    }
}

/// Runs `work` in new namespaces. The first process that it starts is the host's first. Mounts of the machine
/// that come and go later do so in the host too, and none of the host's is seen outside.
pub fn run_in_new<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_thread(|| {
        unshare(OWN).map_err(failed("make a host's namespaces"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .map_err(failed("part a host's mounts from the machine's"))?;
        Ok(work())
    })
}

/// A process, whatever becomes of its number.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// Absent if there is none.
    pub fn open(pid: i32) -> Result<Self, Error> {
        let fd = pidfd_open(pid).map_err(failed("open the process"))?;
        Ok(Self { pid, fd })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Absent if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        pidfd_send_signal(&self.fd, signal).map_err(failed("send the process a signal"))
    }

    /// Whether it has ended by then; for the first process of a host: with all others of that host, those that
    /// somebody outside has started only once they were waited for there.
    pub fn has_ended_within(&self, longest: Duration) -> Result<bool, Error> {
        let end = Instant::now() + longest;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut waited = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waited, timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(failed("wait for the end of the process")(errno)),
            }
        }
    }

    /// Runs `work` in the namespaces of the host whose first process this is. Processes that it starts belong to
    /// that host; the thread itself keeps its process id.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            // Threads share their working directory, and who enters other mounts must not.
            unshare(CloneFlags::CLONE_FS).map_err(failed("part the thread's folders"))?;
            setns(&self.fd, OWN).map_err(failed("enter the host's namespaces"))?;
            Ok(work())
        })
    }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers alone.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(result) {
        // SAFETY: the kernel just made this descriptor for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pidfd_send_signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    let (fd, none) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the descriptor is open, and without details of the signal there is nothing to read.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, none, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn first() -> std::process::Child {
        run_in_new(|| {
            Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
        })
        .unwrap()
        .unwrap()
    }

    #[test]
    #[ignore = "needs root"]
    fn a_host_ends_with_its_first_process() {
        let mut child = first();
        let host = Process::open(child.id() as i32).unwrap();
        assert!(!host.has_ended_within(Duration::ZERO).unwrap());
        let mut second = host
            .run(|| Command::new("sleep").arg("1000").spawn())
            .unwrap()
            .unwrap();
        let links = host.run(|| Command::new("ip").args(["-o", "link"]).output());
        let links = String::from_utf8(links.unwrap().unwrap().stdout).unwrap();
        assert_eq!(links.lines().count(), 1, "{links}");
        host.signal(Signal::SIGKILL).unwrap();
        // Ours to wait for, and the host is not at its end before.
        assert!(!second.wait().unwrap().success());
        assert!(host.has_ended_within(Duration::from_secs(10)).unwrap());
        assert!(!child.wait().unwrap().success());
        let gone = host.signal(Signal::SIGKILL);
        assert!(gone.is_err_and(|error| error.is_absent()));
    }
}
