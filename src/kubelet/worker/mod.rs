//! One task per pod: looks at what is, plans, acts, tells, and waits for something to happen.
//!
//! Owns the pod's life on this node. `apply.rs` carries actions out; `sandbox.rs`, `start.rs` and
//! `stop.rs` do what takes time, in tasks of their own.
//! Always true:
//! - Nothing here waits for an image, a volume, a hook or the API; their results come back as
//!   messages.
//! - Termination is one-way.

mod apply;
pub mod sandbox;
mod start;
mod stop;

pub use apply::delete_object;
pub use start::identity;
pub use stop::{Hooks, stop_containers};

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus, Service};
use kube::{Client, ResourceExt};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::apply::Done;
use super::{
    Config,
    container::Facts,
    events::Recorder,
    eviction::Eviction,
    images::Puller,
    logs,
    network::PodNetwork,
    pod::{
        self,
        conditions::held as held_condition,
        plan::{Ending, Observed, Verdict, plan},
        record::{self, Edit, Marks, Record, SCHEME, Sandbox},
        status::{View, status},
    },
    probe::{self, Prober},
    reporter::{Reporter, Target, Urgency, revision},
    statics,
    volumes::{News, PodVolumes, Volumes},
};
use crate::{
    addresses::family::PerFamily,
    informer::Informer,
    network_policy::Policies,
    runtime::{Phase, Runtime},
    served::Served,
    supervision::steps::{Step, reached},
};

/// Everything is looked at again after this long, in case something was missed.
const RESYNC: Duration = Duration::from_secs(75);
/// How long containers may take to stop when their pod's object is gone.
pub const FORCED_GRACE: Duration = Duration::from_secs(2);
/// What containers say at their end, at most.
const MESSAGE_BYTES: usize = 4096;

/// What all workers of a node use.
pub struct Context {
    pub config: Config,
    pub facts: Facts,
    pub client: Client,
    pub runtime: Runtime,
    pub network: PodNetwork,
    pub policies: Policies,
    pub served: Served,
    pub puller: Puller,
    pub volumes: Volumes,
    pub prober: Prober,
    pub events: Recorder,
    pub services: Informer<Service>,
}

/// What a worker shall bring about. Only the newest counts.
#[derive(Clone, Debug)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The object that shows the pod's status: itself, or its mirror, once there is one.
    pub target: Option<Target>,
    /// What that object says of the pod.
    pub held: Option<PodStatus>,
    pub wish: Wish,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// As the spec says, which may ask for its end.
    Run,
    /// This node cannot take it.
    Reject { reason: String, message: String },
    /// Its object or manifest is no more.
    Gone,
}

/// Something that a worker should know at once.
#[derive(Debug)]
pub enum Note {
    /// The runtime has news of the pod.
    Look,
    Probe(probe::Update),
    /// There are images that were not there before.
    Images,
    Evict(Eviction),
    /// The disk is short: what is left of attempts that ran anew since must go.
    RemoveDead,
}

/// The way to a worker. Dropping it leaves the pod as it is.
#[derive(Debug)]
pub struct Handle {
    pub desired: watch::Sender<Desired>,
    pub notes: mpsc::UnboundedSender<Note>,
    /// The worker itself.
    pub task: tokio::task::Id,
}

/// How far the pod's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Active,
    /// Containers have ended; the rest is being given back.
    Releasing,
    Released,
    /// The API was told to delete the object.
    Deleting,
}

pub struct Worker {
    context: Arc<Context>,
    uid: String,
    desired: watch::Receiver<Desired>,
    notes: mpsc::UnboundedReceiver<Note>,
    tasks: JoinSet<Done>,
    reporter: Reporter,
    pod: Arc<Pod>,
    target: Option<Target>,
    gone: bool,
    stage: Stage,
    sandbox: Sandbox,
    /// How often in a row it could not be made.
    sandbox_failures: u32,
    volumes: PodVolumes,
    volumes_news: watch::Receiver<News>,
    /// What volumes are made of has changed since the sandbox began to be made.
    volumes_changed: bool,
    pod_ips: Vec<IpAddr>,
    records: Vec<Record>,
    /// Ids of containers that an earlier daemon has begun to start.
    launching: BTreeSet<String>,
    marks: Marks,
    ending: Option<Ending>,
    /// Dropped when an evicted pod is gone.
    evicted: Option<tokio::sync::oneshot::Sender<()>>,
    /// Cancelled when the pod ends.
    ends: CancellationToken,
    /// The status as last told.
    told: PodStatus,
    /// Whom it was told.
    told_target: Option<Target>,
    started: SystemTime,
}

