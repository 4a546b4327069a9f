//! Jobs: pods that run to their end, counted exactly once. `plan.rs` decides.
//!
//! Always true: a pod's finalizer is removed only after the status that counts it was written.

mod indexes;
mod plan;
mod policy;

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::Selector,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::plan::{FINALIZER, INDEX, Plan, has_finalizer, is_finished, plan};
use super::{
    error::{Doing, Error, OrGone, namespace_terminating},
    pods,
    replicas::{Wanted, claim, slow_start},
    shared::{Controller, Loop, Next},
    written::{PATIENCE, Written},
};
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;
const MANAGER: &str = "kubernetes.io/job-controller";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) {
    let jobs: Informer<Job> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let controller = Jobs {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "job-controller"),
        jobs: jobs.clone(),
        pods: pods.clone(),
        written: Written::default(),
    };
    Loop::new(controller, &jobs.clone())
        .watch(&pods, move |pod| owners_of(pod, &jobs))
        .run(WORKERS, shutdown)
        .await;
}

struct Jobs {
    client: Client,
    events: Recorder,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    written: Written,
}

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| pods::controller_named(pod.as_ref(), "batch", "Job") == Some(&key.name));
        let job = self.jobs.get(key);
        let uid = job.as_ref().and_then(|job| job.uid());
        let (pods, strangers): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| {
            pods::controller_of(pod.as_ref()).is_some_and(|owner| Some(&owner.uid) == uid.as_ref())
        });
        // Nobody will count pods of a Job that is gone.
        for pod in strangers.iter().filter(|pod| has_finalizer(pod)) {
            self.release(key, pod).await?;
        }
        let Some(job) = job else {
            self.written.forget(key);
            return Ok(Next::Settled);
        };
        let spec = job.spec.as_ref();
        let manager = spec.and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != MANAGER) {
            return Ok(Next::Settled);
        }
        if is_finished(&job) || pods::is_terminating(job.as_ref()) {
            for pod in pods.iter().filter(|pod| has_finalizer(pod)) {
                self.release(key, pod).await?;
            }
            return Ok(Next::Settled);
        }
        if !self.written.visible(key, &self.pods) {
            return Ok(Next::After(PATIENCE));
        }
        if self.reown(key, &job).await? {
            // The pods that changed hands come back as news.
            return Ok(Next::After(PATIENCE));
        }
        let plan = plan(&job, &pods, Timestamp::now());
        let recheck = plan.recheck;
        self.apply(key, &job, &pods, plan).await?;
        Ok(Next::after(recheck))
    }
}

