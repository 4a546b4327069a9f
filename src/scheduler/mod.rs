//! The scheduler: gives every pod without a node the best one.
//!
//! One task owns the queue and the cluster picture and tries one pod after the other; API calls
//! run beside it. It reacts to watch events and deadlines and knows no ticks.
//! Start at [`run`]; `cycle.rs` is one attempt, `plugins/` are the rules.
//! Always true:
//! - A pod counts on its node from the moment it is chosen (assumed), so that two pods never get the
//!   same room.
//! - A pod goes by its uid: what was found out or begun for one never counts for the next of its name.
//! - Whatever frees room, the end of a promise too, wakes those that had none.

mod changes;
mod cluster;
mod cycle;
mod owners;
mod plugins;
mod pod;
mod preempt;
mod promises;
mod queue;
mod report;
mod statuses;
#[cfg(test)]
mod tests;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Namespace, Node, Pod, ReplicationController, Service},
};
use kube::{Client, ResourceExt};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    cluster::Cluster,
    plugins::{Plugins, volumes::Storage},
    pod::{PodInfo, Uid, uid_of},
    preempt::{Preemption, Refusal, preempt},
    queue::Queue,
    statuses::{Nomination, Statuses, Wish},
};
use crate::{
    events::{Level, Recorder},
    informer::{Change, Informer, Informers, Key},
    placement::volumes::phase,
    queue::LOOK_AGAIN,
    supervision::{caught, caught_here, pulse},
    ticks,
};

/// What the scheduler is told at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods that name another scheduler are left alone.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(informers: Informers, config: Config, shutdown: CancellationToken) {
    let pods: Informer<Pod> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let (mut pod_changes, mut node_changes) = (pods.changes(), nodes.changes());
    let (failures, mut failed) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler::new(&informers, config, failures);
    let caches = scheduler.volumes.clone();
    let mut claim_changes = caches.claims.changes();
    let mut volume_changes = caches.volumes.changes();
    let mut class_changes = caches.classes.changes();
    let synced = async {
        nodes.synced().await;
        pods.synced().await;
        scheduler.namespaces.synced().await;
        scheduler.volumes.synced().await;
    };
    if shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    scheduler.resync(&pods, &nodes);
    let mut again = ticks::every(LOOK_AGAIN);
    loop {
        let deadline = scheduler.queue.deadline();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = pulse::asked() => {}
            change = node_changes.next() => match change {
                Some(Change::Applied { old, new }) => scheduler.node_applied(old.as_deref(), new),
                Some(Change::Deleted(node)) => scheduler.cluster.remove_node(&node.name_any()),
                Some(Change::Resync) => scheduler.resync(&pods, &nodes),
                None => return,
            },
            change = pod_changes.next() => match change {
                Some(Change::Applied { old, new }) => scheduler.pod_applied(old.as_deref(), new),
                Some(Change::Deleted(pod)) => scheduler.pod_gone(&uid_of(&pod)),
                Some(Change::Resync) => scheduler.resync(&pods, &nodes),
                None => return,
            },
            change = claim_changes.next() => match change {
                Some(Change::Applied { old, new }) => scheduler.claim_applied(old.as_deref(), &new),
                Some(Change::Deleted(_)) => {}
                Some(Change::Resync) => scheduler.queue.wake(Plugins::VOLUMES, Instant::now()),
                None => return,
            },
            change = volume_changes.next() => match change {
                Some(Change::Applied { old, new }) => {
                    let same = old.is_some_and(|old| {
                        old.spec == new.spec && phase(&old) == phase(&new)
                    });
                    if !same {
                        scheduler.queue.wake(Plugins::VOLUMES, Instant::now());
                    }
                }
                Some(Change::Deleted(_)) => {}
                Some(Change::Resync) => scheduler.queue.wake(Plugins::VOLUMES, Instant::now()),
                None => return,
            },
            change = class_changes.next() => match change {
                Some(_) => scheduler.queue.wake(Plugins::VOLUMES, Instant::now()),
                None => return,
            },
            Some(failure) = failed.recv() => scheduler.failed(&failure),
            // In case something was missed.
            _ = again.tick() => scheduler.resync(&pods, &nodes),
            () = std::future::ready(()), if scheduler.queue.has_active() => scheduler.attempt(),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                scheduler.queue.promote(Instant::now());
            }
        }
    }
}

