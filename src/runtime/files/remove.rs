//! Taking a tree away.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{
    listing::Kind,
    walk::{Entry, Step, Visitor, walk},
};

/// How often folders that were emptied and are not empty are emptied again: somebody still writes,
/// and may write faster than we remove.
const MOST_AGAIN: u32 = 4;

/// Removes a file or a folder with all below it. One that is not there is as good as removed.
///
/// What is mounted below is neither entered nor removed. `path` itself may be a mount point: then
/// only what is in it goes.
///
/// Errors: the first entry that could not be removed; what could be is gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} names nothing that may be removed"),
        ));
    };
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match open(parent, flags, Mode::empty()) {
        Ok(parent) => remove_tree_at(parent.as_fd(), name),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// As [`remove_tree`], of `name` in an open folder.
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut remover = Remover::default();
    loop {
        let top = match openat(parent, name, flags, Mode::empty()) {
            Ok(top) => top,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        walk(top, &mut remover)?;
        if let Some(error) = remover.first {
            return Err(error);
        }
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTEMPTY) if remover.once_more() => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[derive(Default)]
struct Remover {
    first: Option<io::Error>,
    again: u32,
}

impl Remover {
    fn note(&mut self, error: io::Error) {
        self.first.get_or_insert(error);
    }

    /// Not after an error: what could not be removed once would be tried at every level.
    fn once_more(&mut self) -> bool {
        self.again += 1;
        self.first.is_none() && self.again <= MOST_AGAIN
    }
}

impl Visitor for Remover {
    fn visit(&mut self, entry: &Entry<'_>) -> Step {
        if entry.kind == Kind::Folder {
            return Step::Enter;
        }
        match unlinkat(entry.parent, entry.name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Step::Over,
            Err(Errno::EISDIR) => Step::Enter,
            Err(errno) => {
                self.note(entry.failed("remove", errno));
                Step::Over
            }
        }
    }

    fn leave(&mut self, entry: &Entry<'_>) -> Step {
        match unlinkat(entry.parent, entry.name, UnlinkatFlags::RemoveDir) {
            // A file by now: it is met again.
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => Step::Over,
            Err(Errno::ENOTEMPTY) if self.once_more() => Step::Enter,
            Err(errno) => {
                self.note(entry.failed("remove", errno));
                Step::Over
            }
        }
    }

    fn failed(&mut self, error: io::Error) {
        self.note(error);
    }
}