impl Worker {
    /// Starts the worker in `workers`; it ends with the pod's UID when nothing of the pod is left.
    pub fn start(context: Arc<Context>, desired: Desired, workers: &mut JoinSet<String>) -> Handle {
        let (notify, notes) = mpsc::unbounded_channel();
        let held = desired.held.clone().unwrap_or_default();
        let since = held.start_time.as_ref().map(|time| time.0.into());
        let (sender, receiver) = watch::channel(desired.clone());
        let uid = desired.pod.uid().unwrap_or_default();
        let volumes = context.volumes.of_pod(&uid);
        volumes.want(desired.pod.clone());
        let worker = Self {
            uid,
            volumes_news: volumes.news(),
            volumes,
            volumes_changed: false,
            reporter: Reporter::start(context.client.clone(), held.clone()),
            context,
            desired: receiver,
            notes,
            tasks: JoinSet::new(),
            pod: desired.pod,
            target: desired.target.clone(),
            gone: false,
            stage: Stage::Active,
            sandbox: Sandbox::Absent,
            sandbox_failures: 0,
            pod_ips: Vec::new(),
            records: Vec::new(),
            launching: BTreeSet::new(),
            marks: Marks::default(),
            ending: None,
            evicted: None,
            ends: CancellationToken::new(),
            told: held,
            told_target: desired.target.clone(),
            started: since.unwrap_or_else(SystemTime::now),
        };
        let task = workers.spawn(worker.run()).id();
        Handle {
            desired: sender,
            notes: notify,
            task,
        }
    }

    async fn run(mut self) -> String {
        self.adopt().await;
        self.take_desired();
        loop {
            let wake = self.step().await;
            if self.is_finished() {
                break;
            }
            if !self.wait(wake).await {
                return self.uid; // the kubelet ends, the pod does not
            }
        }
        // Here and not with the answer to the deletion: what is watched may tell of it first.
        reached(Step::ObjectDeleted);
        self.context.prober.stop(&self.uid);
        let log_dir = &self.context.config.log_dir;
        logs::remove_pod(log_dir, &identity(&self.pod)).await;
        reached(Step::LogsRemoved);
        self.uid
    }

    fn is_finished(&self) -> bool {
        self.gone && matches!(self.stage, Stage::Released | Stage::Deleting)
    }

    /// Takes over what an earlier daemon has left running.
    async fn adopt(&mut self) {
        let Some(state) = self.context.runtime.pod(&self.uid).await else {
            return;
        };
        if !state.alive {
            self.sandbox = Sandbox::Broken;
            return;
        }
        if state.containers.is_empty() {
            return self.make_sandbox(Sandbox::Checking);
        }
        self.sandbox = Sandbox::Ready;
        self.pod_ips = match pod::host_network(&self.pod) {
            true => self.context.config.addresses.clone(),
            false => {
                let addresses = self.context.network.addresses(&self.uid).await;
                addresses
                    .iter()
                    .flat_map(PerFamily::iter)
                    .copied()
                    .collect()
            }
        };
        self.remember();
        self.records = record::records(Some(state), &self.told);
        for record in self.records.clone() {
            self.probe(&record.name, &record);
        }
        let launching = self.records.iter().filter(|one| one.is_launching());
        self.launching = launching.map(|one| one.id.clone()).collect();
        self.volumes.adopt();
    }

    /// What was told of containers is true until probes say otherwise.
    fn remember(&mut self) {
        let told = [
            &self.told.init_container_statuses,
            &self.told.container_statuses,
        ];
        for status in told.into_iter().flatten().flatten() {
            let id = status.container_id.as_deref().unwrap_or_default();
            let id = id.trim_start_matches(SCHEME).to_owned();
            if status.started == Some(true) {
                self.marks.started.insert(id.clone());
            }
            if status.ready {
                self.marks.ready.insert(id);
            }
        }
    }

    /// Probes the container if it runs and has probes.
    fn probe(&self, container: &str, record: &Record) {
        let Phase::Running { started, .. } = record.phase else {
            return;
        };
        let Some(member) = pod::member(&self.pod, container) else {
            return;
        };
        let spec = &member.spec;
        let probes = [
            &spec.startup_probe,
            &spec.liveness_probe,
            &spec.readiness_probe,
        ];
        if probes.into_iter().all(Option::is_none) {
            return;
        }
        let address = self.pod_ips.first().copied();
        self.context.prober.start(probe::Target {
            already_started: self.marks.started.contains(&record.id),
            ..stop::target(&self.pod, container, &record.id, address, started)
        });
    }

