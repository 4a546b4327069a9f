//! A layer's tar stream onto disk, as an overlayfs lower folder.
//!
//! `place.rs` finds the folder of each entry, beneath the target only; here entries are made in it.
//! Whiteouts become overlayfs' own marks. Always true:
//! - Work grows with the size of the stream, and all of it is bounded (`Limits`).
//! - A bad layer is an error that names the entry.

mod place;
#[cfg(test)]
mod tests;

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat,
            mknodat, utimensat,
        },
        statvfs::fstatvfs,
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};
use xattr::FileExt;

use self::place::{Places, mark_hiding, mark_opaque};
use super::{
    parents::Folders,
    tarball::{Archive, Entry, Kind},
};
use crate::runtime::files;

/// What one layer may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all files.
    pub bytes: u64,
    /// Files and folders, those without an entry of their own too.
    pub files: u64,
    /// Folders that are entered on the way to entries, through links too.
    pub steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            files: 2_000_000,
            steps: 8_000_000,
        }
    }
}

const MOST_PATH: usize = 4096;
const MOST_DEPTH: usize = 255;
const MOST_NAME: usize = 255;
/// The disk is looked at after so many bytes or entries.
const LOOK_BYTES: u64 = 32 << 20;
const LOOK_ENTRIES: u64 = 8192;
/// Left free for the node itself: a twentieth of the disk, but no more than this.
const MOST_RESERVED: u64 = 2 << 30;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks the tar stream into `dir`, which exists and is empty. Returns the folders that have no
/// entry of their own, but for those that hide what the layers below have there.
pub fn unpack(reader: impl Read, dir: &Path, limits: Limits) -> io::Result<Folders> {
    let mut archive = Archive::new(reader);
    let mut target = Target {
        places: Places::new(dir, limits.steps, limits.files)?,
        limits,
        bytes: 0,
        entries: 0,
        looked: (0, 0),
    };
    while let Some(entry) = archive.next()? {
        target.put(&entry, &mut archive).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", shown(&entry.path)))
        })?;
    }
    target.places.leave_all()?;
    // What follows the end mark belongs to the stream's digest.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    let is_folder = |path: &PathBuf| {
        let found = std::fs::symlink_metadata(dir.join(path));
        found.is_ok_and(|found| found.is_dir())
    };
    let mut plain = std::mem::take(&mut target.places.plain);
    plain.retain(is_folder); // a later entry may have replaced one
    Ok(plain)
}

/// For people; names are of others' making.
fn shown(path: &[u8]) -> String {
    const SHOWN: usize = 128;
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The folder being filled.
struct Target {
    places: Places,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// Bytes and entries when the disk was last looked at.
    looked: (u64, u64),
}

/// What lay where an entry is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// The mark that hides what the layers below have there.
    Whiteout,
    /// A folder that stays.
    Folder,
}

