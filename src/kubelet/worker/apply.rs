//! Carrying out what was planned, and taking in what came of it.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
};

use super::{
    Context, Note, Stage, Worker,
    sandbox::{self, Failure as SandboxFailure},
    start::{self, Failure as StartFailure},
    stop,
};
use crate::{
    kubelet::{
        events::Level,
        eviction::{self, Eviction},
        images, logs,
        pod::{
            self,
            plan::{Action, Cause, Verdict},
            record::{Fault, Record, Sandbox, Setback},
        },
        probe::{self, Kind, Outcome},
        reporter::Target,
        volumes::News,
    },
    supervision::steps::{Step, reached},
};

/// How soon a sandbox that could not be made is tried again: doubling from the first to the last.
const SANDBOX_RETRY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];
/// A failed pull is shown as such so long, then as one that waits.
const SHOW_PULL_ERROR: Duration = Duration::from_secs(2);
/// The end of an evicted pod is told before what it holds is given back, if that is soon.
const EVICTED_PATIENCE: Duration = Duration::from_secs(2);
const DELETE_RETRY: Duration = Duration::from_secs(1);
/// How long a postStart hook may take.
const HOOK_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// What a task of the worker came to.
pub enum Done {
    Sandbox(Result<Vec<IpAddr>, SandboxFailure>),
    Started {
        container: String,
        /// As the spec named it.
        image: String,
        result: Result<String, StartFailure>,
    },
    Hook {
        id: String,
        container: String,
        result: Result<(), String>,
    },
    Stopped {
        id: String,
    },
    PullErrorShown {
        container: String,
    },
    Released,
    Deleted,
}

impl Worker {
    /// Carries the actions out, or has tasks do so; true if it should be planned again at once.
    pub(super) async fn apply(&mut self, actions: Vec<Action>) -> bool {
        let mut again = false;
        for action in actions {
            match action {
                Action::MakeSandbox => self.make_sandbox(Sandbox::Making),
                Action::Start {
                    container,
                    attempt,
                    delay,
                } => self.start_container(container, attempt, delay),
                Action::Stop {
                    id, cause, grace, ..
                } => self.stop_container(&id, cause, grace),
                Action::Remove { id } => self.remove_container(&id).await,
                Action::End(verdict) => {
                    self.conclude(verdict);
                    again = true;
                }
                Action::Release => self.release(),
            }
        }
        again
    }

    /// Until it is there the sandbox is `meanwhile`.
    pub(super) fn make_sandbox(&mut self, meanwhile: Sandbox) {
        self.sandbox = meanwhile;
        self.volumes_changed = false;
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let volumes = self.volumes.clone();
        self.tasks
            .spawn(async move { Done::Sandbox(sandbox::make(&context, &volumes, &pod).await) });
    }

    fn start_container(&mut self, container: String, attempt: u32, delay: Duration) {
        self.marks.starting.insert(container.clone());
        let order = start::Order {
            pod: self.pod.clone(),
            container,
            attempt,
            delay,
            pod_ips: self.pod_ips.clone(),
            volumes: self.volumes.clone(),
            ending: self.ends.clone(),
        };
        let context = self.context.clone();
        self.tasks.spawn(async move {
            Done::Started {
                image: order.image(),
                result: start::start(&context, &order).await,
                container: order.container,
            }
        });
    }

    fn stop_container(&mut self, id: &str, cause: Cause, grace: Duration) {
        let Some(record) = self.records.iter().find(|record| record.id == id) else {
            return;
        };
        let deadline = SystemTime::now() + grace;
        let before = self.marks.stopping.insert(id.to_owned(), deadline);
        let started = match record.phase {
            crate::runtime::Phase::Running { started, .. } => started,
            _ => SystemTime::now(),
        };
        if matches!(cause, Cause::Fault(_)) {
            self.marks.stopped_by_fault.insert(id.to_owned());
        }
        let address = self.pod_ips.first().copied();
        let order = stop::Order {
            pod: self.pod.clone(),
            container: record.name.clone(),
            id: id.to_owned(),
            signal: record.signal,
            cause,
            grace,
            again: before.is_some(),
            target: stop::target(&self.pod, &record.name, id, address, started),
        };
        let context = self.context.clone();
        self.tasks.spawn(async move {
            stop::stop(&context, &order).await;
            Done::Stopped { id: order.id }
        });
    }