    /// Takes the newest wish over.
    fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        let content = |pod: &Pod| (pod.labels().clone(), pod.annotations().clone());
        let changed = content(&desired.pod) != content(&self.pod);
        if images(&desired.pod) != images(&self.pod) {
            let at = SystemTime::now();
            let before = self.observed(at).taken_up();
            self.marks.edited = Some(Edit { at, before });
        }
        self.pod = desired.pod;
        // After the pod was taken over: its labels are what a volume shows.
        if changed {
            self.volumes.want(self.pod.clone());
        }
        self.take_target(&desired.target, desired.held.unwrap_or_default());
        self.target = desired.target;
        match desired.wish {
            Wish::Run if pod::is_over(&self.pod) => self.end(Some(self.settled()), None),
            Wish::Run => {}
            Wish::Reject { reason, message } => {
                if self.ending.is_none() {
                    let (events, level) = (&self.context.events, super::events::Level::Warning);
                    events.pod(
                        &self.pod,
                        level,
                        "FailedAdmission",
                        format!("{reason}: {message}"),
                    );
                }
                let verdict = Verdict::Failed {
                    reason: Some(reason),
                    message: Some(message),
                };
                self.end(Some(verdict), Some(Duration::ZERO));
            }
            Wish::Gone => {
                self.gone = true;
                self.end(None, Some(gone_grace(&self.pod)));
            }
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.end(None, None);
        }
    }

    /// Sees what the object for the status is, and whether it says what it was told.
    fn take_target(&mut self, target: &Option<Target>, held: PodStatus) {
        let uid = |target: &Option<Target>| target.as_ref().map(|target| target.uid.clone());
        let is_same = uid(target) == uid(&self.target);
        let reverted = || {
            let told = self.told.conditions.iter().flatten();
            let other = |own: &PodCondition| {
                held_condition(&held, &own.type_).is_none_or(|held| held.status != own.status)
            };
            self.reporter.is_shown_by(revision(&self.pod).unwrap_or(0)) && { told }.any(other)
        };
        if is_same && !(self.told_target.is_some() && reverted()) {
            return;
        }
        self.reporter = Reporter::start(self.context.client.clone(), held.clone());
        self.told_target = None;
        if !is_same && held.start_time.is_some() {
            // A mirror from before the daemon was restarted.
            self.told = held;
            self.started = self
                .told
                .start_time
                .as_ref()
                .map_or(self.started, |time| time.0.into());
            self.remember();
        }
    }

    /// How the API says that the pod has ended.
    fn settled(&self) -> Verdict {
        let status = self.pod.status.clone().unwrap_or_default();
        match status.phase.as_deref() {
            Some("Succeeded") => Verdict::Succeeded,
            _ => Verdict::Failed {
                reason: status.reason,
                message: status.message,
            },
        }
    }

    /// Begins the end, or brings it nearer; never further away.
    fn end(&mut self, verdict: Option<Verdict>, grace: Option<Duration>) {
        let now = SystemTime::now();
        let grace = grace.unwrap_or_else(|| pod::grace(&self.pod));
        match &mut self.ending {
            None => {
                self.ending = Some(Ending {
                    verdict,
                    since: now,
                    grace,
                });
                self.ends.cancel();
                self.context.prober.terminating(&self.uid);
            }
            Some(ending) if self.gone && now + grace < ending.deadline() => {
                (ending.since, ending.grace) = (now, grace);
            }
            Some(ending) => ending.grace = ending.grace.min(grace),
        }
    }

    /// One look, the actions that follow, and what is to be told. Returns when to look again.
    async fn step(&mut self) -> Option<SystemTime> {
        let mut wake = None;
        if self.stage == Stage::Active {
            self.observe().await;
            loop {
                let plan = plan(&self.observed(SystemTime::now()));
                wake = plan.wake;
                if !plan.actions.is_empty() {
                    tracing::debug!(pod = self.pod.name_any(), actions = ?plan.actions, "planned");
                }
                if !self.apply(plan.actions).await {
                    break;
                }
            }
            self.tell_back_offs();
        }
        self.tell();
        self.go_on_ending();
        wake
    }

    async fn observe(&mut self) {
        let state = self.context.runtime.pod(&self.uid).await;
        if self.sandbox == Sandbox::Ready {
            let alive = state.as_ref().map(|state| state.alive);
            if alive != Some(true) {
                self.sandbox_changed(alive.is_some());
            }
        }
        self.records = record::records(state, &self.told);
        self.marks.retain(&self.records);
        self.take_launched();
        for record in self.records.iter().filter(|record| record.is_exited()) {
            self.context.prober.ended(&self.uid, &record.id);
        }
        for index in 0..self.records.len() {
            let record = &self.records[index];
            let is_new = record.is_exited()
                && record.origin == record::Origin::Here
                && !self.marks.messages.contains_key(&record.id);
            if is_new {
                let id = record.id.clone();
                let message = self.last_words(record).await;
                self.marks.messages.insert(id, message);
            }
        }
    }

    /// Hook and probes of containers that an earlier daemon has begun to start.
    fn take_launched(&mut self) {
        let running = |record: &&Record| record.is_running() && self.launching.contains(&record.id);
        let launched: Vec<(String, String)> = { self.records.iter() }
            .filter(running)
            .map(|record| (record.name.clone(), record.id.clone()))
            .collect();
        for (container, id) in launched {
            self.launching.remove(&id);
            self.began(&container, id);
        }
    }

    fn sandbox_changed(&mut self, broken: bool) {
        self.sandbox = match broken {
            true => Sandbox::Broken,
            false => Sandbox::Absent,
        };
        let message = "Pod sandbox changed, it will be killed and re-created.";
        let level = super::events::Level::Normal;
        let events = &self.context.events;
        events.pod(&self.pod, level, "SandboxChanged", message);
    }

    /// What the container wrote for its end, or the end of its log if it asked for that.
    async fn last_words(&self, record: &Record) -> String {
        let volumes = &self.volumes;
        let message = volumes
            .termination_message(&record.name, record.attempt)
            .await;
        let member = pod::member(&self.pod, &record.name);
        let policy = member.and_then(|member| member.spec.termination_message_policy.clone());
        let mut message = match policy.as_deref() {
            Some("FallbackToLogsOnError")
                if message.is_empty() && record.exit_code() != Some(0) =>
            {
                logs::tail(record.log_path.clone()).await
            }
            _ => message,
        };
        let mut end = message.len().min(MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message
    }

    fn observed(&self, now: SystemTime) -> Observed<'_> {
        Observed {
            pod: &self.pod,
            now,
            started: Some(self.started),
            sandbox: self.sandbox,
            records: &self.records,
            marks: &self.marks,
            ending: self.ending.as_ref(),
        }
    }

    /// Tells the API what is new.
    fn tell(&mut self) {
        let previous = self.previous();
        let by_itself = self.ending.as_ref().is_some_and(|e| e.verdict.is_some());
        let status = status(&View {
            observed: self.observed(SystemTime::now()),
            host_ips: &self.context.config.addresses,
            pod_ips: &self.pod_ips,
            previous: &previous,
            ended: match self.stage {
                Stage::Active => false,
                // Of a deleted pod the end is told when nothing of it is left.
                Stage::Releasing => by_itself,
                Stage::Released | Stage::Deleting => true,
            },
        });
        let Some(target) = self.target.clone() else {
            return;
        };
        let told_all = self.told_target.as_ref() == Some(&target) && status == self.told;
        if self.gone || told_all {
            return;
        }
        let dull = status.phase.as_deref() == Some("Pending") && self.marks.setbacks.is_empty();
        let urgency = match dull {
            true => Urgency::Soon,
            false => Urgency::Now,
        };
        self.told = status.clone();
        self.told_target = Some(target.clone());
        self.reporter.report(target, status, urgency);
    }

    /// What was told last, with the conditions that others have set since.
    fn previous(&self) -> PodStatus {
        let mut previous = self.told.clone();
        let held = self.pod.status.as_ref();
        previous.qos_class = held
            .and_then(|status| status.qos_class.clone())
            .or(previous.qos_class);
        let ours = previous.conditions.get_or_insert_default();
        let others = held.and_then(|status| status.conditions.clone());
        for condition in others.into_iter().flatten() {
            if !ours.iter().any(|own| own.type_ == condition.type_) {
                ours.push(condition);
            }
        }
        previous
    }

    /// Waits for something to happen; false when the kubelet ends.
    async fn wait(&mut self, wake: Option<SystemTime>) -> bool {
        let until = wake.map_or(RESYNC, |wake| {
            let left = wake.duration_since(SystemTime::now()).unwrap_or_default();
            left.min(RESYNC)
        });
        tokio::select! {
            changed = self.desired.changed() => match changed {
                Ok(()) => self.take_desired(),
                Err(_) => return false,
            },
            note = self.notes.recv() => match note {
                Some(note) => self.hear(note).await,
                None => return false,
            },
            Ok(()) = self.volumes_news.changed() => {
                let news = self.volumes_news.borrow_and_update().clone();
                self.take_volumes_news(news);
            }
            Some(done) = self.tasks.join_next() => match done.map_err(|error| error.try_into_panic()) {
                Ok(done) => self.finish(done),
                // What it was to bring about will not come: the worker starts over, with what is there.
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                Err(Err(error)) => tracing::error!(%error, pod = self.pod.name_any(), "a task of a pod was cut off"),
            },
            () = tokio::time::sleep(until) => {}
        }
        true
    }
}

/// How long a pod's containers have to stop when its object or manifest is no more.
fn gone_grace(pod: &Pod) -> Duration {
    match statics::is_static(pod) {
        true => pod::grace(pod),
        false => FORCED_GRACE,
    }
}

fn images(pod: &Pod) -> Vec<Option<&str>> {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        inits.chain(&spec.containers)
    });
    all.map(|container| container.image.as_deref()).collect()
}
