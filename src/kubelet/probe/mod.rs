//! Probes and hooks: asking a container how it is, or telling it something.
//!
//! Owns one task per probed container. Called by the pod worker, which gets results through a
//! channel and decides; knows no pod status. Time is the runtime's monotonic clock.

mod exec;
mod grpc;
mod http;
mod tally;
mod tcp;
mod verdict;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{
        Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Pod, Probe,
        TCPSocketAction,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{sync::mpsc, task::AbortHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::{
    tally::{Of, Tallies},
    verdict::{Thresholds, Verdict},
};
use crate::{
    backoff::Backoff,
    exposition::Page,
    runtime::Runtime,
    supervision::{hooks, outlast},
};

/// Probes that panicked are started again after the first, then twice as long.
const FIRST_RESTART: Duration = Duration::from_secs(1);
const LAST_RESTART: Duration = Duration::from_secs(60);
/// By which tests order a failure of one.
const PROBES: &str = "probes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

/// A probe's verdict changed (thresholds are already applied), or a single run failed (`Warning`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub pod_uid: String,
    pub container: String,
    pub container_id: String,
    kind: Kind,
    outcome: Outcome,
}

impl Update {
    /// What the probe says, if `runs` says that its container still does: of one that has ended
    /// nothing counts.
    pub fn if_running(self, runs: impl FnOnce(&str) -> bool) -> Option<(Kind, Outcome)> {
        runs(&self.container_id).then_some((self.kind, self.outcome))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Failed as often as the threshold says; the last run's `Warning` came before.
    Failure {
        message: String,
    },
    /// One failed run, for an `Unhealthy` event.
    Warning {
        message: String,
    },
}

/// One running container to probe.
#[derive(Clone, Debug)]
pub struct Target {
    pub pod: Arc<Pod>,
    pub container: String,
    pub container_id: String,
    /// The pod's address (the node's with host network).
    pub address: Option<IpAddr>,
    pub started: SystemTime,
    /// The startup probe had succeeded before the daemon restarted.
    pub already_started: bool,
}

impl Target {
    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn spec(&self) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        let init = spec.init_containers.iter().flatten();
        spec.containers
            .iter()
            .chain(init)
            .find(|container| container.name == self.container)
    }

    /// A port by number, or by the name that the container gives it.
    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                let ports = self.spec().and_then(|container| container.ports.as_ref());
                ports
                    .into_iter()
                    .flatten()
                    .find(|port| port.name.as_deref() == Some(name))
                    .map(|port| port.container_port)
                    .or_else(|| name.parse().ok())
            }
        };
        number
            .and_then(|number| u16::try_from(number).ok())
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("the container has no port {port:?}"))
    }

    fn address(&self) -> Result<IpAddr, String> {
        self.address.ok_or_else(|| "the pod has no address".into())
    }
}

/// What is asked or told.
#[derive(Clone, Copy, Debug)]
enum Action<'a> {
    Exec(&'a ExecAction),
    Http(&'a HTTPGetAction),
    Tcp(&'a TCPSocketAction),
    Grpc(&'a GRPCAction),
}

impl<'a> Action<'a> {
    fn of(probe: &'a Probe) -> Option<Self> {
        let exec = probe.exec.as_ref().map(Self::Exec);
        exec.or_else(|| probe.http_get.as_ref().map(Self::Http))
            .or_else(|| probe.tcp_socket.as_ref().map(Self::Tcp))
            .or_else(|| probe.grpc.as_ref().map(Self::Grpc))
    }

    async fn run(
        self,
        runtime: &Runtime,
        target: &Target,
        timeout: Duration,
    ) -> Result<(), String> {
        match self {
            Self::Exec(action) => exec::run(runtime, &target.container_id, action, timeout).await,
            Self::Http(action) => http::run(target, action, timeout).await,
            Self::Tcp(action) => tcp::run(target, action, timeout).await,
            Self::Grpc(action) => grpc::run(target, action, timeout).await,
        }
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Prober {
    runtime: Runtime,
    updates: mpsc::UnboundedSender<Update>,
    /// By pod UID.
    pods: Arc<Mutex<HashMap<String, Probed>>>,
}

/// One pod's probes.
#[derive(Default)]
struct Probed {
    terminating: CancellationToken,
    /// By container name.
    containers: HashMap<String, Running>,
    tallies: Tallies,
}

struct Running {
    container_id: String,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    pub fn new(runtime: Runtime, updates: mpsc::UnboundedSender<Update>) -> Self {
        Self {
            runtime,
            updates,
            pods: Arc::default(),
        }
    }

    /// Probes this container from now on, by its spec in `target.pod`; an older one of the same pod
    /// and name is forgotten. Calling it again for the same container id changes nothing.
    pub fn start(&self, target: Target) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let probed = pods.entry(target.uid().to_owned()).or_default();
        let known = probed.containers.get(&target.container);
        if known.is_some_and(|known| known.container_id == target.container_id) {
            return;
        }
        let (name, container_id) = (target.container.clone(), target.container_id.clone());
        let rounds = Rounds {
            runtime: self.runtime.clone(),
            updates: self.updates.clone(),
            terminating: probed.terminating.clone(),
            tallies: probed.tallies.clone(),
            started: AtomicBool::new(target.already_started),
            target,
        };
        let task = tokio::spawn(rounds.run()).abort_handle();
        let running = Running { container_id, task };
        probed.containers.insert(name, running);
    }

    /// While a pod terminates only readiness is asked.
    pub fn terminating(&self, pod_uid: &str) {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probed) = pods.get(pod_uid) {
            probed.terminating.cancel();
        }
    }

    /// The container has ended, and its probes with it; those of a later attempt go on.
    pub fn ended(&self, pod_uid: &str, container_id: &str) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probed) = pods.get_mut(pod_uid) {
            let others = |running: &Running| running.container_id != container_id;
            probed.containers.retain(|_, running| others(running));
        }
    }

    /// `/metrics/probes`: of the pods that there are.
    pub fn write(&self, page: &mut Page) {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let all = pods.values().flat_map(|probed| probed.tallies.read());
        let all: Vec<_> = all.collect();
        drop(pods);
        tally::write(page, &all);
    }

    pub fn stop(&self, pod_uid: &str) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.remove(pod_uid);
    }
}

