//! Taking over what an earlier daemon has left, running or half made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    super::{
        Config, Error,
        link::{Link, NoLink, lock},
        pod::{self, Pod},
        protocol::{Call, Failure},
        records::{self, PodDir},
        teardown::{self, io_error},
    },
    Node, PATIENCE, blocking, unread,
};
use crate::{
    backoff::Backoff,
    format::{self, Unreadable},
};

/// A start that an earlier daemon has ordered is asked about so often: of one that left no record
/// nothing is told.
const LAUNCH_LOOK: Duration = Duration::from_secs(1);
/// Between two tries to take a pod over.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAIT: Duration = Duration::from_secs(1);

impl Node {
    /// Takes over a pod that an earlier daemon made. What is not understood is left alone; a shortage
    /// that does not end is an error, since a pod that is not seen would be started a second time.
    pub(super) async fn adopt(self: &Arc<Self>, uid: &str) -> Result<(), Error> {
        let dir = PodDir::new(&self.config, uid);
        let found = dir.clone();
        let loaded = match blocking(move || Ok(pod::load(&found))).await? {
            Ok(loaded) => loaded,
            Err((_, Unreadable::Absent)) if !dir.has_begun() => {
                tracing::warn!(pod = uid, "removing a pod that has no record");
                let (config, hierarchy) = (self.config.clone(), self.hierarchy.clone());
                return blocking(move || teardown::remove_pod(&config, &hierarchy, &dir)).await;
            }
            Err((path, error @ Unreadable::Busy(_))) => {
                return Err(unread(format!("read {}", path.display()))(error));
            }
            Err((path, error)) => {
                let why = format!("{}: {error}", path.display());
                match format::set_aside(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(pod = uid, %error, "the record stays where it is");
                    }
                    _ => {}
                }
                self.leave_alone(uid, why);
                return Ok(());
            }
        };
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut wait = Backoff::new(FIRST_WAIT, LAST_WAIT);
        let pod = loop {
            let busy = match Link::connect(&dir.0).await {
                Err(error @ NoLink::Version { .. }) => {
                    self.leave_alone(uid, format!("its supervisor: {error}"));
                    return Ok(());
                }
                Err(NoLink::Busy(error)) => error,
                connected => {
                    let link = connected.inspect_err(|error| {
                        tracing::warn!(pod = uid, %error, "the pod's supervisor is gone");
                    });
                    match Pod::new(loaded.clone(), dir.clone(), link.ok(), self.events.clone()) {
                        Ok(pod) => break pod,
                        Err(error) => error,
                    }
                }
            };
            if tokio::time::Instant::now() > end {
                return Err(io_error(format!("take over pod {uid}"))(busy));
            }
            tracing::warn!(pod = uid, error = %busy, "the pod is not taken over yet, will retry");
            tokio::time::sleep(wait.next_wait()).await;
        };
        if pod.snapshot().containers.is_empty() {
            // That daemon may have ended before it made the group that limits them.
            let (node, record) = (self.clone(), pod.record.clone());
            blocking(move || node.make_pod_group(&record)).await?;
        }
        for id in pod.unstarted() {
            if is_unknown(&pod, &id).await {
                self.discard(&pod, &id).await?;
            }
        }
        lock(&self.pods).insert(uid.into(), pod.clone());
        for id in pod.unstarted() {
            tokio::spawn(self.clone().follow_launch(pod.clone(), id));
        }
        Ok(())
    }

    /// Waits for what becomes of a start that an earlier daemon has ordered, and tells of it: it runs,
    /// has failed, or leaves nothing.
    async fn follow_launch(self: Arc<Self>, pod: Arc<Pod>, id: String) {
        while tokio::time::timeout(LAUNCH_LOOK, pod.launched(&id))
            .await
            .is_err()
        {
            if is_unknown(&pod, &id).await {
                self.discard_logged(&pod, &id).await;
            }
        }
        pod.tell();
    }
}

/// Whether the supervisor surely has no such container, so that it will not start any more.
async fn is_unknown(pod: &Pod, id: &str) -> bool {
    let Some(link) = &pod.link else {
        return false;
    };
    // Signal 0 only asks.
    let call = Call::Signal {
        id: id.into(),
        signal: 0,
    };
    matches!(link.call(call).await, Ok((Err(Failure::NoContainer), _)))
}

/// Roots of containers that no record knows: what was there before the machine was restarted.
/// Their layers may be large, so nobody waits for them.
pub fn remove_strays(config: &Config, uids: &[String]) -> Result<(), Error> {
    let list = |dir: &Path| {
        let names = format::patiently(|| Ok(records::names(dir)?));
        names.map_err(unread(format!("list {}", dir.display())))
    };
    let mut known = std::collections::BTreeSet::new();
    for uid in uids {
        known.extend(list(&PodDir::new(config, uid).containers())?);
    }
    let strays: Vec<PathBuf> = list(&config.state_dir.join("containers"))?
        .into_iter()
        .filter(|id| !known.contains(id))
        .map(|id| records::root_dir(&config.state_dir, &id))
        .collect();
    if strays.is_empty() {
        return Ok(());
    }
    std::thread::spawn(move || {
        for path in strays {
            if let Err(error) = records::remove_dir(&path) {
                tracing::warn!(path = %path.display(), %error, "a stray root was not removed");
            }
        }
    });
    Ok(())
}
