//! Persistent volumes: claims get the volumes that fit them, volumes say what they are, and neither
//! goes while it is in use.
//!
//! `plan.rs` decides, `protect.rs` holds what is in use, `provision.rs` says what a new volume of the
//! class `local` looks like. Only objects are written here: folders are the nodes'.

pub mod ephemeral;
mod plan;
pub mod protect;
mod provision;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::{
    core::v1::{
        Node, ObjectReference, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeClaimStatus, PersistentVolumeStatus, Pod,
    },
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use self::plan::{BY_CONTROLLER, COMPLETED, ClaimStep, VolumeStep};
use super::{
    error::{Doing, Error, OrGone, already_exists},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
    local_volumes,
};

/// Runs the binder until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let volumes: Informer<PersistentVolume> = informers.get();
    let claims: Informer<PersistentVolumeClaim> = informers.get();
    let classes: Informer<StorageClass> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let client = informers.client().clone();
    let binder = Claims {
        client: client.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
        classes: classes.clone(),
        pods: pods.clone(),
        nodes: informers.get(),
        events: Recorder::start(client.clone(), "persistentvolume-controller"),
        told: Mutex::default(),
    };
    let teller = Volumes {
        client,
        claims: claims.clone(),
        volumes: volumes.clone(),
    };
    let (waiting, unbound) = (claims.clone(), claims.clone());
    let binding = Loop::new(binder, &claims)
        .watch(&volumes, move |volume| {
            // Who waits may want it; who has it wants to know.
            let mut held = waiting.list();
            let of = volume
                .spec
                .as_ref()
                .and_then(|spec| spec.claim_ref.as_ref());
            held.retain(|claim| !is_bound(claim) || of.is_some_and(|of| plan::is_of(of, claim)));
            held.iter().map(|claim| Key::of(claim.as_ref())).collect()
        })
        .watch(&classes, move |_| {
            let mut held = unbound.list();
            held.retain(|claim| !is_bound(claim));
            held.iter().map(|claim| Key::of(claim.as_ref())).collect()
        })
        .watch_changes(&pods, |old, new| old.spec == new.spec, protect::claims_of)
        .run(1, shutdown.clone());
    let named = volumes.clone();
    let telling = Loop::new(teller, &volumes)
        .watch(&claims, move |claim| {
            let name = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.volume_name.clone());
            let mut keys: Vec<Key> = name.map(|name| Key::new("", name)).into_iter().collect();
            // Also those that name the claim before, or without, being named by it.
            let all = named.list();
            let naming = all.iter().filter(|volume| names(volume, claim));
            keys.extend(naming.map(|volume| Key::of(volume.as_ref())));
            keys
        })
        .run(1, shutdown);
    tokio::try_join!(binding, telling).map(|_| ())
}

/// Whether the volume's reference is to a claim of this name.
fn names(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    of.is_some_and(|of| of.name == claim.metadata.name && of.namespace == claim.metadata.namespace)
}

/// A volume that could not be made is tried again, in case what was in the way is not any more.
const PROVISION_AGAIN: std::time::Duration = std::time::Duration::from_secs(15);

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(COMPLETED)
}

struct Claims {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    events: Recorder,
    /// Why claims wait, as their events have said already.
    told: Mutex<HashMap<Key, String>>,
}

