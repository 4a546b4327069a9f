//! A container's root: the overlay of its layers, and paths that never leave it.
//!
//! Runs in the container's child, in its own mount namespace, before the root becomes `/`.
//! Always true: a path from an image or a pod is resolved by the kernel inside the root
//! (`RESOLVE_IN_ROOT`, no magic links) and from then on used by descriptor only.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
};

use super::{confined::open_in_root, files, sys};

/// The kernel takes one page of option text from mount(2).
const LONGEST_OPTIONS: usize = 4095;
/// passwd and group files of sane images are a thousandth of this.
const LONGEST_FILE: u64 = 4 << 20;

/// Mounts the overlay of `layers` (lowest first) below a writable layer, on `dir/merged`.
pub fn mount_overlay(layers: &[PathBuf], dir: &Path) -> io::Result<Root> {
    let empty = [dir.join("empty")];
    let layers = if layers.is_empty() {
        std::fs::create_dir_all(&empty[0])?;
        &empty
    } else {
        layers
    };
    let merged = dir.join("merged");
    match overlay(layers, dir) {
        Ok(mount) => sys::move_mount(mount.as_fd(), open_dir(&merged)?.as_fd())?,
        // Before Linux 6.7 layers cannot be given one by one.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            overlay_by_options(layers, dir, &merged)?;
        }
        Err(error) => return Err(error),
    }
    Ok(Root(open_dir(&merged)?))
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

fn overlay(layers: &[PathBuf], dir: &Path) -> io::Result<OwnedFd> {
    let fs = sys::fsopen(c"overlay")?;
    let fs = fs.as_fd();
    for layer in layers.iter().rev() {
        sys::fsconfig_string(fs, c"lowerdir+", &text(layer)?)?;
    }
    sys::fsconfig_string(fs, c"upperdir", &text(&dir.join("upper"))?)?;
    sys::fsconfig_string(fs, c"workdir", &text(&dir.join("work"))?)?;
    // The writable layer ends with the container: syncing it would only wear the disk.
    sys::fsconfig_flag(fs, c"volatile")?;
    sys::fsconfig_create(fs)?;
    sys::fsmount(fs, 0)
}

fn overlay_by_options(layers: &[PathBuf], dir: &Path, merged: &Path) -> io::Result<()> {
    let escape = |path: &Path| {
        let text = path.to_string_lossy();
        text.replace('\\', "\\\\")
            .replace(':', "\\:")
            .replace(',', "\\,")
    };
    let lower: Vec<String> = layers.iter().rev().map(|layer| escape(layer)).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        lower.join(":"),
        escape(&dir.join("upper")),
        escape(&dir.join("work"))
    );
    if options.len() > LONGEST_OPTIONS {
        let hint = format!("{} layers need Linux 6.7 or newer", layers.len());
        return Err(io::Error::other(hint));
    }
    let mounted = mount(
        Some("overlay"),
        merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    if mounted == Err(Errno::EINVAL) {
        let options = options.trim_end_matches(",volatile"); // new in Linux 5.10
        mount(
            Some("overlay"),
            merged,
            Some("overlay"),
            MsFlags::empty(),
            Some(options),
        )?;
        return Ok(());
    }
    Ok(mounted?)
}

pub fn text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// What a mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File,
}

/// An open folder that paths cannot leave.
#[derive(Debug)]
pub struct Root(pub OwnedFd);

impl Root {
    /// Opens a path inside, links followed as if this were `/`.
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(open_in_root(&self.0, path, flags)?)
    }

    /// A handle on `path`, which is made if it is not there, with the folders above it.
    pub fn ensure(&self, path: &Path, kind: Kind, mode: u32) -> io::Result<OwnedFd> {
        match self.open(path, OFlag::O_PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => parts.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::Error::other("the path goes upwards"));
                }
            }
        }
        let mut so_far = PathBuf::from("/");
        let mut parent = self.open(&so_far, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        for (index, name) in parts.iter().enumerate() {
            so_far.push(name);
            let last = index + 1 == parts.len();
            match self.open(&so_far, OFlag::O_PATH) {
                Ok(found) => {
                    parent = found;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            // Made by name in an open parent: neither call follows a link there.
            let made = if last && kind == Kind::File {
                nix::sys::stat::mknodat(
                    &parent,
                    *name,
                    SFlag::S_IFREG,
                    Mode::from_bits_truncate(mode),
                    0,
                )
            } else {
                mkdirat(
                    &parent,
                    *name,
                    Mode::from_bits_truncate(if last { mode } else { 0o755 }),
                )
            };
            match made {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            parent = self.open(&so_far, OFlag::O_PATH)?;
        }
        Ok(parent)
    }

    /// A small text file inside; empty when there is none.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let place = match self.open(Path::new(path), OFlag::O_PATH) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        let bytes = files::open_place(&place)
            .and_then(|file| files::read_file_at_most(&file, LONGEST_FILE))
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Makes this the root of the process and lets go of the old one.
    pub fn enter(&self) -> io::Result<()> {
        nix::unistd::fchdir(&self.0)?;
        nix::unistd::pivot_root(".", ".")?;
        // The old root lies on top of the new one now.
        nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")?;
        Ok(())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub fn is_dir(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = fstat(fd)?.st_mode & SFlag::S_IFMT.bits();
    Ok(kind == SFlag::S_IFDIR.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_an_image_is_no_larger_than_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(open_dir(dir.path()).unwrap());
        let file = std::fs::File::create(dir.path().join("passwd")).unwrap();
        file.set_len(LONGEST_FILE).unwrap();
        assert_eq!(root.read("/passwd").unwrap().len() as u64, LONGEST_FILE);
        file.set_len(LONGEST_FILE + 1).unwrap();
        let refused = root.read("/passwd").unwrap_err().to_string();
        assert!(refused.starts_with("/passwd: "), "{refused}");
        assert_eq!(root.read("/group").unwrap(), "");
    }
}
