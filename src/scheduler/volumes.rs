//! Gives a pod's claims their volumes before the pod is bound: takes free ones, and asks provisioners for
//! the others.

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use k8s_openapi::api::{
    core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::timeout;

use super::plugins::volumes::{Lookup, Step};
use crate::{
    informer::{Change, Changes, Informer, Informers, Key, revision_of},
    placement::volumes::{BY_CONTROLLER, SELECTED_NODE, is_bound},
};

/// As long as the original's.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("binding volumes: {doing}")]
    Api {
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("binding volumes: pvc {0:?} is gone")]
    Gone(String),
    #[error("binding volumes: provisioning failed for PVC {0:?}")]
    Failed(String),
    #[error("binding volumes: context deadline exceeded")]
    Late,
}

/// What the scheduler knows of volumes.
#[derive(Clone)]
pub struct Caches {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
}

impl Caches {
    pub fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.get(),
            volumes: informers.get(),
            classes: informers.get(),
        }
    }

    pub async fn synced(&self) {
        tokio::join!(
            self.claims.synced(),
            self.volumes.synced(),
            self.classes.synced()
        );
    }
}

impl Lookup for Caches {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(&Key::new(namespace, name))
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&Key::new("", name))
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(&Key::new("", name))
    }
}

/// Does the steps, and waits until every claim among them is bound.
pub async fn bind(
    client: &Client,
    claims: &Informer<PersistentVolumeClaim>,
    steps: &[Step],
    node: &str,
) -> Result<(), Error> {
    if steps.is_empty() {
        return Ok(());
    }
    let changes = claims.changes();
    let written = try_join_all(steps.iter().map(|step| write(client, step, node))).await?;
    let all = wait(claims, changes, &written, node);
    timeout(PATIENCE, all).await.map_err(|_| Error::Late)?
}

/// A claim that must be bound, and since when it says what was written here.
struct Written {
    key: Key,
    uid: Option<String>,
    /// `None` for a claim that was not written.
    revision: Option<u64>,
}

async fn write(client: &Client, step: &Step, node: &str) -> Result<Written, Error> {
    let claim = step.claim();
    let key = Key::of(claim.as_ref());
    let failed = |doing: String| {
        move |source: kube::Error| Error::Api {
            doing,
            source: Box::new(source),
        }
    };
    let mut written = Written {
        uid: claim.uid(),
        revision: None,
        key,
    };
    match step {
        Step::Take { volume, .. } => {
            let mut taken = PersistentVolume::clone(volume);
            taken.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                name: claim.metadata.name.clone(),
                namespace: claim.metadata.namespace.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                ..ObjectReference::default()
            });
            let marks = taken.annotations_mut();
            marks.insert(BY_CONTROLLER.to_owned(), "yes".to_owned());
            let name = volume.name_any();
            Api::<PersistentVolume>::all(client.clone())
                .replace(&name, &PostParams::default(), &taken)
                .await
                .map_err(failed(format!(
                    "take volume {name} for claim {}",
                    written.key
                )))?;
        }
        Step::Provision(_) => {
            let patch = json!({"metadata": {"uid": claim.metadata.uid,
                "annotations": {SELECTED_NODE: node}}});
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &written.key.namespace);
            let patched = api
                .patch(
                    &written.key.name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await
                .map_err(failed(format!(
                    "choose node {node} for claim {}",
                    written.key
                )))?;
            written.revision = Some(revision_of(&patched));
        }
    }
    Ok(written)
}

async fn wait(
    claims: &Informer<PersistentVolumeClaim>,
    mut changes: Changes<PersistentVolumeClaim>,
    written: &[Written],
    node: &str,
) -> Result<(), Error> {
    loop {
        let mut waiting = false;
        for one in written {
            let claim = claims.get(&one.key).filter(|claim| claim.uid() == one.uid);
            let claim = claim.ok_or_else(|| Error::Gone(one.key.to_string()))?;
            if is_bound(&claim) {
                continue;
            }
            waiting = true;
            // Whoever provisions takes the node away from a claim that it can make nothing for there.
            let selected = claim.annotations().get(SELECTED_NODE);
            if one
                .revision
                .is_some_and(|since| revision_of(claim.as_ref()) > since)
                && selected.is_none_or(|selected| selected != node)
            {
                return Err(Error::Failed(one.key.to_string()));
            }
        }
        if !waiting {
            return Ok(());
        }
        loop {
            match changes.next().await {
                None => return Err(Error::Late),
                Some(Change::Resync) => break,
                Some(Change::Applied { new: claim, .. } | Change::Deleted(claim)) => {
                    let key = Key::of(claim.as_ref());
                    if written.iter().any(|one| one.key == key) {
                        break;
                    }
                }
            }
        }
    }
}
