//! Notices that something happens to a folder or in it, also when it is replaced, or removed and made
//! again: the folder above it is watched too.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::net::unix::pipe;

pub struct FolderWatch {
    folder: PathBuf,
    /// `None` while the kernel gives none: then nothing is noticed.
    inotify: Option<(Inotify, pipe::Receiver)>,
    /// Of the folder, and of the one above.
    watched: [Option<WatchDescriptor>; 2],
}

impl FolderWatch {
    pub fn new(folder: PathBuf) -> Self {
        let inotify = inotify();
        if let Err(error) = &inotify {
            tracing::warn!(folder = %folder.display(), %error, "the folder is looked at now and then");
        }
        Self {
            folder,
            inotify: inotify.ok(),
            watched: [None, None],
        }
    }

    /// Watches what is there now by that name; asks again for what the kernel refused.
    pub fn renew(&mut self) {
        self.inotify = self.inotify.take().or_else(|| inotify().ok());
        let names = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        let own = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let inside = names | own | AddWatchFlags::IN_CLOSE_WRITE;
        let folder = self.folder.clone();
        self.watch(0, &folder, inside);
        if let Some(above) = folder.parent() {
            self.watch(1, above, names | own);
        }
    }

    fn watch(&mut self, which: usize, path: &Path, flags: AddWatchFlags) {
        let (Some((inotify, _)), Some(slot)) = (&self.inotify, self.watched.get_mut(which)) else {
            return;
        };
        let now = match inotify.add_watch(path, flags) {
            Ok(watch) => Some(watch), // the same as before for the same folder
            Err(Errno::ENOENT | Errno::ENOTDIR) => None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "not watched");
                None
            }
        };
        let before = std::mem::replace(slot, now);
        if let Some(before) = before.filter(|before| Some(*before) != now) {
            // It went by itself if its folder is gone.
            let _ = inotify.rm_watch(before);
        }
    }

    /// Waits for something to happen and takes all there is; what it was does not matter.
    pub async fn changed(&self) {
        let Some((_, reader)) = &self.inotify else {
            return std::future::pending().await;
        };
        if let Err(error) = reader.readable().await {
            tracing::warn!(%error, "the watch of a folder has ended");
            return std::future::pending().await;
        }
        let mut buffer = [0; 4096];
        while { reader.try_read(&mut buffer) }.is_ok_and(|length| length > 0) {}
    }
}

fn inotify() -> std::io::Result<(Inotify, pipe::Receiver)> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let reader = inotify.as_fd().try_clone_to_owned()?;
    // Not a pipe, but read like one.
    Ok((inotify, pipe::Receiver::from_owned_fd_unchecked(reader)?))
}
