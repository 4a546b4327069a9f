//! Waiting for what the kernel tells: a group that empties or freezes (v2), processes that end.
#![allow(unsafe_code)] // pidfd_open(2) has no safe wrapper in nix

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Most processes watched at once; callers look for others afterwards.
const WATCHED: usize = 64;

/// Waits until `cgroup.events` of a v2 group has the line `wanted`, and says whether it came in time.
/// A group that is gone is done with waiting. `populated` counts the groups below too.
/// Source: kernel, Documentation/admin-guide/cgroup-v2.rst, "[Un]populated Notification".
pub(crate) fn for_event(dir: &Path, wanted: &str, deadline: Instant) -> io::Result<bool> {
    let mut file = match File::open(dir.join("cgroup.events")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    loop {
        // Reading arms the next notice: a change between it and poll is not lost.
        let mut text = String::new();
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        match read {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(true),
            other => other?,
        };
        if text.lines().any(|line| line == wanted) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        ready(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], left)?;
    }
}

/// Waits until some of `pids` have ended: all of the first few, or until `patience` is over.
pub(crate) fn for_ends(pids: impl Iterator<Item = i32>, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    for pid in pids.take(WATCHED) {
        let left = deadline.saturating_duration_since(Instant::now());
        match pidfd(pid) {
            Ok(process) => {
                ready(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], left)?;
            }
            Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Returns also when nothing happened in time, or a signal came.
fn ready(fds: &mut [PollFd<'_>], patience: Duration) -> io::Result<()> {
    // Rounded up, so that the last millisecond is not spent spinning.
    let patience = PollTimeout::try_from(patience + Duration::from_millis(1));
    match poll(fds, patience.unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed; the descriptor that comes back is new and ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