/// All probes of one container.
struct Rounds {
    runtime: Runtime,
    updates: mpsc::UnboundedSender<Update>,
    terminating: CancellationToken,
    tallies: Tallies,
    /// There is no startup probe to wait for any more.
    started: AtomicBool,
    target: Target,
}

impl Rounds {
    /// Until no probe has anything to find out any more.
    async fn run(self) {
        let name = format!("probing container {}", self.target.container_id);
        let backoff = Backoff::new(FIRST_RESTART, LAST_RESTART);
        outlast(&name, backoff, || self.run_once()).await;
    }

    /// The startup probe first and alone; the others once it has succeeded.
    async fn run_once(&self) {
        let Some(spec) = self.target.spec() else {
            return;
        };
        if let Some(probe) = &spec.startup_probe
            && !self.started.load(Ordering::Relaxed)
        {
            let started = tokio::select! {
                started = self.probe(Kind::Startup, probe) => started,
                () = self.terminating.cancelled() => false,
            };
            if !started {
                return;
            }
            self.started.store(true, Ordering::Relaxed);
        }
        let liveness = async {
            if let Some(probe) = &spec.liveness_probe {
                tokio::select! {
                    _ = self.probe(Kind::Liveness, probe) => {}
                    () = self.terminating.cancelled() => {}
                }
            }
        };
        let readiness = async {
            if let Some(probe) = &spec.readiness_probe {
                self.probe(Kind::Readiness, probe).await;
            }
        };
        tokio::join!(liveness, readiness);
    }

