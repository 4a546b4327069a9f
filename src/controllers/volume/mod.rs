//! Persistent volumes: claims get the volumes that fit them, volumes say what they are, and neither
//! goes while it is in use.
//!
//! `plan.rs` decides, `protect.rs` holds what is in use. `provision.rs` writes the volumes of the
//! provisioner `vetch.io/local`; others are made by people or by drivers' own programs.

pub mod ephemeral;
mod local;
mod plan;
pub mod protect;
mod provision;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::{
    core::v1::{
        ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
        PersistentVolumeStatus, Pod,
    },
    storage::v1::StorageClass,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;

use self::plan::{ClaimStep, VolumeStep, Waiting};
use super::{
    error::{Doing, Error, OrGone},
    shared::{Controller, Loop, Next, Stopped},
    written::{PATIENCE, Written},
};
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
    placement::{
        local as local_provisioner,
        volumes::{
            self as pairs, BY_CONTROLLER, COMPLETED, PROVISIONER, class_of, default_class, is_bound,
        },
    },
};

/// The name of the annotation of who makes a volume, before it was stable.
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Claims and volumes that are written at once. Two claims that want one volume meet there, and one of
/// them conflicts.
const AT_ONCE: usize = 8;

/// Runs binder and provisioner until `shutdown`. `folders`: where nodes keep what is provisioned.
pub async fn run(
    informers: Informers,
    folders: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let provisioning = provision::run(informers.clone(), folders, shutdown.clone());
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
        events: Recorder::start(client.clone(), "persistentvolume-controller"),
        told: Mutex::default(),
        written: Written::default(),
    };
    let teller = Volumes {
        client,
        claims: claims.clone(),
        volumes: volumes.clone(),
        written: Written::default(),
    };
    let (waiting, unbound) = (claims.clone(), claims.clone());
    let binding = Loop::new(binder, &claims)
        .watch(&volumes, move |volume| concerned(volume, &waiting.list()))
        .watch(&classes, move |_| {
            let mut held = unbound.list();
            held.retain(|claim| !is_bound(claim));
            held.iter().map(|claim| Key::of(claim.as_ref())).collect()
        })
        .watch_changes(
            &pods,
            |old, new| protect::is_kept_waiting(old) == protect::is_kept_waiting(new),
            |pod| match protect::is_kept_waiting(pod) {
                true => protect::claims_of(pod),
                false => Vec::new(),
            },
        )
        .run(AT_ONCE, shutdown.clone());
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
        .run(AT_ONCE, shutdown);
    tokio::try_join!(binding, telling, provisioning).map(|_| ())
}

/// The claims that a change of the volume may help: who has it or names it and, if it is free, whoever
/// waits. A volume that was made for one claim concerns no other.
fn concerned(volume: &PersistentVolume, claims: &[Arc<PersistentVolumeClaim>]) -> Vec<Key> {
    let of = pairs::reference(volume);
    let concerned = claims.iter().filter(|claim| {
        let named = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_ref());
        let names = named.is_some() && named == volume.metadata.name.as_ref();
        names || of.map_or(!is_bound(claim), |of| pairs::is_of(of, claim))
    });
    concerned.map(|claim| Key::of(claim.as_ref())).collect()
}

/// Whether the volume's reference is to a claim of this name.
fn names(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    of.is_some_and(|of| of.name == claim.metadata.name && of.namespace == claim.metadata.namespace)
}

struct Claims {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    events: Recorder,
    /// Why claims wait, as their events have said already.
    told: Mutex<HashMap<Key, String>>,
    /// Writes of claims that the cache does not show yet: what comes before them is out of date.
    written: Written,
}

