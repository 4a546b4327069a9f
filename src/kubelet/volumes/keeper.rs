//! Keeps this node's folders of the class `local` as their volumes' objects say: a new volume's folder
//! is made, and one whose object goes is removed if its policy says so. Event-driven, like a controller
//! of its own: it acts with rights of its own, for the node may not write volumes.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Error, blocking, local};
use crate::{
    events::{Level, Recorder},
    informer::{Change, Informer, Informers, Key},
    local_volumes::{self, FINALIZER, HOSTNAME, MADE},
    placement,
    queue::{LOOK_AGAIN, Queue},
    supervision::caught,
};

/// Which folders are kept.
#[derive(Clone, Debug)]
pub struct Place {
    pub node: String,
    pub root: PathBuf,
}

/// Runs until `shutdown`.
pub async fn run(place: Place, informers: Informers, shutdown: CancellationToken) {
    let volumes: Informer<PersistentVolume> = informers.get();
    let mut changes = volumes.changes();
    let keeper = Keeper {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "local-volumes"),
        volumes,
        place,
        queue: Queue::default(),
    };
    let hear = async {
        while let Some(change) = changes.next().await {
            match change {
                Change::Applied { new, .. } => keeper.queue.add(Key::of(&*new)),
                Change::Deleted(_) => {}
                Change::Resync => keeper
                    .all()
                    .into_iter()
                    .for_each(|key| keeper.queue.add(key)),
            }
        }
    };
    let work = async {
        keeper.volumes.synced().await;
        keeper
            .all()
            .into_iter()
            .for_each(|key| keeper.queue.add(key));
        loop {
            let key = keeper.queue.next().await;
            match caught(keeper.keep(&key)).await {
                Ok(Ok(())) => keeper.queue.forget(&key),
                Ok(Err(error)) => {
                    tracing::debug!(volume = %*key, error, "a local volume is not as it should be, will retry");
                    keeper.queue.retry(key.clone());
                }
                Err(panic) => {
                    tracing::error!(volume = %*key, %panic, "keeping a local volume failed, will retry");
                    keeper.queue.retry(key.clone());
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = hear => {}
        () = work => {}
        () = keeper.queue.look_again(LOOK_AGAIN, || keeper.all()) => {}
    }
}

struct Keeper {
    client: Client,
    events: Recorder,
    volumes: Informer<PersistentVolume>,
    place: Place,
    queue: Queue<Key>,
}

/// What is to be done for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// Its folder, and word of it.
    Made,
    /// The folder goes, then the object may.
    Removed,
    /// The object may go without.
    LetGo,
}

impl Keeper {
    fn all(&self) -> Vec<Key> {
        let volumes = self.volumes.list();
        volumes.iter().map(|volume| Key::of(&**volume)).collect()
    }

    async fn keep(&self, key: &Key) -> Result<(), String> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(());
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match wanted(&volume, &self.place.node) {
            Wanted::Nothing => Ok(()),
            Wanted::Made => {
                self.on_disk(&volume, |volume, root| local::make(volume, root, None))
                    .await?;
                let patch = json!({"metadata": {
                    "uid": volume.metadata.uid, "annotations": {MADE: "true"},
                }});
                let patch = Patch::Merge(&patch);
                let told = api.patch(&key.name, &PatchParams::default(), &patch).await;
                gone_is_fine(told)
            }
            Wanted::Removed => {
                let removed = self.on_disk(&volume, local::remove).await;
                if let Err(why) = &removed {
                    self.events
                        .record(&*volume, Level::Warning, "VolumeFailedDelete", &**why);
                }
                removed?;
                self.let_go(&api, &volume).await
            }
            Wanted::LetGo => self.let_go(&api, &volume).await,
        }
    }

    async fn on_disk(
        &self,
        volume: &Arc<PersistentVolume>,
        work: fn(&PersistentVolume, &std::path::Path) -> Result<(), String>,
    ) -> Result<(), String> {
        let (volume, root) = (volume.clone(), self.place.root.clone());
        let done = blocking(move || work(&volume, &root).map_err(Error::Container));
        done.await.map_err(|error| error.to_string())
    }

    async fn let_go(
        &self,
        api: &Api<PersistentVolume>,
        volume: &PersistentVolume,
    ) -> Result<(), String> {
        let mut free = volume.clone();
        free.finalizers_mut().retain(|one| one != FINALIZER);
        let name = volume.name_any();
        gone_is_fine(api.replace(&name, &PostParams::default(), &free).await)
    }
}

fn gone_is_fine<T>(answer: Result<T, kube::Error>) -> Result<(), String> {
    match answer {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => Ok(()),
    }
}

fn wanted(volume: &PersistentVolume, node: &str) -> Wanted {
    if !local_volumes::is_ours(volume) || !is_on(volume, node) {
        return Wanted::Nothing;
    }
    if volume.metadata.deletion_timestamp.is_none() {
        return match local_volumes::is_made(volume) {
            true => Wanted::Nothing,
            false => Wanted::Made,
        };
    }
    // While others hold the object, its claim may still be there.
    if volume.finalizers() != [FINALIZER] {
        return Wanted::Nothing;
    }
    let spec = volume.spec.as_ref();
    match spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) {
        Some("Delete") => Wanted::Removed,
        _ => Wanted::LetGo,
    }
}

/// Whether the volume is this node's.
fn is_on(volume: &PersistentVolume, node: &str) -> bool {
    let spec = volume.spec.as_ref();
    let affinity = spec.and_then(|spec| spec.node_affinity.as_ref());
    let labels = BTreeMap::from([(HOSTNAME.to_owned(), node.to_owned())]);
    affinity
        .and_then(|affinity| affinity.required.as_ref())
        .is_some_and(|selector| placement::selects(selector, &labels, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_volumes::{PROVISIONED_BY, PROVISIONER};

    #[test]
    fn what_is_to_be_done() {
        let going = Some("2026-01-01T00:00:00Z");
        let ours = json!([FINALIZER]);
        let held = json!(["kubernetes.io/pv-protection", FINALIZER]);
        for (by, node, made, deleted, finalizers, policy, want) in [
            (PROVISIONER, "a", false, None, &held, "Delete", Wanted::Made),
            (
                PROVISIONER,
                "a",
                true,
                None,
                &held,
                "Delete",
                Wanted::Nothing,
            ),
            (
                PROVISIONER,
                "b",
                false,
                None,
                &held,
                "Delete",
                Wanted::Nothing,
            ),
            ("other", "a", false, None, &held, "Delete", Wanted::Nothing),
            (
                PROVISIONER,
                "a",
                true,
                going,
                &held,
                "Delete",
                Wanted::Nothing,
            ),
            (
                PROVISIONER,
                "a",
                true,
                going,
                &ours,
                "Delete",
                Wanted::Removed,
            ),
            (
                PROVISIONER,
                "a",
                true,
                going,
                &ours,
                "Retain",
                Wanted::LetGo,
            ),
            ("other", "a", true, going, &ours, "Delete", Wanted::Nothing),
        ] {
            let mut annotations = json!({PROVISIONED_BY: by});
            if made {
                annotations[MADE] = json!("true");
            }
            let volume = serde_json::from_value(json!({
                "metadata": {"name": "v", "annotations": annotations, "finalizers": finalizers,
                    "deletionTimestamp": deleted},
                "spec": {"persistentVolumeReclaimPolicy": policy,
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": HOSTNAME, "operator": "In", "values": [node]}]}]}}},
            }))
            .unwrap();
            assert_eq!(wanted(&volume, "a"), want, "{by} {node} {made} {policy}");
        }
    }
}
