//! Folders behind volumes of the provisioner `vetch.io/local`, on their node.
//!
//! A folder is made when the first pod comes that mounts the volume, and removed when the volume goes, if
//! its policy says so: a finalizer holds the object until then. Nothing else is ever removed, neither
//! what has no volume nor what lies elsewhere; whatever is mounted in a folder is not entered.
//!
//! Always true:
//! - A folder that was made and is missing is an error, never an empty volume. That it was made is
//!   recorded beside the folders' own folder, which may be a disk that is not mounted today.
//! - A folder whose removal has begun is not made again, however long a pod's start was on its way: its
//!   name holds the uid of a claim, and comes never again.

use std::{
    collections::VecDeque,
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    causes::causes,
    events::{Level, Recorder},
    informer::{Change, Informer, Informers, Key},
    placement::{
        local::{FINALIZER, place},
        volumes::reaches,
    },
    queue::{LOOK_AGAIN, Queue},
    runtime::files,
};

/// Folders that are removed at once.
const AT_ONCE: usize = 2;
/// Whoever runs in a pod may write; nobody else comes past the folder above.
const MODE: u32 = 0o777;
const MODE_ABOVE: u32 = 0o700;
/// An empty file for each folder that was made, of the folder's name.
const RECORDS: &str = "volumes-made";

/// Folders whose removal has begun; starts that were on their way then are over long before this many
/// have followed. A daemon that starts has no pod's start on its way.
static REMOVED: Mutex<VecDeque<PathBuf>> = Mutex::new(VecDeque::new());
const REMEMBERED: usize = 4096;

fn removed() -> MutexGuard<'static, VecDeque<PathBuf>> {
    REMOVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes one thing of the folder, unless its removal has begun, which does not begin meanwhile.
fn unless_removed<T>(folder: &Path, make: impl FnOnce() -> T) -> Result<T, String> {
    let removed = removed();
    match removed.iter().any(|one| one == folder) {
        false => Ok(make()),
        true => Err(format!(
            "the volume is being deleted, and its folder {} with it",
            folder.display()
        )),
    }
}

fn record(folder: &Path) -> Option<PathBuf> {
    let beside = folder.parent()?.parent()?.join(RECORDS);
    Some(beside.join(folder.file_name()?))
}

/// Makes the volume's folder if nobody has yet.
pub fn make(folder: &Path) -> Result<(), String> {
    let failed =
        |what: &str, error: std::io::Error| format!("{what} {}: {error}", folder.display());
    let record = record(folder).ok_or_else(|| format!("{} is no place", folder.display()))?;
    let recorded = record.exists();
    if recorded
        && matches!(fs::symlink_metadata(folder), Err(error) if error.kind() == ErrorKind::NotFound)
    {
        return Err(format!(
            "the folder {} of this volume is gone, and with it the data; make an empty one there to go on without",
            folder.display()
        ));
    }
    if let Some(above) = folder.parent() {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(MODE_ABOVE).create(above);
        made.map_err(|error| format!("create {}: {error}", above.display()))?;
    }
    match unless_removed(folder, || fs::DirBuilder::new().mode(MODE).create(folder))? {
        // The umask took something away.
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(MODE))
            .and_then(|()| sync(folder.parent()))
            .map_err(|error| failed("set the mode of", error))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(folder).map_err(|error| failed("find", error))?;
            if !found.is_dir() {
                return Err(format!("{} is not a folder", folder.display()));
            }
        }
        Err(error) => return Err(failed("create", error)),
    }
    if recorded {
        return Ok(());
    }
    let failed = |error: std::io::Error| format!("record {}: {error}", record.display());
    if let Some(above) = record.parent() {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(MODE_ABOVE).create(above);
        made.map_err(failed)?;
    }
    unless_removed(folder, || fs::File::create(&record))?.map_err(failed)?;
    // On disk before anybody writes into the folder.
    sync(record.parent()).map_err(failed)
}

/// The folder's entries are on disk. A record must not outlive its folder in a crash: it would lock the
/// volume.
fn sync(folder: Option<&Path>) -> std::io::Result<()> {
    folder.map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

/// Removes the folder and what is in it; one that is gone is fine.
fn remove(folder: &Path) -> Result<(), String> {
    let gone_is_fine = |path: &Path, done: std::io::Result<()>| match done {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    };
    let mut removed = removed();
    if !removed.iter().any(|one| one == folder) {
        removed.push_back(folder.to_owned());
        if removed.len() > REMEMBERED {
            removed.pop_front();
        }
    }
    drop(removed);
    gone_is_fine(folder, files::remove_tree(folder))?;
    match record(folder) {
        Some(record) => gone_is_fine(&record, fs::remove_file(&record)),
        None => Ok(()),
    }
}

/// What is to be done for a volume here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// The folder goes, then the object.
    Remove,
    /// The folder stays, the object goes.
    Keep,
}

/// Only when nothing else holds the volume: a claim that a pod uses does.
fn step(volume: &PersistentVolume) -> Step {
    let going = volume.metadata.deletion_timestamp.is_some();
    let last = matches!(volume.finalizers(), [one] if one == FINALIZER);
    if !going || !last {
        return Step::Nothing;
    }
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    match policy {
        Some("Delete") => Step::Remove,
        _ => Step::Keep,
    }
}

struct Remover {
    client: Client,
    events: Recorder,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    node: String,
    folders: PathBuf,
    queue: Queue<Key>,
}