impl Controller for Claims {
    const NAME: &'static str = "persistentvolume-binder-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(claim) = self.claims.get(key) else {
            told().remove(key);
            self.written.forget(key);
            return Ok(Next::Settled);
        };
        if !self.written.visible(key, &self.claims) {
            return Ok(Next::After(PATIENCE));
        }
        if self.give_class(key, &claim).await? {
            return Ok(Next::Settled); // it comes back with its class
        }
        let class = class_of(&claim).and_then(|name| self.classes.get(&Key::new("", name)));
        let users = || protect::waiting_users(&claim, &self.pods.list_in(&key.namespace));
        match plan::claim(&claim, &self.volumes.list(), class.as_deref(), users) {
            ClaimStep::Bind(name) => {
                told().remove(key);
                self.bind(key, &claim, &name).await?;
            }
            // Ours sees the claim itself, and the claim says so when it is bound.
            ClaimStep::Provision(by) if by == local_provisioner::PROVISIONER => {}
            ClaimStep::Provision(by) => self.leave_to(key, &claim, &by).await?,
            ClaimStep::Wait(Waiting {
                level,
                reason,
                message,
            }) => {
                self.phase(key, &claim, "Pending").await?;
                // Once: a claim that waits is looked at whenever a volume changes.
                if told().insert(key.clone(), message.clone()).as_ref() != Some(&message) {
                    self.events.record(&*claim, level, reason, message);
                }
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
    /// A claim that names no class gets the default one as soon as there is one; true if it did.
    async fn give_class(&self, key: &Key, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let named = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref());
        let free = named.unwrap_or_default().is_empty() && !is_bound(claim);
        let classes = match free && class_of(claim).is_none() {
            true => self.classes.list(),
            false => return Ok(false),
        };
        let Some(class) = default_class(&classes) else {
            return Ok(false);
        };
        // For good: the cache may not show yet that the class has gone.
        let name = class.name_any();
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let held = classes.get_opt(&name).await;
        let held = held.doing(|| format!("ask for storage class {name}"))?;
        if held.is_none_or(|held| held.metadata.uid != class.metadata.uid) {
            return Ok(false);
        }
        let mut classed = claim.clone();
        let spec = classed.spec.get_or_insert_default();
        spec.storage_class_name = Some(name);
        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace)
            .replace(&key.name, &PostParams::default(), &classed)
            .await
            .or_gone()
            .doing(|| format!("give claim {key} the default storage class"))?;
        Ok(true)
    }

    /// Says who is to make the claim's volume, to that provisioner and to users.
    async fn leave_to(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        by: &str,
    ) -> Result<(), Error> {
        let mut marked = claim.clone();
        mark(&mut marked, by);
        if marked != *claim {
            Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace)
                .replace(&key.name, &PostParams::default(), &marked)
                .await
                .or_gone()
                .doing(|| format!("leave claim {key} to provisioner {by}"))?
                .inspect(|written| self.written.wrote(key, written));
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{by}' or manually \
             by the system administrator. If volume creation is delayed, please verify that the \
             provisioner is running and correctly registered."
        );
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(key.clone(), message.clone()).as_ref() != Some(&message) {
            self.events
                .record(claim, Level::Normal, "ExternalProvisioning", message);
        }
        Ok(())
    }

    /// Volume first: two claims that want it meet there, and one of them conflicts.
    async fn bind(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        name: &str,
    ) -> Result<(), Error> {
        let Some(volume) = self.volumes.get(&Key::new("", name)) else {
            return Ok(());
        };
        let doing = || format!("bind claim {key} to volume {name}");
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut taken = PersistentVolume::clone(&volume);
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
        if local_provisioner::is_local(&taken) {
            mark(&mut bound, local_provisioner::PROVISIONER);
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
            self.written.wrote(key, &written);
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
                .doing(doing)?
                .inspect(|written| self.written.wrote(key, written));
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
            .doing(|| format!("tell claim {key} that it is {phase}"))?
            .inspect(|written| self.written.wrote(key, written));
        Ok(true)
    }
}

/// Who makes the claim's volume, for that provisioner and for users.
fn mark(claim: &mut PersistentVolumeClaim, by: &str) {
    for name in [PROVISIONER, PROVISIONER_BETA] {
        claim
            .annotations_mut()
            .insert(name.to_owned(), by.to_owned());
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

struct Volumes {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    written: Written,
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
            self.written.forget(key);
            return Ok(Next::Settled);
        };
        if !self.written.visible(key, &self.volumes) {
            return Ok(Next::After(PATIENCE));
        }
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
            VolumeStep::Released => ("Released", None),
            VolumeStep::Failed(why) => ("Failed", Some(why.to_owned())),
            VolumeStep::Leave => return Ok(Next::Settled),
            VolumeStep::Unbind { whole } => {
                // Its next phase comes with this change.
                self.unbind(key, &volume, whole).await?;
                return Ok(Next::Settled);
            }
        };
        if pairs::phase(&volume) == phase {
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
            .doing(|| format!("tell volume {key} that it is {phase}"))?
            .inspect(|written| self.written.wrote(key, written));
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn whom_a_volume_concerns() {
        let claim = |name: &str, volume: &str, annotations: Value| -> Arc<PersistentVolumeClaim> {
            let object = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "annotations": annotations},
                "spec": {"volumeName": volume}});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let done = json!({COMPLETED: "yes"});
        let claims = [
            claim("waits", "", json!({})),
            claim("names", "v", json!({})),
            claim("has", "v", done.clone()),
            claim("has-another", "w", done),
        ];
        let of = |name: &str| json!({"name": name, "namespace": "n", "uid": name});
        for (reference, want) in [
            (Value::Null, vec!["waits", "names", "has"]),
            (of("has"), vec!["names", "has"]),
            (of("waits"), vec!["waits", "names", "has"]),
            (of("gone"), vec!["names", "has"]),
        ] {
            let object = json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}});
            let found = concerned(&serde_json::from_value(object).unwrap(), &claims);
            let names: Vec<&str> = found.iter().map(|key| key.name.as_str()).collect();
            assert_eq!(names, want, "{reference}");
        }
    }
}