impl Controller for Claims {
    const NAME: &'static str = "persistentvolume-binder-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(claim) = self.claims.get(key) else {
            told().remove(key);
            return Ok(Next::Settled);
        };
        if !is_bound(&claim)
            && provision::lacks_class(&claim)
            && let Some(class) = provision::default_class(&self.classes.list())
        {
            // What comes of it is seen in the next sync.
            return self.classify(key, &claim, class).await;
        }
        let class = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.clone());
        let class = class.and_then(|name| self.classes.get(&Key::new("", name)));
        let waits = class.as_ref().is_some_and(|class| {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        });
        let used = waits && protect::is_used(&claim, &self.pods.list_in(&key.namespace));
        match plan::claim(&claim, &self.volumes.list(), used, waits) {
            ClaimStep::Bind(name) => {
                told().remove(key);
                let volume = self.volumes.get(&Key::new("", name));
                if let Some(volume) = volume {
                    let volume = self.grown(key, &claim, &volume).await?;
                    self.bind(key, &claim, &volume).await?;
                }
            }
            ClaimStep::Wait(why) => {
                self.phase(key, &claim, "Pending").await?;
                let named = claim.spec.as_ref().is_some_and(|spec| {
                    !spec.volume_name.as_deref().unwrap_or_default().is_empty()
                });
                let class = class.filter(|class| provision::provisions(class) && !named);
                let Some(class) = class else {
                    let reason = if waits && !used {
                        "WaitForFirstConsumer"
                    } else {
                        "FailedBinding"
                    };
                    self.tell(key, &claim, Level::Normal, reason, why.to_owned());
                    return Ok(Next::Settled);
                };
                if waits && provision::selected_node(&claim).is_none() {
                    match used {
                        false => {
                            let why = why.to_owned();
                            self.tell(key, &claim, Level::Normal, "WaitForFirstConsumer", why);
                        }
                        true => {
                            let why = "waiting for its pod to be scheduled".to_owned();
                            self.tell(key, &claim, Level::Normal, "WaitForPodScheduled", why);
                        }
                    }
                    return Ok(Next::Settled);
                }
                return self.provision(key, &claim, &class).await;
            }
            ClaimStep::Lose(why) => {
                if self.phase(key, &claim, "Lost").await? {
                    self.events
                        .record(&*claim, Level::Warning, "ClaimLost", why);
                }
            }
        }
        Ok(Next::Settled)
    }
}

