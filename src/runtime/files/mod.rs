//! Work on files that somebody else made: a pod, an image, a registry.
//!
//! The only way in which the daemon reads, walks, removes, measures or re-owns such files.
//! Always true:
//! - No function recurses: the stack and the number of open descriptors do not depend on the tree.
//! - No file is read whole without a limit.
//! - Links are never followed and other filesystems never entered.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::OFlag;

/// What one tree takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Removes a file or a folder with all below it. One that is not there is as good as removed.
///
/// Errors: the first entry that could not be removed; what could be is gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// What `path` and all below it take, like `du -x`: a file of several names counts once. What goes
/// meanwhile is left out.
pub fn measure_tree(path: &Path) -> Usage {
    let Ok(top) = std::fs::symlink_metadata(path) else {
        return Usage::default();
    };
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut left = vec![(path.to_owned(), top.clone())];
    while let Some((path, found)) = left.pop() {
        if found.dev() != top.dev() || (found.nlink() > 1 && !seen.insert(found.ino())) {
            continue;
        }
        usage.bytes += found.blocks() * 512;
        usage.inodes += 1;
        if !found.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if let Ok(found) = std::fs::symlink_metadata(entry.path()) {
                left.push((entry.path(), found));
            }
        }
    }
    usage
}

/// Reads a regular file of at most `limit` bytes without following a link at its end.
///
/// Errors: `FileTooLarge` when there is more, without having read it; `InvalidInput` when it is no
/// regular file (a pipe or a device would block or never end).
pub fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    read_file_at_most(&file, limit)
}

/// As [`read_at_most`], of a file that is open already.
pub fn read_file_at_most(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        )
    };
    if meta.len() > limit {
        return Err(too_large());
    }
    // It may grow while it is read.
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    let more = limit.saturating_add(1);
    let read = file.take(more).read_to_end(&mut bytes)?;
    if read as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}