    /// Runs one probe: startup until its verdict (which it returns), liveness until it fails (the
    /// container is going to be killed), readiness for ever.
    async fn probe(&self, kind: Kind, probe: &Probe) -> bool {
        let Some(action) = Action::of(probe) else {
            return true;
        };
        let at_least_one = |value: Option<i32>, default: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .filter(|value| *value > 0)
                .unwrap_or(default)
        };
        let thresholds = Thresholds {
            success: at_least_one(probe.success_threshold, 1),
            failure: at_least_one(probe.failure_threshold, 3),
        };
        let seconds = |value, default| Duration::from_secs(at_least_one(value, default).into());
        let timeout = seconds(probe.timeout_seconds, 1);
        let mut verdict = Verdict::new(kind, thresholds);
        let period = seconds(probe.period_seconds, 10);
        tokio::time::sleep(self.until_first(probe)).await;
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut early = self.early_tries(kind, period);
        loop {
            ticks.tick().await;
            hooks::provoked(PROBES).await;
            let begun = Instant::now();
            let mut answer = action.run(&self.runtime, &self.target, timeout).await;
            // Only a success counts here: all of these are one run as far as thresholds go.
            while answer.is_err()
                && let Some(pause) = early.next()
            {
                tokio::time::sleep(pause).await;
                answer = action.run(&self.runtime, &self.target, timeout).await;
            }
            early = EarlyTries::NONE;
            if !self.container_runs() {
                return false;
            }
            let of = Of::new(&self.target, kind);
            self.tallies.count(of, answer.is_ok(), begun.elapsed());
            if let Err(message) = &answer {
                let message = message.clone();
                self.tell(kind, Outcome::Warning { message });
            }
            let Some(good) = verdict.answer(answer.is_ok()) else {
                continue;
            };
            match answer {
                Ok(()) => self.tell(kind, Outcome::Success),
                Err(message) => self.tell(kind, Outcome::Failure { message }),
            }
            match kind {
                Kind::Startup => return good,
                Kind::Liveness if !good => return false,
                Kind::Liveness | Kind::Readiness => {}
            }
        }
    }

    fn container_runs(&self) -> bool {
        let (uid, id) = (self.target.uid(), &self.target.container_id);
        self.runtime.is_running(uid, id)
    }

    /// A program that has just been started listens a few milliseconds later, after the first run
    /// of its probe; a whole period until the next would be most of a small pod's start.
    fn early_tries(&self, kind: Kind, period: Duration) -> EarlyTries {
        let young = self.target.started.elapsed().unwrap_or_default() < period;
        match kind {
            Kind::Startup | Kind::Readiness if young => EarlyTries::within(period),
            _ => EarlyTries::NONE,
        }
    }

    /// What is left of the initial delay, which counts from the container's start.
    fn until_first(&self, probe: &Probe) -> Duration {
        let delay = probe
            .initial_delay_seconds
            .and_then(|delay| u64::try_from(delay).ok())
            .unwrap_or(0);
        // A clock that was set back must not make it longer.
        let runs = self.target.started.elapsed().unwrap_or_default();
        Duration::from_secs(delay).saturating_sub(runs)
    }

    fn tell(&self, kind: Kind, outcome: Outcome) {
        // Nobody listens when the kubelet ends.
        let _ = self.updates.send(Update {
            pod_uid: self.target.uid().to_owned(),
            container: self.target.container.clone(),
            container_id: self.target.container_id.clone(),
            kind,
            outcome,
        });
    }
}

/// Pauses between the tries of a first run: each twice the one before, until half a period is over.
struct EarlyTries {
    pause: Duration,
    until: Option<Instant>,
}

impl EarlyTries {
    const NONE: Self = Self {
        pause: Duration::ZERO,
        until: None,
    };

    fn within(period: Duration) -> Self {
        Self {
            pause: Duration::from_millis(10),
            until: Some(Instant::now() + period / 2),
        }
    }

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause;
        self.pause *= 2;
        (Instant::now() + pause < self.until?).then_some(pause)
    }
}

/// Runs a lifecycle hook once. The error is what the event says.
pub async fn hook(
    runtime: &Runtime,
    target: &Target,
    handler: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        let length = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(length.min(timeout)).await;
        return Ok(());
    }
    let action = match (&handler.exec, &handler.http_get) {
        (Some(exec), _) => Action::Exec(exec),
        (None, Some(get)) => Action::Http(get),
        (None, None) => return Err("the handler is none of exec, httpGet and sleep".into()),
    };
    action.run(runtime, target, timeout).await
}

#[cfg(test)]
fn target(address: IpAddr, ports: serde_json::Value) -> Target {
    let pod = serde_json::json!({
        "metadata": {"uid": "u", "name": "p", "namespace": "n"},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
    });
    Target {
        pod: Arc::new(serde_json::from_value(pod).unwrap()),
        container: "c".into(),
        container_id: "id".into(),
        address: Some(address),
        started: SystemTime::now(),
        already_started: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_ended_container_nothing_counts() {
        let update = |id: &str| Update {
            pod_uid: "u".into(),
            container: "c".into(),
            container_id: id.into(),
            kind: Kind::Liveness,
            outcome: Outcome::Success,
        };
        let runs = |id: &str| id == "second";
        assert_eq!(update("first").if_running(runs), None);
        let counts = Some((Kind::Liveness, Outcome::Success));
        assert_eq!(update("second").if_running(runs), counts);
    }

    #[test]
    fn early_tries_end_before_half_a_period() {
        let mut tries = EarlyTries::within(Duration::from_secs(1));
        let pauses: Vec<_> = std::iter::from_fn(|| tries.next())
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320]);
        let mut none = EarlyTries::NONE;
        assert!(none.next().is_none());
    }

    #[test]
    fn ports_by_name_and_number() {
        let ports = serde_json::json!([{"name": "web", "containerPort": 80}]);
        let target = target("127.0.0.1".parse().unwrap(), ports);
        for (port, want) in [
            (IntOrString::Int(8080), Some(8080)),
            (IntOrString::String("web".into()), Some(80)),
            (IntOrString::String("81".into()), Some(81)),
            (IntOrString::String("none".into()), None),
            (IntOrString::Int(0), None),
            (IntOrString::Int(70000), None),
        ] {
            assert_eq!(target.port(&port).ok(), want, "{port:?}");
        }
    }
}