impl Jobs {
    fn pod_api(&self, key: &Key) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

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
            self.release(key, &pod).await?;
        }
        for pod in of(&plan.delete) {
            if plan.uncounted_delete {
                self.release(key, &pod).await?;
            }
            self.delete(key, job, &pod).await?;
        }
        self.create(key, job, &plan.create).await
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
                    self.events
                        .record(job, Level::Normal, "Completed", "Job completed");
                }
                ("Failed", "True") => {
                    self.events.record(job, Level::Warning, reason, message);
                }
                ("Suspended", "True") => {
                    self.events.record(job, Level::Normal, "Suspended", message);
                }
                ("Suspended", "False") => {
                    self.events.record(job, Level::Normal, "Resumed", message);
                }
                _ => {}
            }
        }
    }

    /// Takes the orphans that the Job selects, and lets go of its pods that it selects no more.
    /// True if there were any.
    async fn reown(&self, key: &Key, job: &Job) -> Result<bool, Error> {
        let Some(wanted) = ownership(job)? else {
            return Ok(false);
        };
        let all = self.pods.list_in(&key.namespace);
        let claims = claim(&all, &wanted);
        if !claims.adopt.is_empty() {
            let api = Api::<Job>::namespaced(self.client.clone(), &key.namespace);
            let live = api
                .get(&key.name)
                .await
                .doing(|| format!("read Job {key} before adopting pods"))?;
            // The cache may show one that was deleted or replaced meanwhile.
            if live.uid() != job.uid() || pods::is_terminating(&live) {
                return Err(Error::invalid(
                    "cached owner",
                    key,
                    "the server has another one",
                ));
            }
        }
        for pod in &claims.adopt {
            let mut owners = pod.owner_references().to_vec();
            owners.push(pods::controller_ref(job));
            let mut finalizers = pod.finalizers().to_vec();
            if !has_finalizer(pod) {
                finalizers.push(FINALIZER.into());
            }
            let change = json!({"ownerReferences": owners, "finalizers": finalizers});
            self.change(key, pod, change).await?;
        }
        for pod in &claims.release {
            let mut owners = pod.owner_references().to_vec();
            owners.retain(|one| Some(&one.uid) != job.metadata.uid.as_ref());
            let change = json!({"ownerReferences": owners, "finalizers": other_finalizers(pod)});
            self.change(key, pod, change).await?;
        }
        Ok(!claims.adopt.is_empty() || !claims.release.is_empty())
    }

    async fn release(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        if !has_finalizer(pod) {
            return Ok(());
        }
        let change = json!({"finalizers": other_finalizers(pod)});
        self.change(key, pod, change).await
    }

    /// Patches these parts of the metadata, if the pod is still the one that was looked at.
    async fn change(&self, key: &Key, pod: &Pod, mut metadata: Value) -> Result<(), Error> {
        metadata["uid"] = json!(pod.uid());
        metadata["resourceVersion"] = json!(pod.resource_version());
        let patch = json!({"metadata": metadata});
        let name = pod.name_any();
        let changed = self
            .pod_api(key)
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .or_gone()
            .doing(|| format!("change pod {name} of Job {key}"))?;
        match changed {
            Some(changed) if changed.metadata.deletion_timestamp.is_none() => {
                self.written.wrote(key, &changed);
            }
            _ => self.written.deleted(key, Key::of(pod)),
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, job: &Job, pod: &Pod) -> Result<(), Error> {
        let name = pod.name_any();
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        });
        self.pod_api(key)
            .delete(&name, &params)
            .await
            .or_gone()
            .doing(|| format!("delete pod {name} of Job {key}"))?;
        self.written.deleted(key, Key::of(pod));
        let text = format!("Deleted pod: {name}");
        self.events
            .record(job, Level::Normal, "SuccessfulDelete", text);
        Ok(())
    }

    async fn create(&self, key: &Key, job: &Job, indexes: &[Option<i32>]) -> Result<(), Error> {
        let api = self.pod_api(key);
        let params = PostParams::default();
        let mut rest = indexes;
        for batch in slow_start(indexes.len()) {
            let (now, later) = rest.split_at(batch);
            rest = later;
            let made = join_all(now.iter().map(|index| {
                let pod = pod_of(job, *index);
                let (api, params) = (&api, &params);
                async move { api.create(params, &pod).await }
            }))
            .await;
            for result in made {
                match result {
                    Ok(pod) => {
                        self.written.wrote(key, &pod);
                        let text = format!("Created pod: {}", pod.name_any());
                        self.events
                            .record(job, Level::Normal, "SuccessfulCreate", text);
                    }
                    Err(error) if namespace_terminating(&error) => return Ok(()),
                    Err(error) => {
                        let text = format!("Error creating: {error}");
                        self.events
                            .record(job, Level::Warning, "FailedCreate", text);
                        return Err(error).doing(|| format!("create a pod of Job {key}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The Job of a pod; for an orphan, those that could adopt it.
fn owners_of(pod: &Pod, jobs: &Informer<Job>) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    if pods::controller_of(pod).is_some() {
        let name = pods::controller_named(pod, "batch", "Job");
        return name
            .map(|name| Key::new(namespace, name))
            .into_iter()
            .collect();
    }
    let all = jobs.list_in(&namespace);
    let selects = |job: &&Arc<Job>| {
        ownership(job).is_ok_and(|wanted| {
            wanted
                .is_some_and(|wanted| pods::selects(&wanted.selector, pod.metadata.labels.as_ref()))
        })
    };
    let adopters = all.iter().filter(selects);
    adopters.map(|job| Key::of(job.as_ref())).collect()
}

fn other_finalizers(pod: &Pod) -> Vec<&String> {
    let all = pod.finalizers().iter();
    all.filter(|one| *one != FINALIZER).collect()
}

/// What decides which pods are the Job's; `None` without a selector.
fn ownership(job: &Job) -> Result<Option<Wanted>, Error> {
    let Some(spec) = &job.spec else {
        return Ok(None);
    };
    let Some(selector) = &spec.selector else {
        return Ok(None);
    };
    let selector = Selector::try_from(selector.clone())
        .map_err(|error| Error::invalid("selector", Key::of(job), error))?;
    Ok(Some(Wanted {
        uid: job.uid().unwrap_or_default(),
        replicas: 0,
        selector,
        template_labels: Default::default(),
        min_ready_seconds: 0,
        terminating: pods::is_terminating(job),
    }))
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
