//! The scheduler: gives every pod without a node the best one.
//!
//! One task owns the queue and the cluster picture and tries one pod after the other; API calls
//! run beside it. It reacts to watch events and deadlines and knows no ticks.
//! Start at [`run`]; `cycle.rs` is one attempt, `plugins/` are the rules.
//! Always true: a pod counts on its node from the moment it is chosen (assumed), so that two pods
//! never get the same room.

mod cluster;
mod cycle;
mod plugins;
mod pod;
mod preempt;
mod queue;
mod report;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Namespace, Node, Pod, ReplicationController, Service},
};
use kube::{Client, ResourceExt, core::Selector};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{cluster::Cluster, plugins::Plugins, pod::PodInfo, preempt::preempt, queue::Queue};
use crate::{
    events::{Level, Recorder},
    informer::{Change, Informer, Informers, Key},
    supervision::{caught, caught_here},
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
    let synced = async {
        nodes.synced().await;
        pods.synced().await;
        scheduler.namespaces.synced().await;
    };
    if shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    scheduler.resync(&pods, &nodes);
    loop {
        let deadline = scheduler.queue.deadline();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            change = node_changes.next() => match change {
                Some(Change::Applied { old, new }) => scheduler.node_applied(old.as_deref(), new),
                Some(Change::Deleted(node)) => scheduler.cluster.remove_node(&node.name_any()),
                Some(Change::Resync) => scheduler.resync(&pods, &nodes),
                None => return,
            },
            change = pod_changes.next() => match change {
                Some(Change::Applied { old, new }) => scheduler.pod_applied(old.as_deref(), new),
                Some(Change::Deleted(pod)) => scheduler.pod_gone(&Key::of(pod.as_ref())),
                Some(Change::Resync) => scheduler.resync(&pods, &nodes),
                None => return,
            },
            Some(key) = failed.recv() => scheduler.binding_failed(&key),
            () = std::future::ready(()), if scheduler.queue.has_active() => scheduler.attempt(),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                scheduler.queue.promote(Instant::now());
            }
        }
    }
}

struct Scheduler {
    client: Client,
    events: Recorder,
    config: Config,
    queue: Queue,
    cluster: Cluster,
    /// Where the next search begins.
    start: usize,
    /// Pods whose binding failed.
    failures: mpsc::UnboundedSender<Key>,
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    sets: Informer<ReplicaSet>,
    controllers: Informer<ReplicationController>,
}

/// What the departure of a pod can make possible.
const ON_POD_GONE: Plugins = Plugins::FIT
    .and(Plugins::PORTS)
    .and(Plugins::SPREAD)
    .and(Plugins::INTERPOD);
/// What the arrival or new labels of a pod can make possible.
const ON_POD_PLACED: Plugins = Plugins::SPREAD.and(Plugins::INTERPOD);

impl Scheduler {
    fn new(informers: &Informers, config: Config, failures: mpsc::UnboundedSender<Key>) -> Self {
        Self {
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
        }
    }

    /// Compares everything after changes were missed.
    fn resync(&mut self, pods: &Informer<Pod>, nodes: &Informer<Node>) {
        let names: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .map(|node| node.name.clone())
            .filter(|name| nodes.get(&Key::new("", name)).is_none())
            .collect();
        for name in names {
            self.cluster.remove_node(&name);
        }
        for key in self.cluster.pod_keys() {
            if pods.get(&key).is_none() {
                self.cluster.remove_pod(&key);
            }
        }
        for key in self.queue.keys() {
            if pods.get(&key).is_none() {
                self.queue.remove(&key);
            }
        }
        for node in nodes.list() {
            self.cluster.set_node(node);
        }
        for pod in pods.list() {
            self.pod_applied(None, pod);
        }
        self.queue.wake(Plugins::ALL, Instant::now());
    }

    fn node_applied(&mut self, old: Option<&Node>, new: Arc<Node>) {
        let helps = old.is_none_or(|old| matters(old, &new));
        self.cluster.set_node(new);
        if helps {
            self.queue.wake(Plugins::ALL, Instant::now());
        }
    }

