//! A walk over a tree of any shape, while others may change it.
//!
//! Memory for each level is a few bytes and its name; open folders are at most [`KEPT`]. What was
//! closed on the way down is found again through `..` and taken only if it is the same folder; if
//! somebody moved one, the way down from the top is gone again by name. Folders are opened one by
//! one, without following links and without crossing a mount (`RESOLVE_NO_XDEV`), so no rename
//! leads outside.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{FileStat, fstat, fstatat},
};

use super::listing::{Kind, Listing, Place};

/// Open folders: the top and the deepest ones.
const KEPT: usize = 32;
/// Entries of one walk; more than any file system of a node holds.
const MOST_ENTRIES: u64 = 500_000_000;
/// How often the way may be lost by others' renames.
const MOST_LOST: u32 = 32;

/// One entry of a folder that is being walked.
pub struct Entry<'a> {
    pub parent: BorrowedFd<'a>,
    pub name: &'a OsStr,
    pub kind: Kind,
    trail: &'a Trail,
}

impl Entry<'_> {
    pub fn stat(&self) -> nix::Result<FileStat> {
        fstatat(self.parent, self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// The error with the end of the path in front.
    pub fn failed(&self, action: &str, error: impl Into<io::Error>) -> io::Error {
        let error = error.into();
        let path = self.trail.show(self.name);
        io::Error::new(error.kind(), format!("{action} {path}: {error}"))
    }
}

/// What a walk does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into the entry, if it is a folder.
    Enter,
    /// Past it.
    Over,
}

pub trait Visitor {
    fn visit(&mut self, entry: &Entry<'_>) -> Step;

    /// All entries of a folder were visited. `Enter` visits them again.
    fn leave(&mut self, _entry: &Entry<'_>) -> Step {
        Step::Over
    }

    /// A folder that could not be entered or listed; it is passed over.
    fn failed(&mut self, error: io::Error);
}

/// Visits everything below the open folder `top`.
///
/// Errors: only what ends the walk before its end.
pub fn walk(top: OwnedFd, visitor: &mut dyn Visitor) -> io::Result<()> {
    walk_at_most(MOST_ENTRIES, top, visitor)
}

/// `most`: entries, and ways up from folders.
pub(super) fn walk_at_most(most: u64, top: OwnedFd, visitor: &mut dyn Visitor) -> io::Result<()> {
    Walk {
        levels: vec![Level::open(Listing::new(top))],
        trail: Trail::default(),
        oldest: 1,
        lost: 0,
    }
    .run(most, visitor)
}

/// Opens the folder `name` of `parent` itself: no link, no mount.
pub fn open_folder(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve))
}

/// Device and inode.
type Id = (u64, u64);