    async fn remove_container(&mut self, id: &str) {
        let Some(index) = self.records.iter().position(|record| record.id == id) else {
            return;
        };
        match self.context.runtime.remove_container(id).await {
            Ok(()) => {
                let record = self.records.remove(index);
                logs::remove_attempt(record.log_path).await;
            }
            Err(error) => tracing::warn!(%error, pod = self.pod.name_any(), "dead container kept"),
        }
    }

    fn conclude(&mut self, verdict: Verdict) {
        if let Verdict::Failed {
            reason: Some(reason),
            message: Some(message),
        } = &verdict
            && reason == "DeadlineExceeded"
        {
            let events = &self.context.events;
            events.pod(&self.pod, Level::Normal, "DeadlineExceeded", message);
        }
        self.end(Some(verdict), None);
    }

    /// Everything ended: the rest goes. What a pod that ended by itself came to is told first, since
    /// afterwards nobody knows.
    fn release(&mut self) {
        self.stage = Stage::Releasing;
        self.context.prober.stop(&self.uid);
        self.tell();
        let by_itself = self.ending.as_ref().is_some_and(|e| e.verdict.is_some());
        let flushed = by_itself.then(|| self.reporter.flushed());
        // A full disk may be why it is evicted, and why its end cannot be written yet.
        let patience = match self.evicted {
            Some(_) => EVICTED_PATIENCE,
            None => Duration::MAX,
        };
        let (context, pod) = (self.context.clone(), self.pod.clone());
        self.tasks.spawn(async move {
            if let Some(flushed) = flushed {
                let _ = tokio::time::timeout(patience, flushed).await;
            }
            sandbox::release(&context, &pod).await;
            Done::Released
        });
    }

    /// When all is released and the API wants it, the object goes too.
    pub(super) fn go_on_ending(&mut self) {
        let deleted = self.pod.metadata.deletion_timestamp.is_some();
        if self.stage != Stage::Released || self.gone || !deleted {
            return;
        }
        let Some(target) = self.target.clone() else {
            return;
        };
        self.stage = Stage::Deleting;
        let flushed = self.reporter.flushed();
        let client = self.context.client.clone();
        self.tasks.spawn(async move {
            flushed.await;
            reached(Step::EndWritten);
            delete(Api::namespaced(client, &target.namespace), &target).await;
            Done::Deleted
        });
    }

    /// Takes in what became of the volumes.
    pub(super) fn take_volumes_news(&mut self, news: News) {
        match news {
            News::Nothing => {}
            // Making the sandbox begins with the volumes.
            News::Changed => match &mut self.sandbox {
                Sandbox::Failed { again } => *again = SystemTime::now(),
                _ => self.volumes_changed = true,
            },
            News::Refreshed { failures } => {
                // When a namespace goes, what its pods use may go before them.
                let told = failures.iter().filter(|_| self.ending.is_none());
                let events = &self.context.events;
                for message in told {
                    events.pod(&self.pod, Level::Warning, "FailedMount", message);
                }
                self.forget_missing_config();
            }
        }
    }

    /// Takes in what a task came to.
    pub(super) fn finish(&mut self, done: Done) {
        match done {
            Done::Sandbox(Ok(addresses)) => {
                self.pod_ips = addresses;
                self.sandbox = Sandbox::Ready;
                self.sandbox_failures = 0;
            }
            Done::Sandbox(Err(failure)) => self.sandbox_failed(failure),
            Done::Started {
                container,
                image,
                result,
            } => self.started(container, image, result),
            Done::Hook {
                id,
                container,
                result,
            } => {
                self.marks.in_hook.remove(&id);
                if let Err(message) = result {
                    self.hook_failed(id, &container, message);
                }
            }
            Done::Stopped { id } => {
                self.marks.stopping.remove(&id);
            }
            Done::PullErrorShown { container } => self.pull_waits(&container),
            Done::Released => {
                self.stage = Stage::Released;
                self.evicted = None;
            }
            Done::Deleted => {}
        }
    }

    fn sandbox_failed(&mut self, failure: SandboxFailure) {
        let (reason, message) = failure.told();
        let events = &self.context.events;
        events.pod(&self.pod, Level::Warning, reason, &message);
        if let SandboxFailure::Rejected(_) = failure {
            self.sandbox = Sandbox::Absent;
            let verdict = Verdict::Failed {
                reason: Some(reason.to_owned()),
                message: Some(message),
            };
            return self.end(Some(verdict), None);
        }
        let [first, last] = SANDBOX_RETRY;
        let delay = (first * 2_u32.saturating_pow(self.sandbox_failures.min(8))).min(last);
        self.sandbox_failures += 1;
        let delay = match std::mem::take(&mut self.volumes_changed) {
            true => Duration::ZERO,
            false => delay,
        };
        self.sandbox = Sandbox::Failed {
            again: SystemTime::now() + delay,
        };
    }

