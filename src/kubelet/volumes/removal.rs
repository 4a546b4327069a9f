//! Takes a pod's folder away: unmounts what is mounted below, then removes files.
//!
//! Knows nothing of what was made there, hence works after any crash. Links are removed, never
//! followed; a mount that is still there is never entered.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{Error, io, mountinfo};
use crate::{
    runtime::files,
    supervision::steps::{Step, reached},
};

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
    reached(Step::VolumesUnmounted);
    files::remove_tree(&real).map_err(io("remove", &real))?;
    reached(Step::VolumesRemoved);
    Ok(())
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
