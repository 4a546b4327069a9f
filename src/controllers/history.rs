//! The revisions that a DaemonSet or StatefulSet has in the cluster. `revisions.rs` decides.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{ResourceExt, api::DeleteParams};

use super::{
    dependents::{Claimant, Dependents, Object},
    error::{Doing, Error, OrGone, already_exists, namespace_terminating},
    pods,
    revisions::{Present, surplus},
};
use crate::{
    deletion::Judged,
    informer::{Informers, Key},
};

/// Revisions that are kept besides those in use, where the owner does not say.
const LIMIT: i32 = 10;

pub struct History(Dependents<ControllerRevision>);

impl History {
    pub fn new(informers: &Informers) -> Self {
        Self(Dependents::new(informers))
    }

    /// True if the cache shows every write made for `owner`.
    pub fn visible(&self, owner: &Key) -> bool {
        self.0.visible(owner)
    }

    pub fn forget(&self, owner: &Key) {
        self.0.forget(owner);
    }

    /// The owner's revisions, after adopting matching orphans and releasing strangers.
    pub async fn of<K: Object>(
        &self,
        owner: &K,
        claimant: &Claimant,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let key = Key::of(owner);
        let living = |one: &ControllerRevision| !pods::is_terminating(one);
        let claims = self.0.claim(&key, claimant, living);
        self.0.reown(owner, &claims).await?;
        Ok(claims.held())
    }

    /// Makes or renumbers the revision of the present template.
    pub async fn keep<K: Object>(&self, owner: &K, present: &Present) -> Result<(), Error> {
        let (key, kind) = (Key::of(owner), K::kind(&()));
        match present {
            Present::Held(_) => Ok(()),
            Present::Renumbered(revision) => self
                .0
                .replace(&key, revision)
                .await
                .doing(|| format!("renumber a revision of {kind} {key}")),
            Present::New(revision) => match self.0.create(&key, revision).await {
                Err(error) if already_exists(&error) || namespace_terminating(&error) => Ok(()),
                made => made
                    .map(drop)
                    .doing(|| format!("create a revision of {kind} {key}")),
            },
        }
    }

    /// Deletes revisions beyond the limit that are not in use.
    pub async fn trim<K: Object>(
        &self,
        owner: &K,
        held: &[Arc<ControllerRevision>],
        limit: Option<i32>,
        in_use: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), Error> {
        let (key, kind) = (Key::of(owner), K::kind(&()));
        let limit = usize::try_from(limit.unwrap_or(LIMIT)).unwrap_or(0);
        for name in surplus(held, limit, in_use) {
            let Some(old) = held.iter().find(|one| one.name_any() == name) else {
                continue;
            };
            let params = Judged::State.params(&old.metadata, DeleteParams::default());
            self.0
                .api(&key)
                .delete(&name, &params)
                .await
                .or_gone()
                .doing(|| format!("delete old revision {name} of {kind} {key}"))?;
        }
        Ok(())
    }
}