impl Claims {
    /// Once: a claim that waits is looked at whenever a volume changes.
    fn tell(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        level: Level,
        reason: &'static str,
        why: String,
    ) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(key) != Some(&why) {
            self.events.record(claim, level, reason, why.clone());
            told.insert(key.clone(), why);
        }
    }

    /// A claim that came before there was a default class gets the one that there is now.
    async fn classify(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        class: String,
    ) -> Result<Next, Error> {
        let mut with = claim.clone();
        with.spec.get_or_insert_default().storage_class_name = Some(class);
        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace)
            .replace(&key.name, &PostParams::default(), &with)
            .await
            .or_gone()
            .doing(|| format!("give claim {key} the default class"))?;
        Ok(Next::Settled)
    }

    /// Has a volume made for the claim: here, or by whoever makes those of its class.
    async fn provision(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Next, Error> {
        let provisioner = &class.provisioner;
        let mut claim = claim.clone();
        let marks = claim.annotations_mut();
        if provision::STORAGE_PROVISIONER
            .iter()
            .any(|mark| marks.get(*mark) != Some(provisioner))
        {
            for mark in provision::STORAGE_PROVISIONER {
                marks.insert(mark.into(), provisioner.clone());
            }
            let api = Api::namespaced(self.client.clone(), &key.namespace);
            let marked = api.replace(&key.name, &PostParams::default(), &claim).await;
            let marked = marked.or_gone();
            let Some(marked) = marked.doing(|| format!("ask for a volume for claim {key}"))? else {
                return Ok(Next::Settled);
            };
            claim = marked;
        }
        if !provision::is_ours(class) {
            let why = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            self.tell(key, &claim, Level::Normal, "ExternalProvisioning", why);
            return Ok(Next::Settled);
        }
        let failed = |why: String| {
            let class = class.name_any();
            let why = format!("failed to provision volume with StorageClass {class:?}: {why}");
            self.tell(key, &claim, Level::Warning, "ProvisioningFailed", why);
            Ok(Next::After(PROVISION_AGAIN))
        };
        let node = match provision::selected_node(&claim) {
            Some(name) => self.nodes.get(&Key::new("", name)),
            // Without a scheduler's choice there is one only where there is nothing to choose.
            None => match self.nodes.list().as_slice() {
                [only] => Some(only.clone()),
                _ => return failed("no node was chosen: the class needs the volumeBindingMode WaitForFirstConsumer".into()),
            },
        };
        let Some(node) = node else {
            return failed("the selected node does not exist".into());
        };
        let volume = match provision::volume(&claim, class, &node) {
            Ok(volume) => volume,
            Err(why) => return failed(why),
        };
        let name = volume.name_any();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = match volumes.create(&PostParams::default(), &volume).await {
            Ok(made) => {
                let why = format!("Successfully provisioned volume {name}");
                self.tell(key, &claim, Level::Normal, "ProvisioningSucceeded", why);
                made
            }
            // Of a sync that was cut off. The cache will show it.
            Err(error) if already_exists(&error) => return Ok(Next::After(PROVISION_AGAIN)),
            made => made.doing(|| format!("make a volume for claim {key}"))?,
        };
        self.bind(key, &claim, &volume).await?;
        Ok(Next::Settled)
    }

    /// The volume, as large as the claim asks for by now if that is ours to say.
    async fn grown(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<PersistentVolume, Error> {
        let size = provision::wants_more(claim, volume);
        let size = size.filter(|_| is_bound(claim) && local_volumes::is_ours(volume));
        let Some(size) = size else {
            return Ok(volume.clone());
        };
        let mut larger = volume.clone();
        let spec = larger.spec.get_or_insert_default();
        let capacity = spec.capacity.get_or_insert_default();
        capacity.insert("storage".into(), size);
        let name = volume.name_any();
        let larger = Api::all(self.client.clone())
            .replace(&name, &PostParams::default(), &larger)
            .await
            .doing(|| format!("let volume {name} of claim {key} grow"))?;
        let why = "Resize volume succeeded";
        self.events
            .record(claim, Level::Normal, "VolumeResizeSuccessful", why);
        Ok(larger)
    }

    /// Volume first: two claims that want it meet there, and one of them conflicts.
    async fn bind(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        let name = &volume.name_any();
        let doing = || format!("bind claim {key} to volume {name}");
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut taken = volume.clone();
        let spec = taken.spec.get_or_insert_default();
        let by_controller = spec.claim_ref.is_none();
        let reference = spec.claim_ref.get_or_insert_with(ObjectReference::default);
        reference.api_version = Some("v1".into());
        reference.kind = Some("PersistentVolumeClaim".into());
        reference.name = claim.metadata.name.clone();
        reference.namespace = claim.metadata.namespace.clone();
        if reference.uid != claim.metadata.uid {
            reference.uid = claim.metadata.uid.clone();
            reference.resource_version = claim.metadata.resource_version.clone();
        }
        if by_controller {
            taken
                .annotations_mut()
                .insert(BY_CONTROLLER.into(), "yes".into());
        }
        let params = PostParams::default();
        let by_us = by_controller;
        if taken != *volume {
            taken = volumes.replace(name, &params, &taken).await.doing(doing)?;
        }
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &key.namespace);
        let mut bound = claim.clone();
        let spec = bound.spec.get_or_insert_default();
        let by_controller = spec.volume_name.as_deref().unwrap_or_default().is_empty();
        spec.volume_name = Some(name.into());
        let marks = bound.annotations_mut();
        marks.insert(COMPLETED.into(), "yes".into());
        if by_controller {
            marks.insert(BY_CONTROLLER.into(), "yes".into());
        }
        if bound != *claim {
            let written = claims.replace(&key.name, &params, &bound).await;
            let Some(written) = written.or_gone().doing(doing)? else {
                if by_us {
                    // Nobody ever had it: what cannot be written back here is told as released.
                    volumes
                        .replace(name, &params, &freed(&taken, true))
                        .await
                        .doing(doing)?;
                }
                return Ok(());
            };
            bound = written;
        }
        let has = taken.spec.unwrap_or_default();
        let status = PersistentVolumeClaimStatus {
            phase: Some("Bound".into()),
            access_modes: has.access_modes,
            capacity: has.capacity,
            ..bound.status.clone().unwrap_or_default()
        };
        if bound.status.as_ref() != Some(&status) {
            bound.status = Some(status);
            claims
                .replace_status(&key.name, &params, &bound)
                .await
                .or_gone()
                .doing(doing)?;
        }
        Ok(())
    }

    /// Says whether it was another before.
    async fn phase(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        phase: &str,
    ) -> Result<bool, Error> {
        let mut told = claim.clone();
        let status = told.status.get_or_insert_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(false);
        }
        status.phase = Some(phase.into());
        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace)
            .replace_status(&key.name, &PostParams::default(), &told)
            .await
            .or_gone()
            .doing(|| format!("tell claim {key} that it is {phase}"))?;
        Ok(true)
    }
}

