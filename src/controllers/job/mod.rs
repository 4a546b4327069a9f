//! Jobs: pods that run to their end, counted exactly once. `plan.rs` decides.
//!
//! Always true: a pod's finalizer is removed only after the status that counts it was written.

mod indexes;
mod orphans;
mod plan;
mod policy;

use std::sync::Arc;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::PostParams, core::Selector};
use tokio_util::sync::CancellationToken;

use self::plan::{FINALIZER, INDEX, Plan, is_finished, plan};
use super::{
    dependents::{Claimant, Dependents, Failed, PodControl, Wording, owners_of},
    error::{Doing, Error},
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
const MANAGER: &str = "kubernetes.io/job-controller";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let jobs: Informer<Job> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let controller = Jobs {
        client: informers.client().clone(),
        jobs: jobs.clone(),
        control: PodControl {
            pods: Dependents::new(&informers).with_finalizer(FINALIZER),
            events: Recorder::start(informers.client().clone(), "job-controller"),
            wording: Wording::Plain,
        },
    };
    let counting = Loop::new(controller, &jobs.clone())
        .watch(&pods, move |pod| {
            owners_of(pod, &jobs, |job| claimant(job).ok().flatten())
        })
        .run(WORKERS, shutdown.clone());
    tokio::try_join!(counting, orphans::run(informers, shutdown)).map(drop)
}

struct Jobs {
    client: Client,
    jobs: Informer<Job>,
    control: PodControl,
}

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let dependents = &self.control.pods;
        // Asked before the pods are read: what is visible now is in the list below.
        let visible = dependents.visible(key);
        let mut pods = dependents.all(key);
        pods.retain(|pod| pods::controller_named(pod.as_ref(), "batch", "Job") == Some(&key.name));
        let job = self.jobs.get(key);
        let uid = job.as_ref().and_then(|job| job.uid());
        let (pods, strangers): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| {
            pods::controller_of(pod.as_ref()).is_some_and(|owner| Some(&owner.uid) == uid.as_ref())
        });
        // Nobody will count pods of a Job that is gone.
        for pod in &strangers {
            dependents.let_go(key, pod).await?;
        }
        let Some(job) = job else {
            dependents.forget(key);
            return Ok(Next::Settled);
        };
        let spec = job.spec.as_ref();
        let manager = spec.and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != MANAGER) {
            return Ok(Next::Settled);
        }
        if is_finished(&job) || pods::is_terminating(job.as_ref()) {
            for pod in &pods {
                dependents.let_go(key, pod).await?;
            }
            return Ok(Next::Settled);
        }
        if !visible {
            return Ok(Next::After(PATIENCE));
        }
        if let Some(claimant) = claimant(&job)? {
            let claims = dependents.claim(key, &claimant, pods::is_active);
            if dependents.reown(job.as_ref(), &claims).await? {
                // The pods that changed hands come back as news.
                return Ok(Next::After(PATIENCE));
            }
        }
        let plan = plan(&job, &pods, Timestamp::now());
        let recheck = plan.recheck;
        self.apply(key, &job, &pods, plan).await?;
        Ok(Next::after(recheck))
    }
}

impl Jobs {
    async fn apply(
        &self,
        key: &Key,
        job: &Job,
        pods: &[Arc<Pod>],
        plan: Plan,
    ) -> Result<(), Error> {
        let of = |uids: &[String]| -> Vec<Arc<Pod>> {
            let all = pods.iter();
            all.filter(|pod| pod.uid().is_some_and(|uid| uids.contains(&uid)))
                .cloned()
                .collect()
        };
        if job.status.as_ref() != Some(&plan.status) {
            self.tell(job, &plan);
            let mut updated = job.clone();
            updated.status = Some(plan.status);
            Api::<Job>::namespaced(self.client.clone(), &key.namespace)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .doing(|| format!("update the status of Job {key}"))?;
        }
        for pod in of(&plan.release) {
            self.control.pods.let_go(key, &pod).await?;
        }
        let surplus = of(&plan.delete);
        if plan.uncounted_delete {
            for pod in &surplus {
                self.control.pods.let_go(key, pod).await?;
            }
        }
        let surplus: Vec<&Pod> = surplus.iter().map(AsRef::as_ref).collect();
        let new: Vec<Pod> = plan
            .create
            .iter()
            .map(|index| pod_of(job, *index))
            .collect();
        // Which of the Job's pods go does not hang on what they have become meanwhile.
        let deleted = self.control.delete(job, &surplus, Judged::Identity).await;
        deleted.or_else(Failed::or_over)?;
        let made = self.control.create(job, &new).await;
        made.or_else(Failed::or_over)
    }

    /// Events of conditions that are new.
    fn tell(&self, job: &Job, plan: &Plan) {
        let old = job.status.as_ref();
        let had = |kind: &str, status: &str| {
            old.and_then(|status| status.conditions.as_ref())
                .into_iter()
                .flatten()
                .any(|one| one.type_ == kind && one.status == status)
        };
        for one in plan.status.conditions.iter().flatten() {
            if had(&one.type_, &one.status) {
                continue;
            }
            let reason = one.reason.clone().unwrap_or_default();
            let message = one.message.clone().unwrap_or_default();
            match (one.type_.as_str(), one.status.as_str()) {
                ("Complete", "True") => {
                    self.control
                        .events
                        .record(job, Level::Normal, "Completed", "Job completed");
                }
                ("Failed", "True") => {
                    self.control
                        .events
                        .record(job, Level::Warning, reason, message);
                }
                ("Suspended", "True") => {
                    self.control
                        .events
                        .record(job, Level::Normal, "Suspended", message);
                }
                ("Suspended", "False") => {
                    self.control
                        .events
                        .record(job, Level::Normal, "Resumed", message);
                }
                _ => {}
            }
        }
    }
}

/// Who claims the Job's pods; nobody without a selector.
fn claimant(job: &Job) -> Result<Option<Claimant>, Error> {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.clone());
    let Some(selector) = selector else {
        return Ok(None);
    };
    let selector = Selector::try_from(selector)
        .map_err(|error| Error::invalid("selector", Key::of(job), error))?;
    Ok(Some(Claimant::new(job, selector)))
}

/// A new pod of the Job, with its index if it has one.
fn pod_of(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone());
    let mut pod = pods::pod_of(job, &template.unwrap_or_default());
    pod.finalizers_mut().push(FINALIZER.into());
    let Some(index) = index else {
        return pod;
    };
    let base = format!("{}-{index}", job.name_any());
    pod.metadata.generate_name = Some(format!("{base}-"));
    pod.annotations_mut()
        .insert(INDEX.into(), index.to_string());
    pod.labels_mut().insert(INDEX.into(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname.get_or_insert(base);
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let inits = spec.init_containers.iter_mut().flatten();
    for container in inits.chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|one| one.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
