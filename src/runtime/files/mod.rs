//! Work on files that somebody else made: a pod, an image, a registry.
//!
//! The only way in which the daemon reads, walks, removes or measures such files.
//! Always true:
//! - No function recurses: the stack and the number of open descriptors do not depend on the tree.
//! - No path is longer than what the caller gave: entries are reached one by one, from an open folder.
//! - No file is read whole without a limit.
//! - Links are never followed and mounts never entered.
//!
//! `walk.rs` is the one walk; `remove.rs`, `measure.rs` and `group.rs` are its visitors.

mod group;
mod listing;
mod measure;
mod remove;
mod scratch;
#[cfg(test)]
mod tests;
mod walk;

pub use group::{Given, give_to_group, lacks_group};
pub use measure::{Usage, measure_tree};
pub use remove::{remove_tree, remove_tree_at};
pub use scratch::Scratch;

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sys::stat::{Mode, fstat},
};

/// Opens a regular file for reading without following a link at its end. Never blocks.
///
/// Errors: `InvalidInput` when it is no regular file (a pipe or a device would block or never end).
pub fn open_file(path: &Path) -> io::Result<File> {
    open_with(path, OFlag::O_NOFOLLOW)
}

/// As [`open_file`], links followed: for paths that the node's administrator gave.
pub fn open_following(path: &Path) -> io::Result<File> {
    open_with(path, OFlag::empty())
}

fn open_with(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_PATH | OFlag::O_CLOEXEC;
    open_place(&nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens for reading what an `O_PATH` descriptor stands for, if it is a regular file. A device that
/// a container made is never opened: that alone may do something.
pub fn open_place(place: &OwnedFd) -> io::Result<File> {
    check_regular(fstat(place)?.st_mode)?;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path.as_str(), flags, Mode::empty())?.into())
}

/// Reads a regular file of at most `limit` bytes without following a link at its end.
///
/// Errors: `FileTooLarge` when there is more, without having read it; `InvalidInput` as
/// [`open_file`].
pub fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_file_at_most(&open_file(path)?, limit)
}

/// As [`read_at_most`], of a file that is open already.
pub fn read_file_at_most(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    check_regular(fstat(file)?.st_mode)?;
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        )
    };
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_large());
    }
    // It may grow while it is read.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    let more = limit.saturating_add(1);
    let read = file.take(more).read_to_end(&mut bytes)?;
    if read as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// As [`read_at_most`], of text.
pub fn read_text_at_most(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read_at_most(path, limit)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The beginning of a regular file, at most `bytes` of it.
pub fn read_start(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    open_file(path)?.take(bytes).read_to_end(&mut start)?;
    Ok(start)
}

fn check_regular(mode: libc::mode_t) -> io::Result<()> {
    if mode & libc::S_IFMT == libc::S_IFREG {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "not a regular file",
    ))
}