/// The volume without its claim: without the reference, or without the uid in it.
fn freed(volume: &PersistentVolume, whole: bool) -> PersistentVolume {
    let mut free = volume.clone();
    let spec = free.spec.get_or_insert_default();
    if whole {
        spec.claim_ref = None;
        free.annotations_mut().remove(BY_CONTROLLER);
    } else if let Some(of) = &mut spec.claim_ref {
        of.uid = None;
        of.resource_version = None;
    }
    free
}

/// Whether it is to go now that its claim is gone, and that is ours to do.
fn deletes(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    policy == Some("Delete")
        && local_volumes::is_ours(volume)
        && volume.metadata.deletion_timestamp.is_none()
}

struct Volumes {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

impl Volumes {
    async fn unbind(&self, key: &Key, volume: &PersistentVolume, whole: bool) -> Result<(), Error> {
        Api::<PersistentVolume>::all(self.client.clone())
            .replace(&key.name, &PostParams::default(), &freed(volume, whole))
            .await
            .or_gone()
            .doing(|| format!("take volume {key} from a claim that has another"))?;
        Ok(())
    }
}

impl Controller for Volumes {
    const NAME: &'static str = "persistentvolume-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(Next::Settled);
        };
        let of = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        let of = of.map(|of| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            Key::new(text(&of.namespace), text(&of.name))
        });
        let mut claim = of.as_ref().and_then(|of| self.claims.get(of));
        if let (Some(of), None) = (&of, &claim) {
            // Before a volume is given up, the claim is asked for itself.
            claim = Api::namespaced(self.client.clone(), &of.namespace)
                .get_opt(&of.name)
                .await
                .doing(|| format!("ask for claim {of} of volume {key}"))?
                .map(Arc::new);
        }
        let (phase, message) = match plan::volume(&volume, claim.as_deref()) {
            VolumeStep::Available => ("Available", None),
            VolumeStep::Bound => ("Bound", None),
            VolumeStep::Released if deletes(&volume) => {
                // Its node's finalizer holds it until the folder is gone.
                let params = Judged::State.params(&volume.metadata, DeleteParams::default());
                Api::<PersistentVolume>::all(self.client.clone())
                    .delete(&key.name, &params)
                    .await
                    .or_gone()
                    .doing(|| format!("delete volume {key}"))?;
                // What it is told comes with this change.
                return Ok(Next::Settled);
            }
            VolumeStep::Released => ("Released", None),
            VolumeStep::Failed(why) => ("Failed", Some(why.to_owned())),
            VolumeStep::Leave => return Ok(Next::Settled),
            VolumeStep::Unbind { whole } => {
                // Its next phase comes with this change.
                self.unbind(key, &volume, whole).await?;
                return Ok(Next::Settled);
            }
        };
        if plan::phase(&volume) == phase {
            return Ok(Next::Settled);
        }
        let mut told = PersistentVolume::clone(&volume);
        told.status = Some(PersistentVolumeStatus {
            phase: Some(phase.into()),
            message,
            ..volume.status.clone().unwrap_or_default()
        });
        Api::<PersistentVolume>::all(self.client.clone())
            .replace_status(&key.name, &PostParams::default(), &told)
            .await
            .or_gone()
            .doing(|| format!("tell volume {key} that it is {phase}"))?;
        Ok(Next::Settled)
    }
}
