//! Deployments: a ReplicaSet per pod template, moved from the old to the new within bounds.
//!
//! `plan.rs` decides with `size.rs` (arithmetic), `revision.rs` (templates) and `status.rs`
//! (conditions); this file watches and applies.
//! Always true: a template has one ReplicaSet; a name taken by another template raises the
//! collision count, which gives another name.

mod plan;
mod revision;
mod size;
mod status;

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::plan::{Action, Observed, plan};
use super::{
    dependents::{Claimant, Dependents, owners_of},
    error::{Doing, Error, OrGone, already_exists, namespace_terminating},
    pace::Pace,
    pods,
    shared::{Controller, Loop, Next, Stopped},
    written::PATIENCE,
};
use crate::{
    deletion::Judged,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let deployments: Informer<Deployment> = informers.get();
    let sets: Informer<ReplicaSet> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let controller = Deployments {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "deployment-controller"),
        deployments: deployments.clone(),
        sets: Dependents::new(&informers),
        pods: pods.clone(),
        pace: Pace::default(),
    };
    let (all, all_sets, recreated) = (deployments.clone(), sets.clone(), deployments.clone());
    Loop::new(controller, &deployments)
        .watch(&sets, move |set| {
            owners_of(set, &all, |one| claimant(one).ok())
        })
        .watch(&pods, move |pod| waiting_for(pod, &all_sets, &recreated))
        .run(WORKERS, shutdown)
        .await
}

/// Deployments that recreate wait for their old pods to be gone.
fn waiting_for(
    pod: &Pod,
    sets: &Informer<ReplicaSet>,
    deployments: &Informer<Deployment>,
) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    pods::controller_named(pod, "apps", "ReplicaSet")
        .and_then(|name| sets.get(&Key::new(namespace.clone(), name)))
        .and_then(|set| {
            let name = pods::controller_named(set.as_ref(), "apps", "Deployment")?;
            let key = Key::new(namespace, name);
            let deployment = deployments.get(&key)?;
            let strategy = deployment.spec.strategy.as_ref()?;
            (strategy.type_.as_deref() == Some("Recreate")).then_some(key)
        })
        .into_iter()
        .collect()
}

fn claimant(deployment: &Deployment) -> Result<Claimant, Error> {
    Claimant::by_label(deployment, deployment.spec.selector.clone())
}

struct Deployments {
    client: Client,
    events: Recorder,
    deployments: Informer<Deployment>,
    sets: Dependents<ReplicaSet>,
    pods: Informer<Pod>,
    pace: Pace,
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(deployment) = self.deployments.get(key) else {
            self.sets.forget(key);
            self.pace.forget(key);
            return Ok(Next::Settled);
        };
        if !self.sets.visible(key) {
            return Ok(Next::After(PATIENCE));
        }
        let living = |set: &ReplicaSet| !pods::is_terminating(set);
        let claims = self.sets.claim(key, &claimant(&deployment)?, living);
        if self.sets.reown(deployment.as_ref(), &claims).await? {
            // The sets that changed hands come back as news.
            return Ok(Next::After(PATIENCE));
        }
        let sets = claims.held();
        let plan = plan(&Observed {
            deployment: &deployment,
            sets: &sets,
            old_pods_run: self.old_pods_run(&deployment, &sets, key),
            now: Timestamp::now(),
        });
        let mut revision = deployment.resource_version();
        for action in &plan.actions {
            match action {
                Action::Revision(number) => {
                    revision = self.note(&deployment, key, number).await?;
                }
                action => self.apply(&deployment, key, action, &sets).await?,
            }
        }
        let mut wait = None;
        if changed(&deployment, &plan.status) {
            wait = self.pace.take(key);
        }
        if wait.is_none() && changed(&deployment, &plan.status) {
            let mut updated = Deployment::clone(&deployment);
            updated.status = Some(plan.status);
            updated.metadata.resource_version = revision;
            self.api(key)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .or_gone()
                .doing(|| format!("update the status of Deployment {key}"))?;
        }
        Ok(Next::after(plan.recheck).or_after(wait))
    }
}

/// Compares without regard to counts that are zero or left out.
fn changed(deployment: &Deployment, new: &k8s_openapi::api::apps::v1::DeploymentStatus) -> bool {
    let plain = |status: &k8s_openapi::api::apps::v1::DeploymentStatus| {
        let mut plain = status.clone();
        for count in [
            &mut plain.replicas,
            &mut plain.updated_replicas,
            &mut plain.ready_replicas,
            &mut plain.available_replicas,
            &mut plain.unavailable_replicas,
            &mut plain.terminating_replicas,
        ] {
            *count = count.filter(|count| *count != 0);
        }
        plain
    };
    plain(&deployment.status.clone().unwrap_or_default()) != plain(new)
}

