//! What belongs to an owner: pods of a ReplicaSet, ReplicaSets of a Deployment, revisions of a set.
//!
//! `claim.rs` decides what is whose, `pods.rs` makes and deletes pods and tells of it, this file
//! writes.
//! Always true: every write is noted, and [`Dependents::visible`] says whether the cache shows it.

mod claim;
mod pods;

pub use self::{
    claim::{Claimant, Claims, claim, owners_of},
    pods::{Failed, Failure, PodControl, Wording},
};

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    error::{Doing, Error, OrGone},
    pods::{controller_ref, is_terminating},
    written::Written,
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

/// A kind in a namespace, as owner or as dependent.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The dependents of one controller's objects.
pub struct Dependents<D> {
    client: Client,
    cache: Informer<D>,
    written: Written,
    finalizer: Option<&'static str>,
}

impl<D: Object> Dependents<D> {
    pub fn new(informers: &Informers) -> Self {
        Self {
            client: informers.client().clone(),
            cache: informers.get(),
            written: Written::default(),
            finalizer: None,
        }
    }

    /// They carry this finalizer while they have their owner.
    pub fn with_finalizer(self, finalizer: &'static str) -> Self {
        Self {
            finalizer: Some(finalizer),
            ..self
        }
    }

    /// True if the cache shows every write made for `owner`. Asked before the cache is read.
    pub fn visible(&self, owner: &Key) -> bool {
        self.written.visible(owner, &self.cache)
    }

    /// The owner is gone: forget what was written for it.
    pub fn forget(&self, owner: &Key) {
        self.written.forget(owner);
    }

    pub fn api(&self, owner: &Key) -> Api<D> {
        Api::namespaced(self.client.clone(), &owner.namespace)
    }

    /// Sorts the dependents in the owner's namespace by what they are to it.
    pub fn claim(
        &self,
        owner: &Key,
        claimant: &Claimant,
        adoptable: impl Fn(&D) -> bool,
    ) -> Claims<D> {
        claim(self.cache.list_in(&owner.namespace), claimant, adoptable)
    }

    /// Adopts and releases; true if there was anything to do. Adoption asks the server first: the
    /// cache may show an owner that was deleted or replaced meanwhile.
    pub async fn reown<K: Object>(&self, owner: &K, claims: &Claims<D>) -> Result<bool, Error> {
        if claims.adopt.is_empty() && claims.release.is_empty() {
            return Ok(false);
        }
        let (key, kind) = (Key::of(owner), K::kind(&()));
        if !claims.adopt.is_empty() {
            let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
            let live = api.get(&key.name).await;
            let live = live.doing(|| format!("read {kind} {key} before adopting"))?;
            if live.uid() != owner.uid() || is_terminating(&live) {
                let why = "the server has another one";
                return Err(Error::invalid("cached owner", key, why));
            }
        }
        for object in &claims.adopt {
            let mut owners = object.owner_references().to_vec();
            owners.push(controller_ref(owner));
            let mut change = json!({"ownerReferences": owners});
            if let Some(finalizer) = self.finalizer {
                let mut finalizers = self.other_finalizers(object);
                finalizers.push(finalizer.into());
                change["finalizers"] = json!(finalizers);
            }
            self.patch(&key, object.as_ref(), change).await?;
        }
        for object in &claims.release {
            let mut owners = object.owner_references().to_vec();
            owners.retain(|one| Some(&one.uid) != owner.meta().uid.as_ref());
            let mut change = json!({"ownerReferences": owners});
            if self.finalizer.is_some() {
                change["finalizers"] = json!(self.other_finalizers(object));
            }
            self.patch(&key, object.as_ref(), change).await?;
        }
        Ok(true)
    }

    /// Takes the finalizer off, if it is there.
    pub async fn let_go(&self, owner: &Key, object: &D) -> Result<(), Error> {
        let others = self.other_finalizers(object);
        if others.len() == object.finalizers().len() {
            return Ok(());
        }
        self.patch(owner, object, json!({"finalizers": others}))
            .await
    }

    fn other_finalizers(&self, object: &D) -> Vec<String> {
        let all = object.finalizers().iter().cloned();
        all.filter(|one| Some(one.as_str()) != self.finalizer)
            .collect()
    }

    /// Patches these parts of the metadata, if the object is still the one that was looked at.
    async fn patch(&self, owner: &Key, object: &D, mut metadata: Value) -> Result<(), Error> {
        metadata["uid"] = json!(object.uid());
        metadata["resourceVersion"] = json!(object.resource_version());
        let (name, patch) = (object.name_any(), json!({"metadata": metadata}));
        let changed = self
            .api(owner)
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .or_gone()
            .doing(|| format!("change {} {name} for {owner}", D::kind(&())))?;
        match changed {
            // Without its last finalizer it may be gone at once.
            Some(changed) if !is_terminating(&changed) => self.written.wrote(owner, &changed),
            _ => self.written.deleted(owner, Key::of(object)),
        }
        Ok(())
    }

    pub async fn create(&self, owner: &Key, object: &D) -> Result<D, kube::Error> {
        let made = self
            .api(owner)
            .create(&PostParams::default(), object)
            .await?;
        self.written.wrote(owner, &made);
        Ok(made)
    }

    pub async fn replace(&self, owner: &Key, object: &D) -> Result<(), kube::Error> {
        let api = self.api(owner);
        let params = PostParams::default();
        let made = api.replace(&object.name_any(), &params, object).await?;
        self.written.wrote(owner, &made);
        Ok(())
    }

    /// Deletes what was judged; false if it was gone.
    pub async fn delete(
        &self,
        owner: &Key,
        object: &D,
        judged: Judged,
    ) -> Result<bool, kube::Error> {
        // A Job would leave its pods behind otherwise.
        let params = judged.params(object.meta(), DeleteParams::background());
        let api = self.api(owner);
        let answer = api.delete(&object.name_any(), &params).await.or_gone()?;
        let was_there = answer.is_some();
        match answer.and_then(|answer| answer.left()) {
            Some(ending) if is_terminating(&ending) => self.written.wrote(owner, &ending),
            _ => self.written.deleted(owner, Key::of(object)),
        }
        Ok(was_there)
    }

    /// Notes that somebody else wrote this for the owner.
    pub fn found(&self, owner: &Key, object: &D) {
        self.written.wrote(owner, object);
    }

    pub fn all(&self, owner: &Key) -> Vec<Arc<D>> {
        self.cache.list_in(&owner.namespace)
    }
}