impl Target {
    fn put<R: Read>(&mut self, entry: &Entry, content: &mut Archive<R>) -> io::Result<()> {
        self.count(entry)?;
        let path = parts(&entry.path)?;
        let Some((name, folder)) = path.split_last() else {
            return self.put_attributes_of_root(entry);
        };
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return mark_opaque(self.places.enter(folder)?);
        }
        if path.iter().any(|part| part.as_bytes().starts_with(AUFS)) {
            return Ok(()); // means nothing here
        }
        if let Some(part) = folder
            .iter()
            .find(|part| part.as_bytes().starts_with(WHITEOUT))
        {
            return Err(invalid(&format!("invalid whiteout name: {part:?}")));
        }
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(invalid(&format!("invalid whiteout name: {name:?}")));
            }
            let hidden = OsStr::from_bytes(hidden);
            hide(self.places.enter(folder)?, hidden)?;
            self.places.stands_alone(hidden);
            return Ok(());
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(entry, folder, name);
        }
        let parent = self.places.enter(folder)?;
        make(parent, name, entry, content)?;
        if entry.kind == Kind::Folder {
            self.places.stands_alone(name);
        }
        Ok(())
    }

    fn count(&mut self, entry: &Entry) -> io::Result<()> {
        self.entries += 1;
        self.places.add_file()?;
        let length = entry.sparse.as_ref().map_or(0, |sparse| sparse.length);
        self.bytes = self.bytes.saturating_add(entry.stored);
        if self.bytes > self.limits.bytes || length > self.limits.bytes {
            let most = self.limits.bytes;
            return Err(invalid(&format!("the layer has more than {most} bytes")));
        }
        let (bytes, entries) = self.looked;
        if self.bytes - bytes > LOOK_BYTES || self.entries - entries > LOOK_ENTRIES {
            self.looked = (self.bytes, self.entries);
            check_room(self.places.root())?;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, folder: &[&OsStr], name: &OsStr) -> io::Result<()> {
        let to = parts(&entry.link)?;
        let Some((to, to_folder)) = to.split_last() else {
            return Err(invalid("a hard link to the root"));
        };
        let source = self.places.enter(to_folder)?.try_clone_to_owned()?;
        let parent = self.places.enter(folder)?;
        make_room(parent, name, Kind::HardLink)?;
        linkat(source.as_fd(), *to, parent, name, LinkatFlags::empty())
            .map_err(|errno| with(&format!("link to {}", shown(&entry.link)), errno.into()))
    }

    fn put_attributes_of_root(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != Kind::Folder {
            return Ok(());
        }
        let root = self.places.root();
        fchownat(
            root,
            ".",
            Some(user(entry)?),
            Some(group(entry)?),
            AtFlags::empty(),
        )?;
        fchmodat(root, ".", mode(entry), FchmodatFlags::FollowSymlink)?;
        Ok(())
    }
}

/// Refuses to go on where the node itself would soon have no room.
fn check_room(root: BorrowedFd<'_>) -> io::Result<()> {
    let disk = fstatvfs(root)?;
    let unit = disk.fragment_size();
    let bytes = Share {
        all: disk.blocks() * unit,
        free: disk.blocks_available() * unit,
    };
    let inodes = Share {
        all: disk.files(),
        free: disk.files_free(),
    };
    match lacking(bytes, inodes) {
        None => Ok(()),
        Some(what) => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the node's disk has too few {what} left for the layer"),
        )),
    }
}

/// How much of something a disk has.
#[derive(Clone, Copy, Debug)]
struct Share {
    all: u64,
    free: u64,
}

/// What there is too little of. Some file systems do not count inodes: they have none.
fn lacking(bytes: Share, inodes: Share) -> Option<&'static str> {
    if bytes.free < (bytes.all / 20).min(MOST_RESERVED) {
        return Some("bytes");
    }
    (inodes.free < inodes.all / 20).then_some("inodes")
}