/// An API call for a pod that has to be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    Binding(Uid),
    /// A victim is still there, and nobody has asked it to leave.
    Preemption(Uid),
}

struct Scheduler {
    client: Client,
    events: Recorder,
    config: Config,
    queue: Queue,
    cluster: Cluster,
    /// Where the next search begins.
    start: usize,
    statuses: Statuses,
    /// From the API calls that run beside.
    failures: mpsc::UnboundedSender<Failure>,
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    sets: Informer<ReplicaSet>,
    controllers: Informer<ReplicationController>,
    volumes: volumes::Caches,
    /// Pods whose claims get their volumes: stopped when the pod goes.
    in_flight: HashMap<Uid, CancellationToken>,
}

/// What the departure of a pod can make possible.
const ON_POD_GONE: Plugins = Plugins::FIT
    .and(Plugins::PORTS)
    .and(Plugins::VOLUMES)
    .and(Plugins::SPREAD)
    .and(Plugins::INTERPOD);
/// What the arrival or new labels of a pod can make possible.
const ON_POD_PLACED: Plugins = Plugins::SPREAD.and(Plugins::INTERPOD);

impl Scheduler {
    fn new(
        informers: &Informers,
        config: Config,
        failures: mpsc::UnboundedSender<Failure>,
    ) -> Self {
        Self {
            statuses: Statuses::start(informers.client().clone()),
            client: informers.client().clone(),
            events: Recorder::start(informers.client().clone(), report::COMPONENT),
            config,
            queue: Queue::default(),
            cluster: Cluster::default(),
            start: 0,
            failures,
            namespaces: informers.get(),
            services: informers.get(),
            sets: informers.get(),
            controllers: informers.get(),
            volumes: volumes::Caches::new(informers),
            in_flight: HashMap::new(),
        }
    }

    /// The room that was kept is for others.
    fn end_promise(&mut self, uid: &Uid) {
        if self.cluster.promises.end(uid).is_some() {
            self.queue.wake(ON_POD_GONE, Instant::now());
        }
    }

    fn failed(&mut self, failure: &Failure) {
        let now = Instant::now();
        if let Failure::Binding(uid) = failure {
            self.in_flight.remove(uid);
        }
        match failure {
            Failure::Binding(uid) if self.cluster.is_assumed(uid) => {
                if let Some(pod) = self.cluster.remove_pod(uid) {
                    self.cluster.promises.take_over(&pod);
                }
                self.queue.failed(uid, now);
                self.queue.wake(ON_POD_GONE, now);
            }
            Failure::Binding(_) => {}
            Failure::Preemption(uid) if self.cluster.has_pod(uid) => {}
            Failure::Preemption(uid) => self.queue.failed(uid, now),
        }
    }

    /// Tries the most urgent pod. One that cannot even be tried must not keep others from it.
    fn attempt(&mut self) {
        let Some(pod) = self.queue.pop() else {
            return;
        };
        let (key, uid) = (pod.key.clone(), pod.uid.clone());
        if let Err(panic) = caught_here(|| self.try_pod(pod)) {
            tracing::error!(pod = %key, %panic, "scheduling failed, will retry");
            self.queue.failed(&uid, Instant::now());
        }
    }

    fn try_pod(&mut self, pod: Arc<PodInfo>) {
        let defaults = self.spread_defaults(&pod);
        let namespaces = self.namespaces.clone();
        let labels = move |name: &str| -> Option<BTreeMap<String, String>> {
            let namespace = namespaces.get(&Key::new("", name))?;
            Some(namespace.labels().clone())
        };
        self.cluster.storage = Arc::new(Storage::of(&pod, &self.volumes));
        match cycle::schedule(&pod, &self.cluster, &labels, defaults, &mut self.start) {
            Ok(node) => self.bind(pod, node),
            Err(failed) => {
                let preemption = preempt(&pod, &mut self.cluster, &failed, &labels);
                self.queue
                    .unschedulable(&pod.uid, failed.plugins(), Instant::now());
                self.report_failure(pod, &failed, preemption);
            }
        }
    }

