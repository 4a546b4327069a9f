//! A layer's tar stream onto disk, as an overlayfs lower folder.
//!
//! Every path is resolved beneath the target folder by the kernel (`RESOLVE_IN_ROOT`), so that no
//! symlink or `..` of a hostile layer leads outside. Whiteouts become overlayfs' own marks.

use std::{
    ffi::{CString, OsStr},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};
use tar::{Archive, Entry, EntryType};
use xattr::FileExt;

use crate::runtime::confined::open_in_root;

/// A layer that unpacks to more than this is refused: a bomb, or a mistake.
const MAX_UNPACKED_BYTES: u64 = 64 << 30;
const MAX_ENTRIES: u64 = 4_000_000;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks the tar stream into `dir`, which exists and is empty; returns the bytes of its files.
pub fn unpack(reader: impl Read, dir: &Path) -> io::Result<u64> {
    let root = nix::fcntl::open(
        dir,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut target = Target {
        root,
        parent: None,
        dir_times: Vec::new(),
    };
    let mut archive = Archive::new(reader);
    let (mut bytes, mut entries) = (0_u64, 0_u64);
    for entry in archive.entries()? {
        let mut entry = entry?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if bytes > MAX_UNPACKED_BYTES || entries > MAX_ENTRIES {
            return Err(io::Error::other("the layer is too large to unpack"));
        }
        let path = entry.path()?.into_owned();
        target.put(&mut entry, &path).map_err(|error| {
            io::Error::new(error.kind(), format!("unpack {}: {error}", path.display()))
        })?;
    }
    // What follows the end mark belongs to the stream's digest.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    target.set_dir_times()?;
    Ok(bytes)
}

/// The folder being filled.
struct Target {
    root: OwnedFd,
    /// The folder of the last entry: entries of one folder come together.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of folders are set last: putting files into them changes them.
    dir_times: Vec<(PathBuf, u64)>,
}

impl Target {
    fn put<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        let Some(path) = clean(path)? else {
            return self.put_attributes_of_root(entry);
        };
        let name = path.file_name().unwrap_or_default().to_owned();
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent_of(&folder)?;
        let parent = parent.as_fd();
        if name.as_bytes() == OPAQUE {
            let fd = reopen(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            return std::fs::File::from(fd).set_xattr("trusted.overlay.opaque", b"y");
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if hidden.starts_with(WHITEOUT) {
                return Ok(()); // other names of the aufs scheme mean nothing here
            }
            let hidden = OsStr::from_bytes(hidden);
            clear(parent, hidden, false)?;
            return Ok(mknodat(
                parent,
                hidden,
                SFlag::S_IFCHR,
                Mode::empty(),
                makedev(0, 0),
            )?);
        }
        self.make(entry, &path, &name)
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &Path,
        name: &OsStr,
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let parent = match &self.parent {
            Some((_, fd)) => fd.as_fd(),
            None => self.root.as_fd(),
        };
        let mode = Mode::from_bits_truncate(entry.header().mode()? & 0o7777);
        clear(parent, name, kind.is_dir())?;
        match kind {
            EntryType::Directory => match mkdirat(parent, name, Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            },
            EntryType::Symlink => {
                let to = entry
                    .link_name_bytes()
                    .ok_or_else(|| invalid("a symlink without a target"))?;
                symlinkat(OsStr::from_bytes(&to), parent, name)?;
            }
            EntryType::Link => return self.hard_link(entry, parent, name),
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let device = makedev(
                    header.device_major()?.unwrap_or(0).into(),
                    header.device_minor()?.unwrap_or(0).into(),
                );
                let kind = if kind == EntryType::Char {
                    SFlag::S_IFCHR
                } else {
                    SFlag::S_IFBLK
                };
                mknodat(parent, name, kind, Mode::from_bits_truncate(0o600), device)?;
            }
            EntryType::Fifo => mknodat(
                parent,
                name,
                SFlag::S_IFIFO,
                Mode::from_bits_truncate(0o600),
                0,
            )?,
            EntryType::XGlobalHeader => return Ok(()),
            _ => {
                let flags = OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let mut file = std::fs::File::from(openat(
                    parent,
                    name,
                    flags,
                    Mode::from_bits_truncate(0o600),
                )?);
                io::copy(entry, &mut file)?;
            }
        }
        let header = entry.header();
        let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
        fchownat(
            parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        let modified = header.mtime().unwrap_or(0);
        if kind != EntryType::Symlink {
            // After the owner: changing it takes the set-user-id bit away.
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        if kind.is_dir() {
            self.dir_times.push((path.to_owned(), modified));
            let fd = openat(
                parent,
                name,
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            set_attributes(entry, &std::fs::File::from(fd))?;
        } else {
            if matches!(
                kind,
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
            ) {
                let fd = openat(
                    parent,
                    name,
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )?;
                set_attributes(entry, &std::fs::File::from(fd))?;
            }
            let time = seconds(modified);
            utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(())
    }

    fn hard_link<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<()> {
        let to = entry
            .link_name()?
            .ok_or_else(|| invalid("a hard link without a target"))?;
        let to = clean(&to)?.ok_or_else(|| invalid("a hard link to the root"))?;
        let folder = open_in_root(
            &self.root,
            to.parent().unwrap_or(Path::new("")),
            OFlag::O_PATH | OFlag::O_DIRECTORY,
        )?;
        let to = to.file_name().unwrap_or_default();
        Ok(linkat(
            folder.as_fd(),
            to,
            parent,
            name,
            LinkatFlags::empty(),
        )?)
    }

    fn put_attributes_of_root<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let header = entry.header();
        if !header.entry_type().is_dir() {
            return Ok(());
        }
        let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
        fchownat(
            self.root.as_fd(),
            ".",
            Some(Uid::from_raw(id(header.uid()?)?)),
            Some(Gid::from_raw(id(header.gid()?)?)),
            AtFlags::empty(),
        )?;
        fchmodat(self.root.as_fd(), ".", mode, FchmodatFlags::FollowSymlink)?;
        Ok(())
    }

    /// The folder's descriptor; missing folders are made (0755).
    fn parent_of(&mut self, folder: &Path) -> io::Result<&OwnedFd> {
        let cached = self.parent.as_ref().is_some_and(|(path, _)| path == folder);
        if !cached {
            let fd = match open_in_root(&self.root, folder, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => self.make_folders(folder)?,
                Err(error) => return Err(error.into()),
            };
            self.parent = Some((folder.to_owned(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd),
            None => Ok(&self.root),
        }
    }

    fn make_folders(&self, folder: &Path) -> io::Result<OwnedFd> {
        let mut done = PathBuf::new();
        let mut fd = open_in_root(&self.root, &done, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        for part in folder.components() {
            match mkdirat(
                fd.as_fd(),
                part.as_os_str(),
                Mode::from_bits_truncate(0o755),
            ) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            done.push(part);
            fd = open_in_root(&self.root, &done, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        }
        Ok(fd)
    }

    fn set_dir_times(&self) -> io::Result<()> {
        for (path, modified) in self.dir_times.iter().rev() {
            let time = seconds(*modified);
            let Ok(fd) = open_in_root(&self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY) else {
                continue; // a later entry replaced it
            };
            utimensat(fd.as_fd(), ".", &time, &time, UtimensatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

/// The path without root, `.` and end slash; `None` for the root itself, an error for `..`.
fn clean(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("a path with `..`")),
        }
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}

/// An ordinary descriptor for what an `O_PATH` one names.
fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(openat(
        AT_FDCWD,
        path.as_str(),
        flags | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// Makes room for `name`: a later entry of a layer replaces an earlier one, but a folder stays
/// for a folder.
fn clear(parent: BorrowedFd<'_>, name: &OsStr, keep_folder: bool) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) if keep_folder => Ok(()),
        Err(Errno::EISDIR) => {
            let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
            std::fs::remove_dir_all(Path::new(&path).join(name))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Sets the extended attributes of an entry, but for those that would mean something to
/// overlayfs or to the host's security module.
fn set_attributes<R: Read>(entry: &mut Entry<'_, R>, file: &std::fs::File) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(());
    };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else {
            continue;
        };
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let name = CString::new(name).map_err(|_| invalid("an attribute name with a zero byte"))?;
        match file.set_xattr(OsStr::from_bytes(name.as_bytes()), extension.value_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
            result => result?,
        }
    }
    Ok(())
}

fn id(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| invalid("a user or group number over 32 bits"))
}

fn seconds(value: u64) -> TimeSpec {
    TimeSpec::new(value.try_into().unwrap_or(0), 0)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    fn entry(kind: EntryType, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(0);
        header.set_mtime(7);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// Appends under a name that `tar::Builder` would refuse.
    fn append_raw(
        builder: &mut tar::Builder<Vec<u8>>,
        mut header: tar::Header,
        name: &str,
        data: &[u8],
    ) {
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn whiteouts_links_and_modes() {
        let mut builder = tar::Builder::new(Vec::new());
        let file = |mode| entry(EntryType::Regular, mode);
        append_raw(&mut builder, file(0o4755), "deep/er/su", b"x");
        append_raw(&mut builder, file(0o644), "deep/.wh.gone", b"");
        append_raw(&mut builder, file(0o644), "deep/er/.wh..wh..opq", b"");
        let mut link = entry(EntryType::Link, 0o755);
        link.set_link_name("deep/er/su").unwrap();
        append_raw(&mut builder, link, "again", b"");
        let tar = builder.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(tar.as_slice(), dir.path()).unwrap();
        let meta = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert_eq!(meta("deep/er/su").mode() & 0o7777, 0o4755);
        assert_eq!(meta("again").ino(), meta("deep/er/su").ino());
        assert!(meta("deep/gone").file_type().is_char_device());
        assert_eq!(meta("deep/gone").rdev(), 0);
        let opaque = xattr::get(dir.path().join("deep/er"), "trusted.overlay.opaque").unwrap();
        assert_eq!(opaque.as_deref(), Some(b"y".as_slice()));
    }

    #[test]
    #[ignore = "needs root"]
    fn nothing_is_written_outside() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("layer");
        for (link, victim) in [
            ("/", "escape/victim"),
            ("..", "escape/victim"),
            ("../../..", "escape/victim"),
        ] {
            std::fs::create_dir_all(&dir).unwrap();
            let mut builder = tar::Builder::new(Vec::new());
            let mut symlink = entry(EntryType::Symlink, 0o777);
            symlink.set_link_name_literal(link).unwrap();
            append_raw(&mut builder, symlink, "escape", b"");
            append_raw(&mut builder, entry(EntryType::Regular, 0o644), victim, b"x");
            let tar = builder.into_inner().unwrap();
            unpack(tar.as_slice(), &dir).unwrap();
            assert!(!outer.path().join("victim").exists(), "{link}");
            assert!(!Path::new("/victim").exists(), "{link}");
            assert!(dir.join("victim").exists(), "{link}");
            std::fs::remove_dir_all(&dir).unwrap();
        }
        std::fs::create_dir_all(&dir).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        append_raw(
            &mut builder,
            entry(EntryType::Regular, 0o644),
            "../victim",
            b"x",
        );
        assert!(unpack(builder.into_inner().unwrap().as_slice(), &dir).is_err());
    }
}
