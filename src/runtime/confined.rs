//! Opening a path that cannot leave a folder.
//!
//! The kernel itself resolves the path (openat2), so nothing that is renamed or linked meanwhile
//! leads outside. What was opened is then used by its descriptor.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};

/// The kernel asks for another try when anything on the machine was renamed or mounted while it
/// looked at `..` or at a link: it cannot tell whether the path was left.
const TRIES: u32 = 256;

/// Opens `path` as if `root` were `/`: links and `..` end there.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
}

/// Opens `path` below `folder`: one that leads out is refused (`EXDEV`).
pub fn open_beneath(folder: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open(folder, path, flags, ResolveFlag::RESOLVE_BENEATH)
}

fn open(
    folder: impl AsFd,
    path: &Path,
    flags: OFlag,
    confinement: ResolveFlag,
) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(confinement | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut tries = 1;
    loop {
        match openat2(folder.as_fd(), path, how) {
            Err(Errno::EAGAIN) if tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn goes_on_while_others_rename() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in/a/b")).unwrap();
        std::fs::write(dir.path().join("outside"), "").unwrap();
        let root = File::open(dir.path().join("in")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
                std::fs::write(&one, "").unwrap();
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &other).unwrap();
                    std::fs::rename(&other, &one).unwrap();
                }
            });
            let tried = (0..2000).try_for_each(|_| {
                let path = Path::new("a/../a/b/../../a");
                open_in_root(&root, path, OFlag::O_PATH).map(drop)?;
                open_beneath(&root, path, OFlag::O_PATH).map(drop)
            });
            done.store(true, Ordering::Relaxed);
            assert_eq!(tried, Ok(()));
        });
        let out = Path::new("a/../../outside");
        assert_eq!(
            open_in_root(&root, out, OFlag::O_PATH).err(),
            Some(Errno::ENOENT)
        );
        assert_eq!(
            open_beneath(&root, out, OFlag::O_PATH).err(),
            Some(Errno::EXDEV)
        );
    }
}
