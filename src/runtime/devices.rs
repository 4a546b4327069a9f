//! Device nodes of a container, and the checked `/dev/null` that masks are made of.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{Mode, SFlag, fstat, fstatat, makedev, mknodat},
    unistd::{Gid, Uid, fchownat, symlinkat},
};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::rootfs::{Kind, Root};

/// Name, major and minor of what every container has, all mode 0666.
const DEFAULT: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills a new, empty `/dev`, held by descriptor: nothing in the image can redirect it.
pub fn fill(dev: &OwnedFd) -> io::Result<()> {
    for (name, major, minor) in DEFAULT {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(dev, name, SFlag::S_IFCHR, mode, makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name)?;
    }
    Ok(())
}

/// Makes one more device node of the spec; one that is there already is fine.
pub fn make(root: &Root, device: &LinuxDevice) -> io::Result<()> {
    let path = device.path();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other(format!("device path {}", path.display())));
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => SFlag::S_IFCHR,
    };
    let number = |part: i64| u64::try_from(part).map_err(io::Error::other);
    let device_number = makedev(number(device.major())?, number(device.minor())?);
    let parent = root.ensure(parent, Kind::Dir, 0o755)?;
    let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777);
    match mknodat(&parent, name, kind, mode, device_number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let there = fstatat(&parent, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if there.st_rdev != device_number || there.st_mode & SFlag::S_IFMT.bits() != kind.bits()
            {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    let no_follow = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    fchownat(&parent, name, Some(uid), Some(gid), no_follow)?;
    Ok(())
}

/// The host's `/dev/null`, or an error if something else lies there.
pub fn host_null(flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    checked_null(open("/dev/null", flags, Mode::empty())?)
}

/// The container's own, if it has one.
pub fn null_in(root: &Root) -> io::Result<OwnedFd> {
    checked_null(root.open(Path::new("/dev/null"), OFlag::O_RDWR | OFlag::O_NOFOLLOW)?)
}

fn checked_null(fd: OwnedFd) -> io::Result<OwnedFd> {
    let stat = fstat(fd.as_fd())?;
    let is_device = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !is_device || stat.st_rdev != makedev(1, 3) {
        return Err(io::Error::other("/dev/null is not the null device"));
    }
    Ok(fd)
}
