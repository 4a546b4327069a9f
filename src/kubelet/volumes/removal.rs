//! Takes a pod's folder away: unmounts what is mounted below, then removes files.
//!
//! Knows nothing of what was made there, hence works after any crash. Links are removed, never
//! followed; a folder of another file system is never entered.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    mount::{MntFlags, umount2},
    sys::stat::{Mode, SFlag, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{Error, io, mountinfo};

/// Mounts that cover each other are few; more rounds than this mean that someone mounts anew.
const ROUNDS: usize = 16;

pub fn remove(folder: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(io("remove", folder)(ErrorKind::InvalidInput.into()));
    };
    // Mounts are listed by their real paths; the folder itself must be none but what it is named.
    let real = match fs::canonicalize(parent) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(io("find", parent))?.join(name),
    };
    if fs::symlink_metadata(&real).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    unmount_below(&real)?;
    remove_tree(&real).map_err(io("remove", &real))
}

/// Unmounts everything at or below the folder, innermost first, and checks that nothing is left.
fn unmount_below(folder: &Path) -> Result<(), Error> {
    for _ in 0..ROUNDS {
        let mounts = mountinfo::read().map_err(io("read mounts of", folder))?;
        let mut points: Vec<PathBuf> = mounts.into_iter().map(|mount| mount.point).collect();
        points.retain(|point| point.starts_with(folder));
        if points.is_empty() {
            return Ok(());
        }
        for point in points.into_iter().rev() {
            match umount2(&point, MntFlags::UMOUNT_NOFOLLOW) {
                // Someone still uses it: they keep it, but it is no longer here.
                Err(Errno::EBUSY) => {
                    umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                }
                Err(Errno::EINVAL) => Ok(()),
                done => done,
            }
            .map_err(|error| io("unmount", &point)(error.into()))?;
        }
    }
    Err(io("unmount", folder)(io::Error::other(
        "something is mounted there again and again",
    )))
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let device = fs::symlink_metadata(folder)?.dev();
    let parent = fs::File::open(parent)?;
    empty(&open_folder(parent.as_fd(), name)?, device)?;
    Ok(unlinkat(&parent, name, UnlinkatFlags::RemoveDir)?)
}

fn open_folder(at: BorrowedFd<'_>, name: &std::ffi::OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    openat(at, name, flags, Mode::empty())
}

fn empty(folder: &OwnedFd, device: u64) -> io::Result<()> {
    if fstat(folder)?.st_dev != device {
        return Err(io::Error::other("another file system is mounted below"));
    }
    // The descriptor, not the path, says which folder is listed.
    let listed = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
    for entry in listed.collect::<io::Result<Vec<_>>>()? {
        let name = entry.file_name();
        let name = name.as_os_str();
        let meta = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            empty(&open_folder(folder.as_fd(), name)?, device)?;
            unlinkat(folder, name, UnlinkatFlags::RemoveDir)?;
        } else {
            unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}
