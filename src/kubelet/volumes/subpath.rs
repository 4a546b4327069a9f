//! A part of a volume, found without ever leaving the volume.
//!
//! Containers can write to volumes while this runs, so a path that was checked may be another one
//! a moment later. The kernel itself resolves beneath the volume (openat2), and what it opened is
//! what gets mounted, through the descriptor. Links that stay inside are followed: a config map's
//! files are such links.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat},
};

use crate::runtime::confined::open_beneath;

/// Relative, without `..`.
pub fn check(path: &str) -> Result<(), String> {
    let mut parts = Path::new(path).components();
    match parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        true => Ok(()),
        false => Err(format!(
            "subPath {path:?} must be relative and must not contain '..'"
        )),
    }
}

/// Opens `path` beneath the volume, for use as a place or for reading.
pub fn open(volume: &Path, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(open_beneath(fs::File::open(volume)?, path, flags)?)
}

/// Opens `path` beneath the volume; missing folders are made like the volume's own.
fn open_or_make(volume: &Path, path: &Path) -> io::Result<OwnedFd> {
    let root = fs::File::open(volume)?;
    match open_beneath(&root, path, OFlag::O_PATH) {
        Err(Errno::ENOENT) => {}
        done => return Ok(done?),
    }
    let mode = Mode::from_bits_truncate(root.metadata()?.mode() & 0o7777);
    let mut at: OwnedFd = root.into();
    let folder = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        at = enter(&at, name, mode, folder)?;
    }
    Ok(at)
}

fn enter(at: &OwnedFd, name: &OsStr, mode: Mode, flags: OFlag) -> io::Result<OwnedFd> {
    match open_beneath(at, Path::new(name), flags) {
        Err(Errno::ENOENT) => {}
        done => return Ok(done?),
    }
    match mkdirat(at, name, mode) {
        Ok(()) => {
            let made = open_beneath(at, Path::new(name), flags | OFlag::O_NOFOLLOW)?;
            fchmod(&made, mode)?;
            Ok(made)
        }
        Err(Errno::EEXIST) => Ok(open_beneath(at, Path::new(name), flags)?),
        Err(error) => Err(error.into()),
    }
}

/// Binds the volume's `path` to `target`, in place of what may be bound there from before.
pub fn bind(volume: &Path, path: &str, target: &Path) -> io::Result<()> {
    let source = open_or_make(volume, Path::new(path))?;
    let kind = SFlag::from_bits_truncate(fstat(&source)?.st_mode) & SFlag::S_IFMT;
    if let Some(parent) = target.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)?;
    }
    while target.symlink_metadata().is_ok() {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue,
            Err(Errno::EINVAL) => break, // nothing is mounted there
            Err(error) => return Err(error.into()),
        }
    }
    match (target.symlink_metadata(), kind == SFlag::S_IFDIR) {
        (Ok(there), true) if there.is_dir() => {}
        (Ok(there), false) if there.is_file() => {}
        (there, folder) => {
            match there {
                Ok(there) if there.is_dir() => fs::remove_dir(target)?,
                Ok(_) => fs::remove_file(target)?,
                Err(_) => {}
            }
            match folder {
                true => fs::DirBuilder::new().mode(0o750).create(target)?,
                false => drop(
                    fs::OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(0o640)
                        .open(target)?,
                ),
            }
        }
    }
    let through = format!("/proc/self/fd/{}", source.as_raw_fd());
    let none = None::<&str>;
    mount(
        Some(through.as_str()),
        target,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        fs::create_dir(volume.join("data")).unwrap();
        fs::write(volume.join("data/key"), "k").unwrap();
        symlink("data/key", volume.join("key")).unwrap();
        symlink(outside.path(), volume.join("away")).unwrap();
        symlink("../../../../etc", volume.join("up")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        for (path, reached) in [
            ("", true),
            ("key", true),
            ("data/key", true),
            ("new/folder", true),
            ("away", false),
            ("away/secret", false),
            ("away/new", false),
            ("up/passwd", false),
            ("magic/etc", false),
            ("dangling/x", false),
            ("data/key/x", false),
        ] {
            let got = open_or_make(volume, Path::new(path));
            assert_eq!(got.is_ok(), reached, "{path}: {got:?}");
        }
        assert!(!outside.path().join("new").exists());
        assert!(volume.join("new/folder").is_dir());
        for path in ["/abs", "../x", "a/../b"] {
            assert!(check(path).is_err(), "{path}");
        }
        assert_eq!(check("a/./b"), Ok(()));
    }

    #[test]
    fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere() {
        use std::{
            collections::BTreeSet,
            sync::atomic::{AtomicBool, Ordering},
        };
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("in")).unwrap();
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        let at = |name: &str| volume.join(name);
        fs::create_dir_all(at("place/in")).unwrap();
        let done = AtomicBool::new(false);
        let mut reached = BTreeSet::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // As a container of the pod would do it.
                while !done.load(Ordering::Relaxed) {
                    fs::rename(at("place"), at("aside")).unwrap();
                    if symlink(outside.path(), at("place")).is_ok() {
                        fs::remove_file(at("place")).unwrap();
                    }
                    // One may have been made in its stead.
                    while fs::rename(at("aside"), at("place")).is_err() {
                        let _ = fs::remove_dir_all(at("place"));
                    }
                }
            });
            for number in 0..10_000 {
                let path = match number % 2 {
                    0 => "place/in",
                    _ => "place/new/deep",
                };
                if let Ok(opened) = open_or_make(volume, Path::new(path)) {
                    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
                    reached.insert(fs::read_link(path).unwrap());
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let real = volume.canonicalize().unwrap();
        assert!(!reached.is_empty());
        assert!(
            reached.iter().all(|path| path.starts_with(&real)),
            "{reached:?}"
        );
        assert!(!outside.path().join("new").exists());
    }
}