    /// Counts the pod on the node at once and binds it in the background.
    fn bind(&mut self, pod: Arc<PodInfo>, node: String) {
        self.cluster.assume(pod.clone(), &node);
        let promised = self.cluster.promises.end(&pod.uid);
        if promised.is_some_and(|promised| promised != node) {
            self.queue.wake(ON_POD_GONE, Instant::now());
        }
        let steps = match self.cluster.node(&node) {
            Some(info) => self.cluster.storage.plan(info).unwrap_or_default(),
            None => Vec::new(),
        };
        let gone = CancellationToken::new();
        if !steps.is_empty() {
            self.in_flight.insert(pod.uid.clone(), gone.clone());
        }
        let (client, failures) = (self.client.clone(), self.failures.clone());
        let (events, claims) = (self.events.clone(), self.volumes.claims.clone());
        tokio::spawn(async move {
            let volumes = volumes::bind(&client, &claims, &steps, &node);
            let volumes = match gone.run_until_cancelled(caught(volumes)).await {
                None => return, // nobody waits for it any more
                Some(Ok(done)) => done.map_err(|error| crate::causes::causes(&error)),
                Some(Err(panic)) => Err(panic.to_string()),
            };
            if let Err(error) = volumes {
                tracing::warn!(pod = %pod.key, node, error, "volumes not bound, will retry");
                let text = format!("running PreBind plugin \"VolumeBinding\": {error}");
                events.record(pod.pod.as_ref(), Level::Warning, "FailedScheduling", text);
                let _ = failures.send(Failure::Binding(pod.uid.clone()));
                return;
            }
            let bound = caught(report::bind(client, &pod, &node)).await;
            match bound.map_err(|panic| panic.to_string()) {
                Ok(Ok(())) => {
                    let text = format!("Successfully assigned {} to {node}", pod.key);
                    events.record(pod.pod.as_ref(), Level::Normal, "Scheduled", text);
                }
                Ok(Err(error)) => {
                    tracing::warn!(pod = %pod.key, node, %error, "binding failed, will retry");
                    let _ = failures.send(Failure::Binding(pod.uid.clone()));
                }
                Err(panic) => {
                    tracing::error!(pod = %pod.key, node, panic, "binding failed, will retry");
                    let _ = failures.send(Failure::Binding(pod.uid.clone()));
                }
            }
        });
    }

    fn report_failure(
        &mut self,
        pod: Arc<PodInfo>,
        failed: &cycle::Unschedulable,
        preemption: Result<Preemption, Refusal>,
    ) {
        let mut message = failed.message();
        let nomination = match &preemption {
            Ok(found) => {
                self.promise(&pod, &found.node);
                Nomination::Node(found.node.clone())
            }
            Err(Refusal::NotEligible(_)) => Nomination::Keep,
            Err(Refusal::NoVictims(_)) => {
                self.end_promise(&pod.uid);
                Nomination::Nothing
            }
        };
        if let Err(why) = &preemption
            && failed.nodes > 0
        {
            message = format!("{message} preemption: {}", why.message());
        }
        self.events.record(
            pod.pod.as_ref(),
            Level::Warning,
            "FailedScheduling",
            message.clone(),
        );
        self.statuses.write(Wish {
            pod: pod.clone(),
            message: Some(message),
            nomination,
        });
        if let Ok(found) = preemption {
            self.evict(pod, found);
        }
    }

    /// Asks the victims to leave, in the background.
    fn evict(&self, pod: Arc<PodInfo>, found: Preemption) {
        let (client, events) = (self.client.clone(), self.events.clone());
        let failures = self.failures.clone();
        tokio::spawn(async move {
            for victim in &found.victims {
                match report::evict(client.clone(), victim).await {
                    Ok(()) => {
                        let text = format!("Preempted by pod {} on node {}", pod.uid, found.node);
                        events.record(victim.pod.as_ref(), Level::Normal, "Preempted", text);
                    }
                    Err(error) => {
                        tracing::warn!(pod = %victim.key, %error, "preemption failed, will retry");
                        let _ = failures.send(Failure::Preemption(pod.uid.clone()));
                    }
                }
            }
        });
    }

    /// Keeps room on the node for the pod; lesser promises there are void, and who had them looks
    /// elsewhere.
    fn promise(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let before = self.cluster.promises.end(&pod.uid);
        let void = self.cluster.promises.make(pod, node);
        let moved = before.is_some_and(|before| before != node);
        if moved || !void.is_empty() {
            self.queue.wake(ON_POD_GONE, Instant::now());
        }
        for other in void {
            self.statuses.write(Wish {
                pod: other,
                message: None,
                nomination: Nomination::Nothing,
            });
        }
    }
}