fn id(folder: impl AsFd) -> nix::Result<Id> {
    let stat = fstat(folder)?;
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

/// A folder between the top and where the walk is.
enum Level {
    Open(Listing),
    /// Closed to save descriptors.
    Closed {
        id: Id,
        place: Place,
    },
}

impl Level {
    fn open(listing: Listing) -> Self {
        Self::Open(listing)
    }

    fn close(&mut self) -> io::Result<()> {
        if let Self::Open(listing) = self {
            *self = Self::Closed {
                id: id(&*listing)?,
                place: listing.place(),
            };
        }
        Ok(())
    }

    fn is(&self, folder: &OwnedFd) -> bool {
        let own = match self {
            Self::Open(listing) => id(listing).ok(),
            Self::Closed { id, .. } => Some(*id),
        };
        own.is_some() && own == id(folder).ok()
    }
}

/// Names of the levels below the top, one after the other.
#[derive(Default)]
struct Trail {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Trail {
    fn push(&mut self, name: &OsStr) {
        self.bytes.extend_from_slice(name.as_bytes());
        self.ends.push(self.bytes.len());
    }

    fn pop(&mut self) -> OsString {
        self.ends.pop();
        let start = self.ends.last().copied().unwrap_or(0);
        OsString::from_vec(self.bytes.split_off(start))
    }

    fn name(&self, index: usize) -> &OsStr {
        let start = match index {
            0 => 0,
            _ => self.ends.get(index - 1).copied().unwrap_or(0),
        };
        let end = self.ends.get(index).copied().unwrap_or(start);
        OsStr::from_bytes(self.bytes.get(start..end).unwrap_or_default())
    }

    /// The end of the path, for people.
    fn show(&self, name: &OsStr) -> String {
        const SHOWN: usize = 3;
        let first = self.ends.len().saturating_sub(SHOWN);
        let mut path = if first > 0 { ".../" } else { "" }.to_owned();
        for index in first..self.ends.len() {
            path.push_str(&self.name(index).to_string_lossy());
            path.push('/');
        }
        path.push_str(&name.to_string_lossy());
        format!("{path:?}")
    }
}

struct Walk {
    /// The top is always open, and so are all from `oldest` on.
    levels: Vec<Level>,
    trail: Trail,
    oldest: usize,
    lost: u32,
}

impl Walk {
    fn run(&mut self, most: u64, visitor: &mut dyn Visitor) -> io::Result<()> {
        for _ in 0..most {
            let Some(Level::Open(listing)) = self.levels.last_mut() else {
                return Ok(()); // never: the last one is open
            };
            match listing.next() {
                Ok(Some(found)) => self.visit(&found.name, found.kind, visitor)?,
                Ok(None) if self.levels.len() == 1 => return Ok(()),
                Ok(None) => self.leave(visitor)?,
                Err(error) if self.levels.len() == 1 => return Err(error),
                Err(error) => {
                    let name = self.trail.show(OsStr::new(""));
                    visitor.failed(io::Error::new(
                        error.kind(),
                        format!("list {name}: {error}"),
                    ));
                    self.leave(visitor)?;
                }
            }
        }
        Err(io::Error::other(format!(
            "more than {most} files and folders"
        )))
    }

    fn visit(&mut self, name: &OsStr, kind: Kind, visitor: &mut dyn Visitor) -> io::Result<()> {
        let Some(Level::Open(listing)) = self.levels.last() else {
            return Ok(());
        };
        let entry = Entry {
            parent: listing.as_fd(),
            name,
            kind,
            trail: &self.trail,
        };
        if visitor.visit(&entry) == Step::Over {
            return Ok(());
        }
        match open_folder(entry.parent, name) {
            Ok(folder) => self.enter(name, Listing::new(folder)),
            // It went, or is a folder no longer.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            Err(Errno::EXDEV) => {
                let mounted = io::Error::other("something is mounted there");
                visitor.failed(entry.failed("enter", mounted));
                Ok(())
            }
            Err(errno) => {
                visitor.failed(entry.failed("open", errno));
                Ok(())
            }
        }
    }

    fn enter(&mut self, name: &OsStr, listing: Listing) -> io::Result<()> {
        self.levels.push(Level::open(listing));
        self.trail.push(name);
        if self.levels.len() - self.oldest > KEPT {
            if let Some(level) = self.levels.get_mut(self.oldest) {
                level.close()?;
            }
            self.oldest += 1;
        }
        Ok(())
    }

    /// Up from a folder that was listed to its end.
    fn leave(&mut self, visitor: &mut dyn Visitor) -> io::Result<()> {
        let Some(Level::Open(mut child)) = self.levels.pop() else {
            return Ok(());
        };
        let name = self.trail.pop();
        self.oldest = self.oldest.min(self.levels.len());
        if !self.reopen(&child)? {
            return Ok(()); // the folder is no longer where it was
        }
        let Some(Level::Open(parent)) = self.levels.last() else {
            return Ok(());
        };
        let entry = Entry {
            parent: parent.as_fd(),
            name: &name,
            kind: Kind::Folder,
            trail: &self.trail,
        };
        if visitor.leave(&entry) == Step::Enter {
            child.rewind()?;
            self.enter(&name, child)?;
        }
        Ok(())
    }

    /// Sees that the last level is open. False if it is another one than `child` was in.
    fn reopen(&mut self, child: &Listing) -> io::Result<bool> {
        let last = self.levels.len() - 1;
        let Some(Level::Closed { place, .. }) = self.levels.last() else {
            return Ok(true);
        };
        let place = *place;
        if let Ok(folder) = open_folder(child.as_fd(), OsStr::new(".."))
            && self.levels[last].is(&folder)
        {
            self.levels[last] = Level::open(Listing::resumed(folder, place)?);
            self.oldest = last;
            return Ok(true);
        }
        self.lost += 1;
        if self.lost > MOST_LOST {
            return Err(io::Error::other(
                "folders are moved again and again while they are walked",
            ));
        }
        self.find_again()?;
        Ok(false)
    }

    /// Goes down from the top as far as the levels are where they were, and on from there.
    fn find_again(&mut self) -> io::Result<()> {
        let Some(Level::Open(top)) = self.levels.first() else {
            return Ok(());
        };
        let mut found: Option<OwnedFd> = None;
        let mut depth = 0;
        while depth + 1 < self.levels.len() {
            let at = found.as_ref().map_or(top.as_fd(), AsFd::as_fd);
            match open_folder(at, self.trail.name(depth)) {
                Ok(folder) if self.levels[depth + 1].is(&folder) => found = Some(folder),
                _ => break,
            }
            depth += 1;
        }
        self.levels.truncate(depth + 1);
        while self.trail.ends.len() > depth {
            self.trail.pop();
        }
        self.oldest = self.oldest.min(depth.max(1));
        if let (Some(folder), Some(Level::Closed { place, .. })) = (found, self.levels.last()) {
            let listing = Listing::resumed(folder, *place)?;
            self.levels[depth] = Level::open(listing);
            self.oldest = depth;
        }
        Ok(())
    }
}
