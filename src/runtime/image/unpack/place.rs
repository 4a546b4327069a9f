//! Finding the folder of an entry in what has been unpacked so far.
//!
//! Names are followed one by one from an open folder, links included, so nothing leads out and each
//! step is counted. The folders on the way to the last entry stay open: entries of one folder come
//! together, and the next path goes on where it parts from the last.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{Mode, UtimensatFlags, fstat, fstatat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, unlinkat},
};
use xattr::FileExt;

use super::{
    super::parents::{self, Folders},
    MOST_DEPTH, invalid,
};

/// On one path, as the kernel has it.
const MOST_LINKS: u32 = 40;

pub struct Places {
    root: OwnedFd,
    /// From the root to the folder of the last entry, links resolved.
    chain: Vec<Open>,
    /// How that folder was named; none when it is not known where the chain leads.
    named: Option<Vec<OsString>>,
    steps_left: u64,
    files_left: u64,
    /// Folders that were made for what is in them, by their paths.
    pub plain: Folders,
}

struct Open {
    name: OsString,
    folder: OwnedFd,
    /// Set again when it is left: what was made in it has changed it.
    modified: TimeSpec,
}

impl Places {
    pub fn new(dir: &Path, steps: u64, files: u64) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            root: nix::fcntl::open(dir, flags, Mode::empty())?,
            chain: Vec::new(),
            named: None,
            steps_left: steps,
            files_left: files,
            plain: Folders::new(),
        })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Counts a file or folder that is made.
    pub fn add_file(&mut self) -> io::Result<()> {
        self.files_left = self
            .files_left
            .checked_sub(1)
            .ok_or_else(|| invalid("the layer has too many files and folders"))?;
        Ok(())
    }

    /// The folder of that name; folders that are missing are made (0755).
    pub fn enter(&mut self, folder: &[&OsStr]) -> io::Result<BorrowedFd<'_>> {
        let same = |named: &Vec<OsString>| named.iter().eq(folder.iter());
        if !self.named.as_ref().is_some_and(same) {
            self.find(folder)?;
            self.named = Some(folder.iter().map(|name| (*name).to_owned()).collect());
        }
        Ok(self.here())
    }

    /// What this folder of the present one is does not come from the layers below.
    pub fn stands_alone(&mut self, name: &OsStr) {
        if !self.plain.is_empty() {
            let path = self.path(name);
            self.plain.remove(&path);
        }
    }

    fn path(&self, name: &OsStr) -> PathBuf {
        let folders = self.chain.iter().map(|open| open.name.as_os_str());
        folders.chain([name]).collect()
    }

    /// Leaves every folder that is open.
    pub fn leave_all(&mut self) -> io::Result<()> {
        self.named = None;
        self.leave_to(0)
    }

    fn here(&self) -> BorrowedFd<'_> {
        let last = self.chain.last();
        last.map_or(self.root.as_fd(), |open| open.folder.as_fd())
    }

    fn find(&mut self, folder: &[&OsStr]) -> io::Result<()> {
        // Names of the chain are real folders, so a path that begins alike leads through them.
        let shared = self
            .chain
            .iter()
            .zip(folder)
            .take_while(|(open, name)| open.name == **name)
            .count();
        self.named = None;
        self.leave_to(shared)?;
        let rest = folder.get(shared..).unwrap_or_default();
        let mut left: Vec<OsString> = rest.iter().rev().map(|name| (*name).to_owned()).collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            self.steps_left = self.steps_left.checked_sub(1).ok_or_else(|| {
                invalid("too many folders and links are passed on the way to the layer's entries")
            })?;
            if name == ".." {
                self.leave_to(self.chain.len().saturating_sub(1))?;
                continue;
            }
            if self.step(&name)? {
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(invalid("too many links on the path"));
            }
            let target = readlinkat(self.here(), name.as_os_str())?;
            if target.as_bytes().starts_with(b"/") {
                self.leave_to(0)?;
            }
            let parts = target.as_bytes().split(|byte| *byte == b'/');
            let parts = parts.filter(|part| !matches!(*part, b"" | b"."));
            left.extend(parts.rev().map(|part| OsStr::from_bytes(part).to_owned()));
        }
        Ok(())
    }

    /// Goes into a folder of the present one; false if a link is there.
    fn step(&mut self, name: &OsStr) -> io::Result<bool> {
        if self.chain.len() >= MOST_DEPTH {
            return Err(invalid(&format!("more than {MOST_DEPTH} folders deep")));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = |here: BorrowedFd<'_>| openat(here, name, flags, Mode::empty());
        let folder = match open(self.here()) {
            Ok(folder) => folder,
            Err(Errno::ENOENT) => {
                self.make(name)?;
                if self.plain.len() < parents::MOST {
                    let path = self.path(name);
                    self.plain.insert(path);
                }
                open(self.here())?
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let there = fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                match there.st_mode & libc::S_IFMT {
                    libc::S_IFLNK => return Ok(false),
                    libc::S_IFCHR if there.st_rdev == 0 => {
                        // Hidden in the layers below, but this one has a folder there.
                        unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir)?;
                        self.make(name)?;
                        let folder = open(self.here())?;
                        mark_opaque(folder.as_fd())?;
                        folder
                    }
                    _ => return Err(invalid(&format!("{name:?} is not a folder"))),
                }
            }
            Err(errno) => return Err(errno.into()),
        };
        let stat = fstat(&folder)?;
        self.chain.push(Open {
            name: name.to_owned(),
            folder,
            modified: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        });
        Ok(true)
    }

    fn make(&mut self, name: &OsStr) -> io::Result<()> {
        self.add_file()?;
        Ok(mkdirat(self.here(), name, Mode::from_bits_truncate(0o755))?)
    }

    fn leave_to(&mut self, depth: usize) -> io::Result<()> {
        while self.chain.len() > depth {
            let Some(open) = self.chain.pop() else { break };
            let time = &open.modified;
            utimensat(&open.folder, ".", time, time, UtimensatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

/// Hides what the layers below have in the folder.
pub fn mark_opaque(folder: BorrowedFd<'_>) -> io::Result<()> {
    mark(folder, "trusted.overlay.opaque", b"y")
}

/// Says that there are whiteouts in the folder. Without that overlayfs lists them where no other
/// layer has the folder.
pub fn mark_hiding(folder: BorrowedFd<'_>) -> io::Result<()> {
    mark(folder, "trusted.overlay.origin", b"")
}

fn mark(folder: BorrowedFd<'_>, attribute: &str, value: &[u8]) -> io::Result<()> {
    // A descriptor that is only a place cannot carry attributes.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let folder = nix::fcntl::open(path.as_str(), flags, Mode::empty())?;
    std::fs::File::from(folder).set_xattr(attribute, value)
}
