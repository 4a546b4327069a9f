//! ReplicaSets and ReplicationControllers: a number of pods of one template. One implementation.
//!
//! `plan.rs` and `rank.rs` decide, this file watches and applies, `owner.rs` tells the kinds apart.
//! Always true: pods are made or deleted only while the pod cache shows every earlier write made
//! for the same owner.

mod owner;
mod plan;
mod rank;

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, ReplicationController},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;

use self::{
    owner::Owner,
    plan::{Change, Wanted, change, count},
};
use super::{
    dependents::{Dependents, Failed, PodControl, Wording, owners_of},
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
    written::PATIENCE,
};
use crate::{
    deletion::Judged,
    events::Recorder,
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;

/// Runs the one for ReplicaSets until `shutdown`.
pub async fn run_sets(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    run::<ReplicaSet>(informers, shutdown).await
}

/// Runs the one for ReplicationControllers until `shutdown`.
pub async fn run_controllers(
    informers: Informers,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    run::<ReplicationController>(informers, shutdown).await
}

async fn run<K: Owner>(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let owners: Informer<K> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let controller = Replicas {
        client: informers.client().clone(),
        owners: owners.clone(),
        control: PodControl {
            pods: Dependents::new(&informers),
            events: Recorder::start(informers.client().clone(), K::CONTROLLER),
            wording: Wording::Plain,
        },
    };
    let all = owners.clone();
    Loop::new(controller, &owners)
        .watch(&pods, move |pod| {
            owners_of(pod, &all, |owner| owner.claimant().ok())
        })
        .run(WORKERS, shutdown)
        .await
}

struct Replicas<K> {
    client: Client,
    owners: Informer<K>,
    control: PodControl,
}

impl<K: Owner> Controller for Replicas<K> {
    const NAME: &'static str = K::CONTROLLER;

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let pods = &self.control.pods;
        let Some(owner) = self.owners.get(key) else {
            pods.forget(key);
            return Ok(Next::Settled);
        };
        // Asked before the pods are read: what is visible now is in the list below.
        let visible = pods.visible(key);
        let now = Timestamp::now();
        let wanted = owner.wanted();
        let claims = pods.claim(key, &owner.claimant()?, pods::is_active);
        if visible {
            pods.reown(owner.as_ref(), &claims).await?;
        }
        let held = claims.held();
        let held: Vec<&Pod> = held.iter().map(AsRef::as_ref).collect();
        let failure = if visible {
            self.step(&owner, key, &wanted, &held, now).await.err()
        } else {
            None
        };
        let (counts, next) = count(&held, &wanted, now);
        // What changed meanwhile is looked at again, and is nothing to be told of.
        let told = failure.as_ref().filter(|failure| !failure.is_conflict());
        let said = told.map(|failure| &failure.failure);
        if let Some(updated) = owner.with_status(counts, said) {
            Api::<K>::namespaced(self.client.clone(), &key.namespace)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .or_gone()
                .doing(|| format!("update the status of {} {key}", K::kind(&())))?;
        }
        if let Some(failure) = failure {
            failure.or_over()?;
        }
        Ok(match visible {
            true => Next::after(next),
            false => Next::After(PATIENCE),
        })
    }
}

impl<K: Owner> Replicas<K> {
    async fn step(
        &self,
        owner: &K,
        key: &Key,
        wanted: &Wanted,
        held: &[&Pod],
        now: Timestamp,
    ) -> Result<(), Failed> {
        let active = held.iter().copied().filter(|pod| pods::is_active(pod));
        let active: Vec<&Pod> = active.collect();
        // Doubles are looked up only when somebody has to go.
        let related = if active.len() > wanted.replicas {
            self.related(owner, key)
        } else {
            Vec::new()
        };
        let related: Vec<&Pod> = related.iter().map(AsRef::as_ref).collect();
        match change(&active, &related, wanted, now) {
            Change::Nothing => Ok(()),
            Change::Create(number) => {
                let Some(template) = owner.template() else {
                    return Ok(());
                };
                let pods = vec![pods::pod_of(owner, template); number];
                self.control.create(owner, &pods).await
            }
            Change::Delete(surplus) => self.control.delete(owner, &surplus, Judged::State).await,
        }
    }

    /// Pods of all owners that share this owner's own controller (the ReplicaSets of one
    /// Deployment).
    fn related(&self, owner: &K, key: &Key) -> Vec<Arc<Pod>> {
        let mut uids: HashSet<String> = owner.uid().into_iter().collect();
        if let Some(above) = pods::controller_of(owner) {
            uids.extend(
                self.owners
                    .list_in(&key.namespace)
                    .iter()
                    .filter(|one| {
                        pods::controller_of(one.as_ref()).is_some_and(|own| own.uid == above.uid)
                    })
                    .filter_map(|one| one.uid()),
            );
        }
        let mut related = self.control.pods.all(key);
        related.retain(|pod| {
            pods::controller_of(pod.as_ref()).is_some_and(|own| uids.contains(&own.uid))
        });
        related
    }
}