/// Makes the entry and gives it its owner, mode, attributes and times.
fn make<R: Read>(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    entry: &Entry,
    content: &mut Archive<R>,
) -> io::Result<()> {
    let before = make_room(parent, name, entry.kind)?;
    let private = Mode::from_bits_truncate(0o600);
    match entry.kind {
        Kind::Folder => {
            if before != Before::Folder {
                mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
            }
        }
        Kind::Symlink => {
            if entry.link.is_empty() {
                return Err(invalid("a symlink without a target"));
            }
            symlinkat(OsStr::from_bytes(&entry.link), parent, name)?;
        }
        Kind::CharDevice | Kind::BlockDevice => {
            let kind = match entry.kind {
                Kind::CharDevice => SFlag::S_IFCHR,
                _ => SFlag::S_IFBLK,
            };
            let (major, minor) = entry.device;
            let number = |part: u64| {
                u32::try_from(part).map_err(|_| invalid("a device number over 32 bits"))
            };
            let device = makedev(number(major)?.into(), number(minor)?.into());
            mknodat(parent, name, kind, private, device)?;
        }
        Kind::Pipe => mknodat(parent, name, SFlag::S_IFIFO, private, 0)?,
        Kind::File => {
            let flags = OFlag::O_WRONLY
                | OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, private)?);
            write_content(&mut file, entry, content)?;
        }
        Kind::HardLink => return Ok(()), // made elsewhere
    }
    let owner = (Some(user(entry)?), Some(group(entry)?));
    fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if entry.kind != Kind::Symlink {
        // After the owner: changing it takes the set-user-id bit away.
        fchmodat(parent, name, mode(entry), FchmodatFlags::FollowSymlink)?;
    }
    if matches!(entry.kind, Kind::File | Kind::Folder)
        && (!entry.attributes.is_empty() || before == Before::Whiteout)
    {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = File::from(openat(parent, name, flags, Mode::empty())?);
        set_attributes(entry, &made)?;
        if before == Before::Whiteout && entry.kind == Kind::Folder {
            mark_opaque(made.as_fd())?;
        }
    }
    let (seconds, nanos) = entry.modified;
    let time = TimeSpec::new(seconds, nanos);
    Ok(utimensat(
        parent,
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

fn write_content<R: Read>(
    file: &mut File,
    entry: &Entry,
    content: &mut Archive<R>,
) -> io::Result<()> {
    let Some(sparse) = &entry.sparse else {
        io::copy(content, file)?;
        return Ok(());
    };
    for (offset, length) in &sparse.parts {
        file.seek(io::SeekFrom::Start(*offset))?;
        io::copy(&mut content.take(*length), file)?;
    }
    file.set_len(sparse.length)?;
    file.flush()
}

/// Hides what the layers below have under `name`; what this layer has there stays, whichever of
/// the two comes first.
fn hide(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
        Ok(()) => return mark_hiding(parent),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(folder) => mark_opaque(folder.as_fd()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(()), // a file hides by being there
        Err(errno) => Err(errno.into()),
    }
}

/// A later entry of a layer replaces an earlier one, but a folder stays for a folder.
fn make_room(parent: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> io::Result<Before> {
    let there = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) => there,
        Err(Errno::ENOENT) => return Ok(Before::Nothing),
        Err(errno) => return Err(errno.into()),
    };
    match there.st_mode & libc::S_IFMT {
        libc::S_IFDIR if kind == Kind::Folder => return Ok(Before::Folder),
        libc::S_IFDIR => files::remove_tree_at(parent, name)?,
        _ => unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?,
    }
    let whiteout = there.st_mode & libc::S_IFMT == libc::S_IFCHR && there.st_rdev == 0;
    Ok(match whiteout {
        true => Before::Whiteout,
        false => Before::Nothing,
    })
}

/// Sets the extended attributes of an entry, but for those that would mean something to
/// overlayfs or to the host's security module.
fn set_attributes(entry: &Entry, file: &File) -> io::Result<()> {
    for (name, value) in &entry.attributes {
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let text = String::from_utf8_lossy(name);
        let name = CString::new(name.as_slice())
            .map_err(|_| invalid("an attribute name with a zero byte"))?;
        match file.set_xattr(OsStr::from_bytes(name.as_bytes()), value) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
            result => result.map_err(|error| with(&format!("attribute {text:?}"), error))?,
        }
    }
    Ok(())
}

/// The names of a path, without root, `.` and end slash; none for the root itself.
fn parts(path: &[u8]) -> io::Result<Vec<&OsStr>> {
    if path.len() > MOST_PATH {
        return Err(invalid(&format!("a path of more than {MOST_PATH} bytes")));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(invalid("a path with `..`")),
            part if part.len() > MOST_NAME => {
                return Err(invalid(&format!("a name of more than {MOST_NAME} bytes")));
            }
            part => parts.push(OsStr::from_bytes(part)),
        }
    }
    match parts.len() > MOST_DEPTH {
        true => Err(invalid(&format!("more than {MOST_DEPTH} folders deep"))),
        false => Ok(parts),
    }
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(entry.mode)
}

fn user(entry: &Entry) -> io::Result<Uid> {
    Ok(Uid::from_raw(id(entry.user)?))
}

fn group(entry: &Entry) -> io::Result<Gid> {
    Ok(Gid::from_raw(id(entry.group)?))
}

/// The largest number means "leave it" to the kernel.
fn id(value: u64) -> io::Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(invalid("a user or group number over 32 bits")),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn with(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
