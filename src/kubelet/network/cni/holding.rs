//! A pod's network namespace as a file that outlives the pod's processes, so that plugins find it by the same path
//! at ADD and at DEL. Blocking.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::fstat,
        statfs::{NSFS_MAGIC, statfs},
    },
};

/// Mounts the namespace at `path`.
pub fn hold(netns: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::File::create(path)?;
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    let none: Option<&str> = None;
    let mounted = mount(Some(source.as_str()), path, none, MsFlags::MS_BIND, none);
    if let Err(error) = mounted {
        let _ = fs::remove_file(path);
        return Err(error.into());
    }
    Ok(())
}

/// Whether a namespace is mounted there.
pub fn is_held(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Whether it is this one.
pub fn holds(path: &Path, netns: BorrowedFd<'_>) -> bool {
    let (Ok(held), Ok(own)) = (fs::metadata(path), fstat(netns)) else {
        return false;
    };
    is_held(path) && (held.dev(), held.ino()) == (own.st_dev, own.st_ino)
}

/// Takes the mount away, and the file.
pub fn release(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break, // nothing is mounted there any more
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