impl Deployments {
    fn api(&self, key: &Key) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Only asked by `Recreate`: pods of other templates that have not ended.
    fn old_pods_run(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>], key: &Key) -> bool {
        if size::Bounds::of(deployment).strategy != size::Strategy::Recreate {
            return false;
        }
        let old: Vec<Option<String>> = sets
            .iter()
            .filter(|set| !revision::is_current(deployment, set))
            .map(|set| set.uid())
            .collect();
        self.pods.list_in(&key.namespace).iter().any(|pod| {
            !pods::is_finished(pod)
                && pods::controller_of(pod.as_ref())
                    .is_some_and(|owner| old.contains(&Some(owner.uid.clone())))
        })
    }

    async fn apply(
        &self,
        deployment: &Deployment,
        key: &Key,
        action: &Action,
        held: &[Arc<ReplicaSet>],
    ) -> Result<(), Error> {
        match action {
            Action::Create(set) => self.create(deployment, key, set).await,
            Action::Update { set, from } => {
                self.sets
                    .replace(key, set)
                    .await
                    .doing(|| format!("update ReplicaSet {} of {key}", set.name_any()))?;
                self.tell_scaled(deployment, set, *from);
                Ok(())
            }
            Action::Delete(name) => {
                let Some(old) = held.iter().find(|set| set.name_any() == *name) else {
                    return Ok(());
                };
                let params = Judged::State.params(&old.metadata, DeleteParams::default());
                self.sets
                    .api(key)
                    .delete(name, &params)
                    .await
                    .or_gone()
                    .doing(|| format!("delete old ReplicaSet {name} of {key}"))?;
                Ok(())
            }
            // Written where the next write needs its result.
            Action::Revision(_) => Ok(()),
        }
    }

    /// Writes the revision on the Deployment that was looked at; answers with its resource version.
    async fn note(
        &self,
        deployment: &Deployment,
        key: &Key,
        revision: &str,
    ) -> Result<Option<String>, Error> {
        let metadata = json!({"uid": deployment.uid(),
            "resourceVersion": deployment.resource_version(),
            "annotations": {revision::REVISION: revision}});
        let patch = json!({"metadata": metadata});
        let written = self
            .api(key)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .or_gone()
            .doing(|| format!("note revision {revision} on {key}"))?;
        Ok(written.and_then(|written| written.resource_version()))
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &ReplicaSet, from: i32) {
        let to = set.spec.replicas.unwrap_or(0);
        if to != from {
            let way = if to > from { "up" } else { "down" };
            let name = set.name_any();
            self.events.record(
                deployment,
                Level::Normal,
                "ScalingReplicaSet",
                format!("Scaled {way} replica set {name} from {from} to {to}"),
            );
        }
    }

    async fn create(
        &self,
        deployment: &Deployment,
        key: &Key,
        set: &ReplicaSet,
    ) -> Result<(), Error> {
        let error = match self.sets.create(key, set).await {
            Ok(made) => {
                self.tell_scaled(deployment, &made, 0);
                return Ok(());
            }
            Err(error) => error,
        };
        if already_exists(&error) {
            return self.resolve_collision(deployment, key, set).await;
        }
        if !namespace_terminating(&error) {
            let text = format!(
                "Failed to create new replica set {:?}: {error}",
                set.name_any()
            );
            self.events
                .record(deployment, Level::Warning, "ReplicaSetCreateError", text);
        }
        Err(error).doing(|| format!("create ReplicaSet {} of {key}", set.name_any()))
    }

    /// The name is taken: either by this very ReplicaSet, which the cache does not show yet, or
    /// by one of another template, and then the next hash must differ.
    async fn resolve_collision(
        &self,
        deployment: &Deployment,
        key: &Key,
        set: &ReplicaSet,
    ) -> Result<(), Error> {
        let held = self
            .sets
            .api(key)
            .get(&set.name_any())
            .await
            .doing(|| format!("read ReplicaSet {}", set.name_any()))?;
        let ours = pods::controller_of(&held)
            .is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref());
        if ours && revision::is_current(deployment, &held) {
            self.sets.found(key, &held);
            return Ok(());
        }
        let mut updated = deployment.clone();
        let status = updated.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.api(key)
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
            .doing(|| format!("count a hash collision of {key}"))?;
        Err(Error::invalid(
            "name of the new ReplicaSet",
            key,
            "it is taken by another template",
        ))
    }
}
