//! The program that supervisors run.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::super::{rootfs, sys};

/// The program as supervisors see it: through a read-only mount of its own, so that a container
/// that gets hold of `/proc/<pid>/exe` cannot write to it.
#[derive(Debug)]
pub enum Program {
    Mounted(OwnedFd),
    /// On kernels that cannot.
    Plain(PathBuf),
}

impl Program {
    pub fn new(path: &Path) -> Self {
        let mounted = || -> std::io::Result<OwnedFd> {
            let mount = sys::open_tree(None, &rootfs::text(path)?, libc::OPEN_TREE_CLONE)?;
            let read_only = libc::MOUNT_ATTR_RDONLY;
            sys::mount_setattr(mount.as_fd(), false, read_only, 0, libc::MS_PRIVATE)?;
            Ok(mount)
        };
        match mounted() {
            Ok(mount) => Self::Mounted(mount),
            Err(error) => {
                tracing::warn!(%error, "supervisors run from the program's own file");
                Self::Plain(path.into())
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        match self {
            Self::Mounted(mount) => format!("/proc/self/fd/{}", mount.as_raw_fd()).into(),
            Self::Plain(path) => path.clone(),
        }
    }
}