/// Removes the folders of volumes that go, until `shutdown`. `folders`: those of this node lie there.
pub async fn run(
    informers: Informers,
    node: String,
    folders: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), tokio::task::JoinError> {
    let remover = Arc::new(Remover {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "vetch.io/local"),
        volumes: informers.get(),
        nodes: informers.some(&format!("metadata.name={node}")),
        node,
        folders,
        queue: Queue::default(),
    });
    let mut tasks = JoinSet::new();
    let watching = remover.clone();
    tasks.spawn(async move { watching.watch().await });
    for _ in 0..AT_ONCE {
        let working = remover.clone();
        tasks.spawn(async move { working.work().await });
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = tasks.join_next() => ended?,
    }
    tasks.shutdown().await;
    Ok(())
}

impl Remover {
    fn add_all(&self) {
        for volume in self.volumes.list() {
            self.queue.add(Key::of(volume.as_ref()));
        }
    }

    async fn watch(&self) {
        let mut changes = self.volumes.changes();
        tokio::join!(self.volumes.synced(), self.nodes.synced());
        self.add_all();
        let all = || {
            let all = self.volumes.list();
            all.iter().map(|one| Key::of(one.as_ref())).collect()
        };
        let follow = async {
            while let Some(change) = changes.next().await {
                match change {
                    Change::Applied { new, .. } if step(&new) != Step::Nothing => {
                        self.queue.add(Key::of(new.as_ref()));
                    }
                    Change::Applied { .. } | Change::Deleted(_) => {}
                    Change::Resync => self.add_all(),
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.queue.look_again(LOOK_AGAIN, all) => {}
        }
    }

    async fn work(&self) {
        loop {
            let key = self.queue.next().await;
            match self.sync(&key).await {
                Ok(()) => self.queue.forget(&key),
                Err(error) => {
                    tracing::warn!(volume = %*key, error, "folder not removed, will retry");
                    self.queue.retry(key.clone());
                }
            }
        }
    }

    async fn sync(&self, key: &Key) -> Result<(), String> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(());
        };
        let node = self.nodes.get(&Key::new("", &self.node));
        let here = node.is_some_and(|node| reaches(&volume, node.labels(), &self.node));
        let step = step(&volume);
        if !here || step == Step::Nothing {
            return Ok(());
        }
        if step == Step::Remove {
            let removed = self.remove(&volume).await;
            if let Err(why) = removed {
                self.events
                    .record(&*volume, Level::Warning, "VolumeFailedDelete", why.clone());
                return Err(why);
            }
        }
        let mut free = PersistentVolume::clone(&volume);
        free.finalizers_mut().retain(|one| one != FINALIZER);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        match volumes
            .replace(&key.name, &PostParams::default(), &free)
            .await
        {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            written => written.map(drop).map_err(|error| causes(&error)),
        }
    }

    async fn remove(&self, volume: &PersistentVolume) -> Result<(), String> {
        let folder = place(volume, &self.folders)?;
        let removing = tokio::task::spawn_blocking(move || remove(&folder));
        removing.await.map_err(|error| causes(&error))?
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_folder_is_made_once_and_is_everybodys() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("volumes/pvc-u_n_c");
        make(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&folder), MODE);
        assert_eq!(mode(folder.parent().unwrap()), MODE_ABOVE);
        // What its users made of it stays.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.join("kept"), "").unwrap();
        make(&folder).unwrap();
        assert_eq!(mode(&folder), 0o700);
        assert!(folder.join("kept").exists());
        // A disk that is not mounted is no empty volume.
        fs::rename(dir.path().join("volumes"), dir.path().join("elsewhere")).unwrap();
        assert!(make(&folder).unwrap_err().contains("is gone"));
        fs::rename(dir.path().join("elsewhere"), dir.path().join("volumes")).unwrap();
        make(&folder).unwrap();
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        // A start that was on its way must not leave a folder that nobody removes.
        assert!(make(&folder).unwrap_err().contains("is being deleted"));
        assert!(!folder.exists());
        let link = dir.path().join("volumes/pvc-l_n_c");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(make(&link).unwrap_err().contains("is not a folder"));
    }

    #[test]
    fn what_is_removed_and_when() {
        let (local, other) = (json!("vetch.io/local"), json!("other"));
        let now = json!("2026-01-01T00:00:00Z");
        let held = json!([FINALIZER]);
        let bound = json!([FINALIZER, "kubernetes.io/pv-protection"]);
        for (by, gone, finalizers, policy, want) in [
            (&local, Some(&now), &held, "Delete", Step::Remove),
            (&local, Some(&now), &held, "Retain", Step::Keep),
            (&local, Some(&now), &bound, "Delete", Step::Nothing),
            (&local, None, &held, "Delete", Step::Nothing),
            // Its finalizer would hold it for ever, whatever the annotation says.
            (&other, Some(&now), &held, "Delete", Step::Remove),
            (&local, Some(&now), &json!(["x"]), "Delete", Step::Nothing),
        ] {
            let volume = json!({"metadata": {"finalizers": finalizers, "deletionTimestamp": gone,
                "annotations": {"pv.kubernetes.io/provisioned-by": by}},
                "spec": {"persistentVolumeReclaimPolicy": policy}});
            assert_eq!(step(&serde_json::from_value(volume).unwrap()), want);
        }
    }
}
