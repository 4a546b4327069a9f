//! Takes the Jobs' finalizer off pods that no Job will ever count.
//!
//! Keyed by the pod: the reference to its Job may have been cut (`kubectl delete job --cascade=orphan`),
//! and then no Job leads to it any more.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::{FINALIZER, MANAGER, is_finished};
use crate::{
    controllers::{
        dependents::Dependents,
        error::{Doing, Error},
        pods,
        shared::{Controller, Loop, Next, Stopped},
    },
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 2;

pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let pods: Informer<Pod> = informers.get();
    let orphans = Orphans {
        client: informers.client().clone(),
        jobs: informers.get(),
        pods: pods.clone(),
        dependents: Dependents::new(&informers).with_finalizer(FINALIZER),
    };
    Loop::new(orphans, &pods).run(WORKERS, shutdown).await
}

struct Orphans {
    client: Client,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    dependents: Dependents<Pod>,
}

impl Controller for Orphans {
    const NAME: &'static str = "job-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.pods.get(key);
        let Some(pod) = held.filter(|pod| pod.finalizers().iter().any(|one| one == FINALIZER))
        else {
            self.dependents.forget(key);
            return Ok(Next::Settled);
        };
        if self.is_anybodys(&pod).await? {
            return Ok(Next::Settled);
        }
        // A change of the pod meanwhile, its adoption say, is a conflict, and it is looked at again.
        self.dependents.let_go(key, &pod).await?;
        Ok(Next::Settled)
    }
}

impl Orphans {
    /// Whether somebody will count the pod, or it is not for us to say.
    async fn is_anybodys(&self, pod: &Pod) -> Result<bool, Error> {
        let Some(owner) = pods::controller_of(pod) else {
            return Ok(false);
        };
        if owner.kind != "Job" || !owner.api_version.starts_with("batch/") {
            return Ok(true);
        }
        let key = Key::new(pod.namespace().unwrap_or_default(), owner.name.clone());
        let is_it = |job: &Job| job.uid().as_ref() == Some(&owner.uid);
        if let Some(job) = self.jobs.get(&key).filter(|job| is_it(job)) {
            return Ok(counts(&job));
        }
        // The cache may be behind.
        let live: Option<Job> = Api::namespaced(self.client.clone(), &key.namespace)
            .get_opt(&key.name)
            .await
            .doing(|| format!("ask for Job {key} of a pod"))?;
        Ok(live.is_some_and(|job| is_it(&job) && counts(&job)))
    }
}

/// A Job that is over has counted; one of another controller is left to that.
fn counts(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    let manager = spec.and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER) || !is_finished(job)
}