    fn started(&mut self, container: String, image: String, result: Result<String, StartFailure>) {
        self.marks.starting.remove(&container);
        match result {
            Ok(id) => {
                self.marks.setbacks.remove(&container);
                self.began(&container, id);
            }
            Err(StartFailure::Ran(_)) => {
                self.marks.setbacks.remove(&container);
            }
            Err(StartFailure::Ending) => {}
            Err(StartFailure::Setback {
                reason,
                message,
                after,
            }) => {
                if reason == "ErrImagePull" {
                    let container = container.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(SHOW_PULL_ERROR).await;
                        Done::PullErrorShown { container }
                    });
                }
                let setback = Setback {
                    reason,
                    message,
                    again: SystemTime::now() + after,
                    image,
                };
                self.marks.setbacks.insert(container, setback);
                self.retry_images(); // one may have come while it failed
            }
        }
    }

    /// A container runs: its hook and its probes begin.
    pub(super) fn began(&mut self, container: &str, id: String) {
        let Some(member) = pod::member(&self.pod, container) else {
            return;
        };
        let spec = &member.spec;
        let probes = [
            &spec.startup_probe,
            &spec.liveness_probe,
            &spec.readiness_probe,
        ];
        let has_probes = probes.into_iter().any(Option::is_some);
        let hook = spec.lifecycle.as_ref();
        let hook = hook.and_then(|lifecycle| lifecycle.post_start.clone());
        let address = self.pod_ips.first().copied();
        let target = stop::target(&self.pod, container, &id, address, SystemTime::now());
        if has_probes {
            self.context.prober.start(target.clone());
        }
        if let Some(handler) = hook {
            self.marks.in_hook.insert(id.clone());
            let (context, container) = (self.context.clone(), container.to_owned());
            self.tasks.spawn(async move {
                let run = probe::hook(&context.runtime, &target, &handler, HOOK_WITHIN);
                Done::Hook {
                    result: run.await,
                    id,
                    container,
                }
            });
        }
    }

    fn hook_failed(&mut self, id: String, container: &str, message: String) {
        if let Some(member) = pod::member(&self.pod, container) {
            let text = format!("PostStartHook failed: {message}");
            let events = &self.context.events;
            events.container(
                &self.pod,
                &member,
                Level::Warning,
                "FailedPostStartHook",
                text,
            );
        }
        self.marks.faults.insert(id, Fault::PostStart(message));
    }

    /// A pull that failed a moment ago is now one that waits.
    fn pull_waits(&mut self, container: &str) {
        let starting = self.marks.starting.contains(container);
        let Some(member) = pod::member(&self.pod, container).filter(|_| !starting) else {
            return;
        };
        if let Some(setback) = self.marks.setbacks.get_mut(container)
            && setback.reason == "ErrImagePull"
        {
            setback.reason = "ImagePullBackOff";
            setback.message = self.context.puller.backing_off(&self.pod, &member);
        }
    }

    /// What was missing may be there now.
    fn forget_missing_config(&mut self) {
        for setback in self.marks.setbacks.values_mut() {
            if setback.reason == "CreateContainerConfigError" {
                setback.again = SystemTime::now();
            }
        }
    }

    /// Containers whose image could not be had start at once if it is there now.
    fn retry_images(&mut self) {
        for (container, setback) in &mut self.marks.setbacks {
            let of_image = images::is_about_image(setback.reason);
            if let Some(member) = pod::member(&self.pod, container).filter(|_| of_image)
                && self.context.puller.is_there(&member)
            {
                setback.again = SystemTime::now();
            }
        }
    }

    /// Takes in what the node tells its pods.
    pub(super) async fn hear(&mut self, note: Note) {
        match note {
            Note::Look => {}
            Note::Images => self.retry_images(),
            Note::Probe(update) => {
                if self.stage == Stage::Active {
                    self.observe().await; // does its container still run?
                }
                self.probed(update);
            }
            Note::Evict(eviction) => self.evict(eviction),
            Note::RemoveDead => self.remove_dead().await,
        }
    }

    /// Ends the pod for good; one that is ending already ends sooner.
    fn evict(&mut self, eviction: Eviction) {
        if self.stage != Stage::Active {
            return; // whoever waits for its end learns of it by what is dropped here
        }
        let Eviction {
            message,
            cause,
            grace,
            done,
        } = eviction;
        if self.ending.is_none() && cause == eviction::Cause::Node {
            self.marks.disrupted = Some(message.clone());
        }
        self.evicted = Some(done);
        let verdict = Verdict::Failed {
            reason: Some(eviction::REASON.to_owned()),
            message: Some(message),
        };
        self.end(Some(verdict), Some(grace));
    }

    /// Removes ended containers that were started anew since, logs included.
    async fn remove_dead(&mut self) {
        let newer = |old: &Record| {
            let of_same = |one: &Record| one.name == old.name && one.attempt > old.attempt;
            self.records.iter().any(of_same)
        };
        let dead = self
            .records
            .iter()
            .filter(|one| one.is_exited() && newer(one));
        let ids: Vec<String> = dead.map(|one| one.id.clone()).collect();
        for id in ids {
            self.remove_container(&id).await;
        }
    }

    fn probed(&mut self, update: probe::Update) {
        let (id, container) = (update.container_id.clone(), update.container.clone());
        let runs = |id: &str| {
            let mut records = self.records.iter();
            records.any(|record| record.id == id && record.is_running())
        };
        let Some(said) = update.if_running(runs) else {
            return;
        };
        match said {
            (kind, Outcome::Warning { message }) => self.unhealthy(kind, &container, &message),
            (Kind::Startup, Outcome::Success) => drop(self.marks.started.insert(id)),
            (Kind::Startup, Outcome::Failure { .. }) => {
                self.marks.faults.insert(id, Fault::Startup);
            }
            (Kind::Liveness, Outcome::Success) => {}
            (Kind::Liveness, Outcome::Failure { .. }) => {
                self.marks.faults.insert(id, Fault::Liveness);
            }
            (Kind::Readiness, Outcome::Success) => drop(self.marks.ready.insert(id)),
            (Kind::Readiness, Outcome::Failure { .. }) => drop(self.marks.ready.remove(&id)),
        }
    }

    fn unhealthy(&self, kind: Kind, container: &str, message: &str) {
        let Some(member) = pod::member(&self.pod, container) else {
            return;
        };
        let message = format!("{kind:?} probe failed: {message}");
        let events = &self.context.events;
        events.container(&self.pod, &member, Level::Warning, "Unhealthy", message);
    }

    /// Says for containers that wait after a crash that they do.
    pub(super) fn tell_back_offs(&mut self) {
        for member in pod::members(&self.pod) {
            let latest = self
                .records
                .iter()
                .rfind(|record| record.name == member.name());
            let Some(record) = latest.filter(|record| record.is_exited()) else {
                continue;
            };
            let observed = self.observed(SystemTime::now());
            if self.ending.is_some() || !observed.will_restart(&member, record) {
                continue;
            }
            let due = pod::plan::due(record, member.spec.image.as_deref().unwrap_or_default());
            if due > SystemTime::now() && self.marks.waiting.insert(record.id.clone()) {
                let message = format!(
                    "Back-off restarting failed container {} in pod {}_{}({})",
                    member.name(),
                    self.pod.name_any(),
                    self.pod.namespace().unwrap_or_default(),
                    self.uid
                );
                let events = &self.context.events;
                events.container(&self.pod, &member, Level::Warning, "BackOff", message);
            }
        }
    }
}

/// Deletes the object of a pod that is no more; one that is gone, or another pod by now, is fine.
/// Deletes the object of a pod of which nothing is left, if it is still that one.
pub async fn delete_object(context: &Context, pod: &Pod) {
    let target = Target {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    };
    let api = Api::namespaced(context.client.clone(), &target.namespace);
    delete(api, &target).await;
}

async fn delete(api: Api<Pod>, target: &Target) {
    let params = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: Some(target.uid.clone()),
            resource_version: None,
        });
    loop {
        match api.delete(&target.name, &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => return,
            // Another pod by now, or so many write this one that the server gave up.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                if let Ok(false) = target.is_in(&api).await {
                    return;
                }
                tracing::warn!(pod = target.name, %status, "not deleted, will retry");
            }
            Err(error) => tracing::warn!(pod = target.name, %error, "not deleted, will retry"),
        }
        tokio::time::sleep(DELETE_RETRY).await;
    }
}
