//! Writes the volumes of the provisioner `vetch.io/local`, lets them grow and deletes them.
//!
//! `local.rs` decides. The binder binds what is made here, as it does with every provisioner's.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use super::local::{self, Fate};
use crate::{
    controllers::{
        error::{Doing, Error, OrGone, already_exists},
        shared::{Controller, Loop, Next, Stopped},
    },
    deletion::Judged,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
    placement::{
        local::{FINALIZER, PROVISIONER, is_local},
        volumes::{
            SELECTED_NODE, capacity, class_of, is_bound, is_of, reaches, reference, request,
            request_text,
        },
    },
};

/// As many volumes are written at once: each waits for the store's disk.
const AT_ONCE: usize = 8;

/// Runs until `shutdown`. `folders`: where the volumes of every node lie.
pub async fn run(
    informers: Informers,
    folders: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let claims: Informer<PersistentVolumeClaim> = informers.get();
    let volumes: Informer<PersistentVolume> = informers.get();
    let classes: Informer<StorageClass> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let maker = Maker {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), PROVISIONER),
        claims: claims.clone(),
        volumes: volumes.clone(),
        classes: classes.clone(),
        nodes: nodes.clone(),
        folders,
        refused: Mutex::default(),
    };
    let remover = Remover {
        client: informers.client().clone(),
        volumes: volumes.clone(),
        nodes: nodes.clone(),
    };
    let waiting = claims.clone();
    let making = Loop::new(maker, &claims)
        .watch(&classes, move |_| {
            let mut held = waiting.list();
            held.retain(|claim| !is_bound(claim));
            held.iter().map(|claim| Key::of(claim.as_ref())).collect()
        })
        .run(AT_ONCE, shutdown.clone());
    let all = volumes.clone();
    let removing = Loop::new(remover, &volumes)
        .watch_changes(
            &nodes,
            |old, new| old.metadata.labels == new.metadata.labels,
            move |_| all.list().iter().map(|one| Key::of(one.as_ref())).collect(),
        )
        .run(AT_ONCE, shutdown);
    tokio::try_join!(making, removing).map(|_| ())
}

struct Maker {
    client: Client,
    events: Recorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    folders: PathBuf,
    /// Why claims got none, as their events have said already.
    refused: Mutex<HashMap<Key, String>>,
}

impl Controller for Maker {
    const NAME: &'static str = "local-volume-provisioner";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else {
            self.forget(key);
            return Ok(Next::Settled);
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        let class = class_of(&claim).and_then(|name| self.classes.get(&Key::new("", name)));
        if is_bound(&claim) {
            self.forget(key);
            self.grow(key, &claim, class.as_deref()).await?;
            return Ok(Next::Settled);
        }
        let named = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref());
        let named = named.is_some_and(|name| !name.is_empty());
        let Some(class) = class.filter(|class| class.provisioner == PROVISIONER && !named) else {
            return Ok(Next::Settled);
        };
        let node = claim.annotations().get(SELECTED_NODE);
        let Some(node) = node else {
            if let Some(why) = local::refusal(&claim, &class) {
                self.refuse(key, &claim, why);
            }
            return Ok(Next::Settled);
        };
        let Some(node) = self.nodes.get(&Key::new("", node)) else {
            self.reschedule(key, &claim, node).await?;
            return Ok(Next::Settled);
        };
        match local::volume(&claim, &class, &node, &self.folders) {
            Ok(volume) => self.create(key, &claim, &volume).await?,
            Err(why) => self.refuse(key, &claim, why),
        }
        Ok(Next::Settled)
    }
}

