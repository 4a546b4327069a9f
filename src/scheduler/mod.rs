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

mod cluster;
mod cycle;
mod plugins;
mod pod;
mod preempt;
mod promises;
mod queue;
mod report;
mod statuses;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, Service},
};
use kube::{Client, ResourceExt, core::Selector};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    cluster::Cluster,
    plugins::{Plugins, volumes::Storage},
    pod::{PodInfo, Uid, nominated, uid_of},
    preempt::{Preemption, Refusal, preempt},
    queue::Queue,
    statuses::{Nomination, Statuses, Wish},
};
use crate::{
    events::{Level, Recorder},
    informer::{Change, Informer, Informers, Key},
    placement::volumes::{is_bound, phase},
    queue::LOOK_AGAIN,
    supervision::{caught, caught_here, pulse},
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
    let mut again = tokio::time::interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
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

    /// Compares everything: after changes were missed, and in case some were.
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
        let all = pods.list();
        let live: HashSet<Uid> = all.iter().map(|pod| uid_of(pod)).collect();
        let mut known = self.cluster.pods();
        known.extend(self.queue.pods());
        known.extend(self.cluster.promises.pods());
        for uid in known.iter().filter(|uid| !live.contains(*uid)) {
            self.pod_gone(uid);
        }
        for node in nodes.list() {
            self.cluster.set_node(node);
        }
        for pod in all {
            if !self.cluster.counts(&pod) {
                self.pod_applied(None, pod);
            }
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

    /// Pods that waited for a claim which has come, or has its volume now, are tried at once.
    fn claim_applied(&mut self, old: Option<&PersistentVolumeClaim>, new: &PersistentVolumeClaim) {
        let same = old.is_some_and(|old| {
            is_bound(old) == is_bound(new)
                && old.spec == new.spec
                && old.metadata.annotations == new.metadata.annotations
        });
        if same {
            return;
        }
        let key = Key::of(new);
        self.queue.wake_at_once(Plugins::VOLUMES, |pod| {
            pod.key.namespace == key.namespace
                && pod.claims.iter().any(|(name, _)| *name == key.name)
        });
    }

    fn pod_applied(&mut self, old: Option<&Pod>, new: Arc<Pod>) {
        let uid = uid_of(&new);
        let status = new.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_gone(&uid);
        }
        let spec = new.spec.as_ref();
        let node = spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|node| !node.is_empty());
        if let Some(node) = node {
            self.queue.remove(&uid);
            self.in_flight.remove(&uid);
            let elsewhere = self.cluster.promises.end(&uid);
            if elsewhere.is_some_and(|promised| promised != node) {
                self.queue.wake(ON_POD_GONE, Instant::now());
            }
            let changed = old.is_none_or(|old| {
                old.spec != new.spec || old.metadata.labels != new.metadata.labels
            });
            // What is known to be there already is not placed again for each status.
            if changed || !self.cluster.has_pod(&uid) || self.cluster.is_assumed(&uid) {
                self.cluster.set_pod(Arc::new(PodInfo::new(new)), &node);
                self.queue.wake(ON_POD_PLACED, Instant::now());
            } else {
                self.cluster.refresh_pod(&uid, new);
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
            self.queue.remove(&uid);
            self.end_promise(&uid);
            return;
        }
        if self.cluster.is_assumed(&uid) {
            return; // its binding is on the way
        }
        let changed = old.is_none_or(|old| {
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || old.metadata.annotations != new.metadata.annotations
        });
        let pod = Arc::new(PodInfo::new(new));
        self.follow_nomination(old, &pod);
        self.queue.add(pod, changed);
    }

    /// What a pod's status says of the node it was promised is known here before, unless the status is
    /// of before a restart, or somebody else has changed it.
    fn follow_nomination(&mut self, old: Option<&Pod>, pod: &Arc<PodInfo>) {
        if self.statuses.is_pending(&pod.uid) {
            return;
        }
        let Some(old) = old else {
            return self.cluster.promises.take_over(pod);
        };
        match pod.nominated() {
            now if now == nominated(old) => {}
            None => self.end_promise(&pod.uid),
            Some(node) if self.cluster.promises.of(&pod.uid) == Some(node) => {}
            Some(_) => {
                self.end_promise(&pod.uid);
                self.cluster.promises.take_over(pod);
            }
        }
    }

    fn pod_gone(&mut self, uid: &Uid) {
        self.queue.remove(uid);
        if let Some(binding) = self.in_flight.remove(uid) {
            binding.cancel();
        }
        self.statuses.forget(uid);
        let was_there = self.cluster.remove_pod(uid).is_some();
        let was_promised = self.cluster.promises.end(uid).is_some();
        if was_there || was_promised {
            self.queue.wake(ON_POD_GONE, Instant::now());
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A scheduler whose API answers nothing.
    fn scheduler() -> (Scheduler, mpsc::UnboundedReceiver<Failure>) {
        let refuse = |_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no server"))
        };
        let client = Client::new(tower::service_fn(refuse), "default");
        let (failures, failed) = mpsc::unbounded_channel();
        let informers = Informers::new(client);
        let mut scheduler = Scheduler::new(&informers, Config::default(), failures);
        let node = cluster::tests::node("a", json!({}), json!({}));
        scheduler.node_applied(None, node);
        (scheduler, failed)
    }

    fn pod(uid: &str, cpu: &str, priority: i32, node: &str, status: Value) -> Arc<Pod> {
        let name = uid.split('.').next();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "default", "uid": uid},
                "spec": {"priority": priority, "nodeName": node, "containers": [
                    {"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
                "status": status,
            }))
            .expect("a pod"),
        )
    }

    fn uid(text: &str) -> Uid {
        text.into()
    }

    #[tokio::test]
    async fn the_end_of_a_promise_wakes_those_that_had_no_room() {
        let (mut scheduler, _failed) = scheduler();
        // Promised, and nobody on the node: only the promise is in the way.
        let high = Arc::new(PodInfo::new(pod("high", "4", 10, "", json!({}))));
        scheduler.cluster.promises.make(&high, "a");
        scheduler.pod_applied(None, pod("low", "1", 1, "", json!({})));
        scheduler.attempt();
        assert!(!scheduler.cluster.is_assumed("low"));
        scheduler.pod_gone(&uid("high"));
        let deadline = scheduler.queue.deadline().expect("it is to be tried again");
        assert!(deadline < Instant::now() + std::time::Duration::from_secs(10));
    }

    #[tokio::test]
    async fn what_nobody_told_is_found_by_comparing() {
        let (mut scheduler, _failed) = scheduler();
        for missed in ["gone", "grown"] {
            scheduler.pod_applied(None, pod(missed, "1", 1, "a", json!({})));
        }
        let (pods, nodes) = (Informer::by_hand(), Informer::by_hand());
        nodes.slip_in((*cluster::tests::node("a", json!({}), json!({}))).clone());
        let version = |mut pod: Arc<Pod>, version: &str| {
            Arc::make_mut(&mut pod).metadata.resource_version = Some(version.into());
            (*pod).clone()
        };
        pods.slip_in(version(pod("grown", "2", 1, "a", json!({})), "2"));
        pods.slip_in(version(pod("new", "500m", 1, "a", json!({})), "3"));
        pods.slip_in(version(pod("waits", "1", 1, "", json!({})), "4"));
        scheduler.resync(&pods, &nodes);
        let used = |scheduler: &Scheduler| scheduler.cluster.nodes[0].requested.milli_cpu;
        assert_eq!(used(&scheduler), 2500);
        assert!(scheduler.queue.has_active());
        // What is as it should be is left alone.
        let before = scheduler.cluster.nodes[0].pods[&uid("new")].clone();
        scheduler.resync(&pods, &nodes);
        assert!(Arc::ptr_eq(
            &before,
            &scheduler.cluster.nodes[0].pods[&uid("new")]
        ));
        assert_eq!(used(&scheduler), 2500);
    }

    #[tokio::test]
    async fn promises_outlive_a_restart() {
        let (mut scheduler, _failed) = scheduler();
        let promised = json!({"nominatedNodeName": "a"});
        scheduler.pod_applied(None, pod("high", "3", 10, "", promised.clone()));
        assert_eq!(scheduler.cluster.promises.of("high"), Some("a"));
        // Taken back by somebody else.
        let old = pod("high", "3", 10, "", promised);
        scheduler.pod_applied(Some(&old), pod("high", "3", 10, "", json!({})));
        assert_eq!(scheduler.cluster.promises.of("high"), None);
    }

    #[tokio::test]
    async fn a_pod_of_the_same_name_is_another_pod() {
        let (mut scheduler, _failed) = scheduler();
        scheduler.pod_applied(None, pod("p.1", "3", 1, "", json!({})));
        scheduler.attempt();
        assert!(scheduler.cluster.is_assumed("p.1"));
        // Deleted and made again while its binding is on the way.
        scheduler.pod_gone(&uid("p.1"));
        scheduler.pod_applied(None, pod("p.2", "3", 1, "", json!({})));
        scheduler.failed(&Failure::Binding(uid("p.1")));
        scheduler.attempt();
        assert!(scheduler.cluster.is_assumed("p.2"));
    }

    #[tokio::test]
    async fn a_preemption_that_failed_is_tried_again() {
        let (mut scheduler, mut failed) = scheduler();
        scheduler.pod_applied(None, pod("victim", "3", 1, "a", json!({})));
        scheduler.pod_applied(None, pod("high", "4", 10, "", json!({})));
        scheduler.attempt();
        let patience = Instant::now() + std::time::Duration::from_secs(100);
        assert!(scheduler.queue.deadline().is_some_and(|at| at > patience));
        // The API answers nothing, so the victim was not asked to leave.
        let failure = failed.recv().await.expect("a failure");
        assert_eq!(failure, Failure::Preemption(uid("high")));
        scheduler.failed(&failure);
        let soon = Instant::now() + std::time::Duration::from_secs(10);
        assert!(scheduler.queue.deadline().is_some_and(|at| at < soon));
        assert_eq!(scheduler.cluster.promises.of("high"), Some("a"));
    }
}
