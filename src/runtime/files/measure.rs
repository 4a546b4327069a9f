//! How much of a disk a tree takes.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{FileStat, Mode, lstat},
};

use super::{
    listing::Kind,
    walk::{Entry, Step, Visitor, walk},
};

/// What one tree takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// What `path` and all below it take, like `du -x`. What goes meanwhile is left out.
///
/// A file of several names counts once if all are in the tree: each name counts for its share.
/// Remembering such files instead would take memory that the tree's owner decides on.
pub fn measure_tree(path: &Path) -> Usage {
    let Ok(stat) = lstat(path) else {
        return Usage::default();
    };
    let mut sum = Sum::default();
    sum.add(&stat);
    if is_folder(&stat)
        && let Ok(top) = open_top(path)
        && let Err(error) = walk(top, &mut sum)
    {
        tracing::warn!(path = %path.display(), %error, "a tree was measured in part only");
    }
    sum.usage()
}

fn open_top(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}

fn is_folder(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Parts of a byte and of an inode: enough for shares among as many names as a file can have.
const PARTS: u128 = 1 << 32;

#[derive(Default)]
struct Sum {
    bytes: u128,
    inodes: u128,
}

impl Sum {
    fn add(&mut self, stat: &FileStat) {
        let names = match is_folder(stat) {
            true => 1, // its links are its folders
            false => u128::from(stat.st_nlink.max(1)),
        };
        self.bytes += u128::from(stat.st_blocks.max(0) as u64 * 512) * PARTS / names;
        self.inodes += PARTS / names;
    }

    fn usage(&self) -> Usage {
        let whole = |parts: u128| u64::try_from((parts + PARTS / 2) / PARTS).unwrap_or(u64::MAX);
        Usage {
            bytes: whole(self.bytes),
            inodes: whole(self.inodes),
        }
    }
}

impl Visitor for Sum {
    fn visit(&mut self, entry: &Entry<'_>) -> Step {
        match entry.stat() {
            Ok(stat) => {
                self.add(&stat);
                match is_folder(&stat) {
                    true => Step::Enter,
                    false => Step::Over,
                }
            }
            Err(Errno::ENOENT) => Step::Over,
            Err(_) if entry.kind == Kind::Folder => Step::Enter,
            Err(_) => Step::Over,
        }
    }

    fn failed(&mut self, error: io::Error) {
        tracing::debug!(%error, "a folder was not measured");
    }
}