impl Maker {
    fn forget(&self, key: &Key) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.remove(key);
    }

    /// Says so once.
    fn refuse(&self, key: &Key, claim: &PersistentVolumeClaim, why: String) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.insert(key.clone(), why.clone()).as_ref() == Some(&why) {
            return;
        }
        let text = format!(
            "failed to provision volume with StorageClass {:?}: {why}",
            class_of(claim).unwrap_or_default()
        );
        self.events
            .record(claim, Level::Warning, "ProvisioningFailed", text);
    }

    async fn create(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        let name = volume.name_any();
        if self.volumes.get(&Key::new("", &name)).is_some() {
            return Ok(());
        }
        let text = format!("External provisioner is provisioning volume for claim \"{key}\"");
        self.events
            .record(claim, Level::Normal, "Provisioning", text);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        match volumes.create(&PostParams::default(), volume).await {
            Err(error) if already_exists(&error) => return Ok(()),
            made => made.doing(|| format!("create volume {name} for claim {key}"))?,
        };
        let text = format!("Successfully provisioned volume {name}");
        self.events
            .record(claim, Level::Normal, "ProvisioningSucceeded", text);
        Ok(())
    }

    /// The node that was chosen is gone: the scheduler chooses another one.
    async fn reschedule(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        node: &str,
    ) -> Result<(), Error> {
        // The cache may not show the node yet.
        let nodes: Api<Node> = Api::all(self.client.clone());
        let listed = nodes
            .list(&kube::api::ListParams::default().fields(&format!("metadata.name={node}")))
            .await
            .doing(|| format!("ask for node {node} of claim {key}"))?;
        if !listed.items.is_empty() {
            return Err(Error::invalid("selected node", key, "not known here yet"));
        }
        let text = format!(
            "failed to provision volume with StorageClass {:?}: node {node:?} is gone",
            class_of(claim).unwrap_or_default()
        );
        self.events
            .record(claim, Level::Warning, "ProvisioningFailed", text);
        let mut free = claim.clone();
        free.annotations_mut().remove(SELECTED_NODE);
        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace)
            .replace(&key.name, &PostParams::default(), &free)
            .await
            .or_gone()
            .doing(|| format!("let claim {key} go to another node"))?;
        Ok(())
    }

    /// The volume says what the claim asks for by now; the binder tells the claim.
    async fn grow(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
    ) -> Result<(), Error> {
        let name = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.clone());
        let name = name.unwrap_or_default();
        let held = self.volumes.get(&Key::new("", &name));
        let Some(volume) = held.filter(|volume| {
            is_local(volume) && reference(volume).is_some_and(|of| is_of(of, claim))
        }) else {
            return Ok(());
        };
        let grows = request(claim) > capacity(&volume);
        let may = class.is_some_and(|class| class.allow_volume_expansion == Some(true));
        let Some(size) = request_text(claim).filter(|_| grows && may) else {
            return Ok(());
        };
        let mut grown = PersistentVolume::clone(&volume);
        let spec = grown.spec.get_or_insert_default();
        let capacity = spec.capacity.get_or_insert_default();
        capacity.insert("storage".to_owned(), size.clone());
        let text = format!("External resizer is resizing volume {name}");
        self.events.record(claim, Level::Normal, "Resizing", text);
        Api::<PersistentVolume>::all(self.client.clone())
            .replace(&name, &PostParams::default(), &grown)
            .await
            .or_gone()
            .doing(|| format!("let volume {name} of claim {key} grow"))?;
        self.events.record(
            claim,
            Level::Normal,
            "VolumeResizeSuccessful",
            "Resize volume succeeded",
        );
        Ok(())
    }
}

struct Remover {
    client: Client,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
}

impl Controller for Remover {
    const NAME: &'static str = "local-volume-remover";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.volumes.get(key);
        let Some(volume) = held.filter(|volume| is_local(volume)) else {
            return Ok(Next::Settled);
        };
        let has_node = self
            .nodes
            .list()
            .iter()
            .any(|node| reaches(&volume, node.labels(), &node.name_any()));
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        match local::fate(&volume, has_node) {
            Fate::Stays => {}
            Fate::Delete => {
                let params = Judged::State.params(&volume.metadata, DeleteParams::default());
                volumes
                    .delete(&key.name, &params)
                    .await
                    .or_gone()
                    .doing(|| format!("delete volume {key}, which nobody has"))?;
            }
            Fate::LetGo => {
                tracing::warn!(volume = %key, "its node is gone, and so is its folder");
                let mut free = PersistentVolume::clone(&volume);
                free.finalizers_mut().retain(|one| one != FINALIZER);
                volumes
                    .replace(&key.name, &PostParams::default(), &free)
                    .await
                    .or_gone()
                    .doing(|| format!("let volume {key} go"))?;
            }
        }
        Ok(Next::Settled)
    }
}
