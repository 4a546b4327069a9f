//! A log as a body: read once, or followed until its container has ended.
//!
//! Always true: nothing is polled while the kernel can tell. It tells of writes and new files, the
//! runtime of ends; whoever stops listening ends it all.

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::unix::AsyncFd,
    sync::{
        Semaphore, SemaphorePermit,
        broadcast::{self, error::RecvError},
        mpsc,
    },
};

use super::reader::{Place, Reader};
use crate::runtime::{Event, Phase, Runtime};

/// The host gives its users 128 watches of files each, and root has other uses for them.
const WATCHES: usize = 64;
static FREE_WATCHES: Semaphore = Semaphore::const_new(WATCHES);
/// How often a log is looked at that gets none of them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Until when a log is followed.
pub struct Follow {
    files: Watch,
    events: broadcast::Receiver<Event>,
    runtime: Runtime,
    pod_uid: String,
    container: String,
    /// The container was seen to have ended: what is in the file now is all.
    ended: bool,
}

impl Follow {
    /// Call before the file is read, so that no change falls between.
    pub async fn new(log: &Path, runtime: Runtime, pod_uid: String, container: String) -> Self {
        let mut follow = Self {
            files: Watch::new(log.parent().unwrap_or(Path::new("/"))),
            events: runtime.events(),
            runtime,
            pod_uid,
            container,
            ended: false,
        };
        follow.ended = has_ended(&follow.runtime, &follow.pod_uid, &follow.container).await;
        follow
    }

    /// Waits until there may be more to read.
    async fn changed(&mut self) -> io::Result<()> {
        // One wait, however many events of other pods come meanwhile.
        let mut changed = std::pin::pin!(self.files.changed());
        loop {
            tokio::select! {
                changed = &mut changed => return changed,
                event = self.events.recv() => match event {
                    Ok(event) if event.pod_uid != self.pod_uid => continue,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    // The runtime is being closed, and we with it.
                    Err(RecvError::Closed) => {
                        self.ended = true;
                        return Ok(());
                    }
                },
            }
            self.ended = has_ended(&self.runtime, &self.pod_uid, &self.container).await;
            if self.ended {
                return Ok(());
            }
        }
    }
}

async fn has_ended(runtime: &Runtime, pod_uid: &str, container: &str) -> bool {
    let pod = runtime.pod(pod_uid).await;
    let containers = pod.iter().flat_map(|pod| &pod.containers);
    let alive = pod.as_ref().is_some_and(|pod| pod.alive);
    let running = containers
        .filter(|one| one.id == container)
        .any(|one| !matches!(one.phase, Phase::Exited { .. }));
    !(alive && running)
}

/// Sends the log until its end; the receiver's end ends it at once.
pub async fn pump(reader: Reader, mut follow: Option<Follow>, client: mpsc::Sender<Bytes>) {
    let pumping = async {
        let mut reader = reader;
        loop {
            // Looked at before reading: an end seen now means that the file is complete.
            let ended = follow.as_ref().is_none_or(|follow| follow.ended);
            let (back, piece) = blocking(reader, Reader::next).await?;
            reader = back;
            if !piece.text.is_empty() && client.send(piece.text.into()).await.is_err() {
                return Ok(());
            }
            match piece.place {
                Place::Inside => continue,
                Place::Limit => return Ok(()),
                Place::End => {}
            }
            let Some(follow) = &mut follow else {
                return Ok(());
            };
            let (back, rotated) = blocking(reader, Reader::rotate).await?;
            reader = back;
            if rotated {
                continue;
            }
            if ended {
                return Ok(());
            }
            if !follow.ended {
                follow.changed().await?;
            }
        }
    };
    let pumped: io::Result<()> = tokio::select! {
        pumped = pumping => pumped,
        () = client.closed() => Ok(()),
    };
    if let Err(error) = pumped {
        tracing::warn!(%error, "read a container's log");
    }
}

async fn blocking<T: Send + 'static>(
    mut reader: Reader,
    work: fn(&mut Reader) -> io::Result<T>,
) -> io::Result<(Reader, T)> {
    let done = tokio::task::spawn_blocking(move || {
        let result = work(&mut reader);
        (reader, result)
    });
    let (reader, result) = done.await.map_err(io::Error::other)?;
    Ok((reader, result?))
}

/// Tells of changes in a folder.
enum Watch {
    Kernel {
        inotify: Arc<Inotify>,
        ready: AsyncFd<OwnedFd>,
        _permit: SemaphorePermit<'static>,
    },
    Clock,
}

impl Watch {
    /// Without a watch of the kernel's, which others of the host may have taken all of, the clock tells.
    fn new(folder: &Path) -> Self {
        let Ok(permit) = FREE_WATCHES.try_acquire() else {
            return Self::Clock;
        };
        Self::of_kernel(folder, permit).unwrap_or_else(|error| {
            tracing::debug!(folder = %folder.display(), %error, "a log is looked at now and then");
            Self::Clock
        })
    }

    #[expect(
        deprecated,
        reason = "sound here: an OwnedFd stays the same descriptor while it lives"
    )]
    fn of_kernel(folder: &Path, permit: SemaphorePermit<'static>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(folder, changes)?;
        let descriptor = std::os::fd::AsFd::as_fd(&inotify).try_clone_to_owned()?;
        Ok(Self::Kernel {
            inotify: Arc::new(inotify),
            ready: AsyncFd::new(descriptor)?,
            _permit: permit,
        })
    }

    /// Waits for changes and takes them all.
    async fn changed(&self) -> io::Result<()> {
        let Self::Kernel { inotify, ready, .. } = self else {
            tokio::time::sleep(LOOK_EVERY).await;
            return Ok(());
        };
        loop {
            let mut ready = ready.readable().await?;
            match ready.try_io(|_| Ok(inotify.read_events()?)) {
                Ok(events) => return events.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, time::Duration};

    use super::*;
    use crate::kubelet::server::logs::line::Wanted;

    #[tokio::test]
    async fn changes_wake_and_rotation_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:01Z stdout F {text}\n");
        std::fs::write(&path, line("one")).unwrap();
        let watch = Watch::new(dir.path());
        let mut reader = Reader::open(path.clone(), &Wanted::default(), true).unwrap();
        assert_eq!(reader.next().unwrap().text, b"one\n");
        let mut file = File::options().append(true).open(&path).unwrap();
        for step in ["write", "rename", "create"] {
            match step {
                "write" => file.write_all(line("two").as_bytes()).unwrap(),
                "rename" => std::fs::rename(&path, dir.path().join("0.log.old")).unwrap(),
                _ => std::fs::write(&path, line("three")).unwrap(),
            }
            let woken = tokio::time::timeout(Duration::from_secs(5), watch.changed());
            woken.await.expect(step).unwrap();
        }
        assert_eq!(reader.next().unwrap().text, b"two\n");
        assert!(reader.rotate().unwrap());
        assert_eq!(reader.next().unwrap().text, b"three\n");
    }

    #[tokio::test]
    async fn a_log_without_a_watch_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let watches: Vec<Watch> = (0..WATCHES + 1).map(|_| Watch::new(dir.path())).collect();
        let last = watches.last().unwrap();
        assert!(matches!(last, Watch::Clock));
        let woken = tokio::time::timeout(Duration::from_secs(5), last.changed());
        woken.await.unwrap().unwrap();
        // What the kernel refuses is looked at too: it has no more watches, or the folder is gone.
        drop(watches);
        let refused = Watch::new(&dir.path().join("none"));
        assert!(matches!(refused, Watch::Clock));
    }
}
