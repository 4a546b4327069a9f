//! ReplicaSets and ReplicationControllers: a number of pods of one template. One implementation.
//!
//! `plan.rs` and `rank.rs` decide, this file watches and applies, `owner.rs` tells the kinds apart.
//! Always true: pods are made or deleted only while the pod cache shows every earlier write made
//! for the same owner.

mod owner;
mod plan;
mod rank;

pub use self::plan::{Wanted, claim, slow_start};

use std::{collections::HashSet, sync::Arc};

use futures::future::join_all;
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, ReplicationController},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::response::StatusSummary,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{
    owner::{Failure, Owner},
    plan::{Change, change, count},
};
use super::{
    error::{Doing, Error, OrGone, namespace_terminating},
    pods,
    shared::{Controller, Loop, Next},
    written::{PATIENCE, Written},
};
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;

/// Runs both kinds until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) {
    tokio::join!(
        run_kind::<ReplicaSet>(&informers, shutdown.clone()),
        run_kind::<ReplicationController>(&informers, shutdown.clone()),
    );
}

async fn run_kind<K: Owner>(informers: &Informers, shutdown: CancellationToken) {
    let owners: Informer<K> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let controller = Replicas {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), K::CONTROLLER),
        owners: owners.clone(),
        pods: pods.clone(),
        written: Written::default(),
    };
    let all_owners = owners.clone();
    Loop::new(controller, &owners)
        .watch(&pods, move |pod| owners_of(pod, &all_owners))
        .run(WORKERS, shutdown)
        .await;
}

/// The owner of a pod; for an orphan, all owners that could adopt it.
fn owners_of<K: Owner>(pod: &Pod, owners: &Informer<K>) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    if pods::controller_of(pod).is_some() {
        return pods::controller_named(pod, K::GROUP, K::KIND)
            .map(|name| Key::new(namespace, name))
            .into_iter()
            .collect();
    }
    owners
        .list_in(&namespace)
        .iter()
        .filter(|owner| {
            owner
                .wanted()
                .is_ok_and(|wanted| pods::selects(&wanted.selector, pod.metadata.labels.as_ref()))
        })
        .map(|owner| Key::of(owner.as_ref()))
        .collect()
}

struct Replicas<K> {
    client: Client,
    events: Recorder,
    owners: Informer<K>,
    pods: Informer<Pod>,
    written: Written,
}

impl<K: Owner> Controller for Replicas<K> {
    const NAME: &'static str = K::CONTROLLER;

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(owner) = self.owners.get(key) else {
            self.written.forget(key);
            return Ok(Next::Settled);
        };
        // Asked before the pods are read: what is visible now is in the list below.
        let visible = self.written.visible(key, &self.pods);
        let now = Timestamp::now();
        let wanted = owner.wanted()?;
        let all = self.pods.list_in(&key.namespace);
        let claims = claim(&all, &wanted);
        if visible {
            self.reown(&owner, key, &claims).await?;
        }
        let mut owned = claims.owned;
        owned.extend(&claims.adopt);
        let failure = if visible {
            self.step(&owner, key, &wanted, &owned, &all, now).await
        } else {
            None
        };
        let (counts, next) = count(&owned, &wanted, now);
        let held = failure.as_ref().map(|failure| &failure.failure);
        if let Some(updated) = owner.with_status(counts, held) {
            self.api(key)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .or_gone()
                .doing(|| format!("update the status of {} {key}", K::KIND))?;
        }
        match failure.and_then(|failure| failure.error) {
            Some(error) => Err(error),
            None if visible => Ok(Next::after(next)),
            None => Ok(Next::After(PATIENCE)),
        }
    }
}

/// A failed step: what the status shall say, and what is retried.
struct Failed {
    failure: Failure,
    error: Option<Error>,
}

impl<K: Owner> Replicas<K> {
    fn api(&self, key: &Key) -> Api<K> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    fn pod_api(&self, key: &Key) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Adopts and releases. Adoption asks the server first: the cache may show an owner that was
    /// deleted or replaced meanwhile.
    async fn reown(&self, owner: &K, key: &Key, claims: &plan::Claims<'_>) -> Result<(), Error> {
        if !claims.adopt.is_empty() {
            let live = self
                .api(key)
                .get(&key.name)
                .await
                .doing(|| format!("read {} {key} before adopting pods", K::KIND))?;
            if live.uid() != owner.uid() || pods::is_terminating(&live) {
                return Err(Error::invalid(
                    "cached owner",
                    key,
                    "the server has another one",
                ));
            }
        }
        for pod in &claims.adopt {
            let mut owners = pod.owner_references().to_vec();
            owners.push(pods::controller_ref(owner));
            self.set_owners(key, pod, &owners).await?;
        }
        for pod in &claims.release {
            let uid = owner.uid();
            let mut owners = pod.owner_references().to_vec();
            owners.retain(|one| Some(&one.uid) != uid.as_ref());
            self.set_owners(key, pod, &owners).await?;
        }
        Ok(())
    }