    fn pod_applied(&mut self, old: Option<&Pod>, new: Arc<Pod>) {
        let key = Key::of(new.as_ref());
        let status = new.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_gone(&key);
        }
        let spec = new.spec.as_ref();
        let node = spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|node| !node.is_empty());
        if let Some(node) = node {
            self.queue.remove(&key);
            let changed = old.is_none_or(|old| {
                old.spec != new.spec || old.metadata.labels != new.metadata.labels
            });
            // What is known to be there already is not placed again for each status.
            if changed || !self.cluster.has_pod(&key) || self.cluster.is_assumed(&key) {
                self.cluster.set_pod(Arc::new(PodInfo::new(new)), &node);
                self.queue.wake(ON_POD_PLACED, Instant::now());
            } else {
                self.cluster.refresh_pod(&key, new);
            }
            return;
        }
        let ours = spec
            .and_then(|spec| spec.scheduler_name.as_deref())
            .unwrap_or("default-scheduler")
            == self.config.scheduler_name;
        let gated = spec
            .and_then(|spec| spec.scheduling_gates.as_ref())
            .is_some_and(|gates| !gates.is_empty());
        if !ours || gated || new.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&key);
            self.cluster.nominated.remove(&key);
            return;
        }
        if self.cluster.is_assumed(&key) {
            return; // its binding is on the way
        }
        let changed = old.is_none_or(|old| {
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || old.metadata.annotations != new.metadata.annotations
        });
        self.queue.add(Arc::new(PodInfo::new(new)), changed);
    }

    fn pod_gone(&mut self, key: &Key) {
        self.queue.remove(key);
        if self.cluster.remove_pod(key).is_some() {
            self.queue.wake(ON_POD_GONE, Instant::now());
        }
    }

    fn binding_failed(&mut self, key: &Key) {
        if self.cluster.is_assumed(key) {
            self.cluster.remove_pod(key);
            let now = Instant::now();
            self.queue.failed(key, now);
            self.queue.wake(ON_POD_GONE, now);
        }
    }

    /// Tries the most urgent pod. One that cannot even be tried must not keep others from it.
    fn attempt(&mut self) {
        let Some(pod) = self.queue.pop() else {
            return;
        };
        let key = pod.key.clone();
        if let Err(panic) = caught_here(|| self.try_pod(pod)) {
            tracing::error!(pod = %key, %panic, "scheduling failed, will retry");
            self.queue.failed(&key, Instant::now());
        }
    }

    fn try_pod(&mut self, pod: Arc<PodInfo>) {
        let defaults = self.spread_defaults(&pod);
        let namespaces = self.namespaces.clone();
        let labels = move |name: &str| -> Option<BTreeMap<String, String>> {
            let namespace = namespaces.get(&Key::new("", name))?;
            Some(namespace.labels().clone())
        };
        match cycle::schedule(&pod, &self.cluster, &labels, defaults, &mut self.start) {
            Ok(node) => self.bind(pod, node),
            Err(failed) => {
                let preemption = preempt(&pod, &mut self.cluster, &failed, &labels);
                self.queue
                    .unschedulable(&pod.key, failed.plugins(), Instant::now());
                self.report_failure(pod, &failed, preemption);
            }
        }
    }

    /// Counts the pod on the node at once and binds it in the background.
    fn bind(&mut self, pod: Arc<PodInfo>, node: String) {
        self.cluster.assume(pod.clone(), &node);
        let (client, failures) = (self.client.clone(), self.failures.clone());
        let events = self.events.clone();
        tokio::spawn(async move {
            let bound = caught(report::bind(client, &pod, &node)).await;
            match bound.map_err(|panic| panic.to_string()) {
                Ok(Ok(())) => {
                    let text = format!("Successfully assigned {} to {node}", pod.key);
                    events.record(pod.pod.as_ref(), Level::Normal, "Scheduled", text);
                }
                Ok(Err(error)) => {
                    tracing::warn!(pod = %pod.key, node, %error, "binding failed, will retry");
                    let _ = failures.send(pod.key.clone());
                }
                Err(panic) => {
                    tracing::error!(pod = %pod.key, node, panic, "binding failed, will retry");
                    let _ = failures.send(pod.key.clone());
                }
            }
        });
    }

    fn report_failure(
        &mut self,
        pod: Arc<PodInfo>,
        failed: &cycle::Unschedulable,
        preemption: Result<preempt::Preemption, String>,
    ) {
        let mut message = failed.message();
        let found = match preemption {
            Ok(found) => {
                self.promise(&pod, &found.node);
                Some(found)
            }
            Err(_) if failed.nodes == 0 => None,
            Err(why) => {
                message = format!("{message} preemption: {why}");
                None
            }
        };
        let (client, events) = (self.client.clone(), self.events.clone());
        tokio::spawn(async move {
            let node = found.as_ref().map(|found| found.node.as_str());
            let written =
                report::unscheduled(client.clone(), &pod, "Unschedulable", &message, node).await;
            if let Err(error) = written {
                tracing::debug!(pod = %pod.key, %error, "condition not written");
            }
            events.record(
                pod.pod.as_ref(),
                Level::Warning,
                "FailedScheduling",
                message,
            );
            let Some(found) = found else { return };
            for victim in &found.victims {
                match report::evict(client.clone(), victim).await {
                    Ok(()) => {
                        let uid = pod.pod.uid().unwrap_or_default();
                        let text = format!("Preempted by pod {uid} on node {}", found.node);
                        events.record(victim.pod.as_ref(), Level::Normal, "Preempted", text);
                    }
                    Err(error) => {
                        tracing::warn!(pod = %victim.key, %error, "preemption failed");
                    }
                }
            }
        });
    }

    /// Keeps room on the node for the pod; lesser promises there are void.
    fn promise(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.cluster
            .nominated
            .retain(|_, (name, other)| name != node || other.priority >= pod.priority);
        self.cluster
            .nominated
            .insert(pod.key.clone(), (node.to_owned(), pod.clone()));
    }

    /// Selects the pods of the same service and owner, over which a pod spreads by default.
    fn spread_defaults(&self, pod: &PodInfo) -> Option<Selector> {
        if self.cluster.nodes.len() < 2 {
            return None;
        }
        let mut selector = Selector::default();
        for service in self.services.list_in(&pod.key.namespace) {
            let wanted = service.spec.as_ref().and_then(|spec| spec.selector.clone());
            let wanted = wanted.filter(|wanted| !wanted.is_empty());
            if let Some(wanted) = wanted
                && wanted
                    .iter()
                    .all(|(key, value)| pod.pod.labels().get(key) == Some(value))
            {
                selector.extend(wanted.into_iter().collect::<Selector>());
            }
        }
        if let Some(of_owner) = self.owner_selector(pod) {
            selector.extend(of_owner);
        }
        (!selector.selects_all()).then_some(selector)
    }

    fn owner_selector(&self, pod: &PodInfo) -> Option<Selector> {
        let owners = pod.pod.owner_references();
        let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
        let key = Key::new(pod.key.namespace.clone(), owner.name.clone());
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let selector = self.sets.get(&key)?.spec.selector.clone();
                selector.try_into().ok()
            }
            "ReplicationController" => {
                let owner = self.controllers.get(&key)?;
                let selector = owner.spec.as_ref()?.selector.clone()?;
                Some(selector.into_iter().collect())
            }
            _ => None,
        }
    }
}

/// True if a node's change may make room or lift an objection. Heartbeats do not.
fn matters(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| {
        let status = node.status.as_ref();
        status.and_then(|status| status.allocatable.clone())
    };
    let spec = |node: &Node| {
        let spec = node.spec.clone().unwrap_or_default();
        (spec.taints, spec.unschedulable)
    };
    old.metadata.labels != new.metadata.labels
        || spec(old) != spec(new)
        || allocatable(old) != allocatable(new)
}