    async fn set_owners(
        &self,
        key: &Key,
        pod: &Pod,
        owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
    ) -> Result<(), Error> {
        let patch = json!({"metadata": {
            "uid": pod.uid(),
            "resourceVersion": pod.resource_version(),
            "ownerReferences": owners,
        }});
        let changed = self
            .pod_api(key)
            .patch(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await
            .or_gone()
            .doing(|| format!("change the owner of pod {}", pod.name_any()))?;
        if let Some(changed) = changed {
            self.written.wrote(key, &changed);
        }
        Ok(())
    }

    async fn step(
        &self,
        owner: &K,
        key: &Key,
        wanted: &Wanted,
        owned: &[&Pod],
        all: &[Arc<Pod>],
        now: Timestamp,
    ) -> Option<Failed> {
        let active: Vec<&Pod> = owned
            .iter()
            .copied()
            .filter(|pod| pods::is_active(pod))
            .collect();
        // Doubles are looked up only when somebody has to go.
        let related = if active.len() > wanted.replicas {
            self.related(owner, key, all)
        } else {
            Vec::new()
        };
        match change(&active, &related, wanted, now) {
            Change::Nothing => None,
            Change::Create(number) => self.create(owner, key, number).await,
            Change::Delete(surplus) => self.delete(owner, key, &surplus).await,
        }
    }

    /// Pods of all owners that share this owner's own controller (the ReplicaSets of one
    /// Deployment).
    fn related<'a>(&self, owner: &K, key: &Key, all: &'a [Arc<Pod>]) -> Vec<&'a Pod> {
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
        all.iter()
            .map(AsRef::as_ref)
            .filter(|pod| pods::controller_of(*pod).is_some_and(|own| uids.contains(&own.uid)))
            .collect()
    }

    async fn create(&self, owner: &K, key: &Key, number: usize) -> Option<Failed> {
        let template = owner.template()?;
        let pod = pods::pod_of(owner, template);
        let api = self.pod_api(key);
        let params = PostParams::default();
        for batch in slow_start(number) {
            let made = join_all((0..batch).map(|_| api.create(&params, &pod))).await;
            let mut failed = None;
            for result in made {
                match result {
                    Ok(pod) => {
                        self.written.wrote(key, &pod);
                        self.events.record(
                            owner,
                            Level::Normal,
                            "SuccessfulCreate",
                            format!("Created pod: {}", pod.name_any()),
                        );
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Some(self.creation_failed(owner, key, error));
            }
        }
        None
    }

    fn creation_failed(&self, owner: &K, key: &Key, error: kube::Error) -> Failed {
        let message = message_of(&error);
        let over = namespace_terminating(&error);
        if !over {
            let text = format!("Error creating: {message}");
            self.events
                .record(owner, Level::Warning, "FailedCreate", text);
        }
        Failed {
            failure: Failure {
                reason: "FailedCreate",
                message,
            },
            error: (!over).then(|| Error::Api {
                doing: format!("create a pod of {} {key}", K::KIND),
                source: Box::new(error),
            }),
        }
    }

    async fn delete(&self, owner: &K, key: &Key, surplus: &[&Pod]) -> Option<Failed> {
        let api = self.pod_api(key);
        let results = join_all(surplus.iter().map(|pod| {
            let params = DeleteParams::default().preconditions(kube::api::Preconditions {
                uid: pod.uid(),
                resource_version: None,
            });
            let api = &api;
            async move { (*pod, api.delete(&pod.name_any(), &params).await.or_gone()) }
        }))
        .await;
        let mut failed = None;
        for (pod, result) in results {
            let name = pod.name_any();
            match result {
                Ok(None) => self.written.deleted(key, Key::of(pod)),
                Ok(Some(answer)) => {
                    match answer.left() {
                        Some(pod) if pods::is_terminating(&pod) => self.written.wrote(key, &pod),
                        _ => self.written.deleted(key, Key::of(pod)),
                    }
                    let text = format!("Deleted pod: {name}");
                    self.events
                        .record(owner, Level::Normal, "SuccessfulDelete", text);
                }
                Err(error) => {
                    let message = message_of(&error);
                    let text = format!("Error deleting: {message}");
                    self.events
                        .record(owner, Level::Warning, "FailedDelete", text);
                    failed = Some(Failed {
                        failure: Failure {
                            reason: "FailedDelete",
                            message,
                        },
                        error: Some(Error::Api {
                            doing: format!("delete pod {name} of {} {key}", K::KIND),
                            source: Box::new(error),
                        }),
                    });
                }
            }
        }
        failed
    }
}

/// The server's own words if it answered at all.
fn message_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.status == Some(StatusSummary::Failure) => {
            status.message.clone()
        }
        other => other.to_string(),
    }
}
