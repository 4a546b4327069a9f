//! What the node does before something of it is used up: it says so in its conditions, takes back
//! what nobody uses, and evicts pods, one at a time.
//!
//! Owns the decision; the pods' workers carry an eviction out, `image_gc` removes images. Called by
//! the kubelet's `run`.
//! Always true:
//! - A look every ten seconds costs a few reads, and every third is enough where no pod runs; pods' disk use is measured only of pods that have
//!   a limit, or when the disk is short.
//! - At most one pod goes for a shortage, and it is gone before the next look.
//! - Pods that the node or the cluster needs are never evicted.

mod admit;
mod decide;
mod local;
mod message;
mod question;
mod rank;
mod threshold;
mod usage;

pub use self::{
    admit::refusal,
    decide::Pressures,
    message::REASON,
    threshold::{Settings, Signal, Threshold, thresholds},
    usage::Dirs,
};

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::ResourceExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::{
    decide::{Observations, Observed, State},
    local::LocalUsage,
    message::{Told, Usages},
    question::Question,
    rank::Candidate,
    threshold::Resource,
    usage::Places,
};
use super::{
    Pods,
    events::{Level, Recorder},
    image_gc::ImageGc,
    node, pod,
    stats::Space,
};
use crate::{
    runtime::{MemoryReadings, MemoryStalls, PodState, Runtime},
    ticks::Ticks,
};

/// How often the node is looked at, and pods with limits are measured.
const EVERY: Duration = Duration::from_secs(10);
/// So many looks are left out at a node that is short of nothing and runs no pod: nobody could be evicted.
const QUIET: u32 = 5;
/// A disk that takes longer to say how full it is hangs.
const DISK_WITHIN: Duration = Duration::from_secs(5);
/// How long an evicted pod may take to be gone before the next look.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// What a pod gets to end that is over a limit, or in the way of all others.
const GRACE: Duration = Duration::from_secs(1);
/// A pod whose files take long to count is counted less often: this many times as long as it took.
const REST: u32 = 20;

/// For the pods' table to pass on.
#[derive(Debug)]
pub enum Order {
    Evict {
        uid: String,
        eviction: Eviction,
    },
    /// Give back the files of a pod's containers that have ended and run anew since.
    RemoveDead {
        uid: String,
    },
}

#[derive(Debug)]
pub struct Eviction {
    pub message: String,
    pub cause: Cause,
    pub grace: Duration,
    /// Dropped when nothing of the pod is left.
    pub done: oneshot::Sender<()>,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The node is short of something; the pod's status says so in a condition.
    Node,
    /// The pod is over a limit of its own.
    Pod,
}

/// What the manager works with.
pub struct Parts {
    pub runtime: Runtime,
    pub images: ImageGc,
    pub pods: Arc<dyn Pods>,
    pub events: Recorder,
    pub node: String,
    pub dirs: Dirs,
    /// What all pods together may use of the memory.
    pub pods_memory: u64,
    pub orders: mpsc::Sender<Order>,
    pub pressures: watch::Sender<Pressures>,
}

/// Looks at the node until told to stop.
pub async fn run(settings: Settings, parts: Parts, shutdown: CancellationToken) {
    let mut manager = Manager {
        settings,
        parts,
        state: State::default(),
        rest: HashMap::new(),
        disks: Question::default(),
    };
    let mut stalls = MemoryStalls::watch();
    let mut ticks = Ticks::new(EVERY);
    let mut passed_over = 0;
    loop {
        tokio::select! {
            () = ticks.tick() => if manager.is_quiet() && passed_over < QUIET {
                passed_over += 1;
                continue;
            },
            () = stalls.next() => {}
            () = shutdown.cancelled() => return,
        }
        passed_over = 0;
        // As long as somebody goes, there may be more who must.
        loop {
            let evicted = manager.look().await;
            if evicted.is_empty() {
                break;
            }
            let gone = futures::future::join_all(evicted);
            tokio::select! {
                _ = tokio::time::timeout(GONE_WITHIN, gone) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// How the manager learns that an evicted pod is gone.
type Gone = oneshot::Receiver<()>;

/// Of the node's disk and of that of images.
type Spaces = (io::Result<Space>, io::Result<Space>);

/// A pod that runs here.
struct Active {
    pod: Arc<Pod>,
    state: PodState,
}

struct Manager {
    settings: Settings,
    parts: Parts,
    state: State,
    /// Pods that are not to be measured before.
    rest: HashMap<String, Instant>,
    disks: Question<Spaces>,
}

impl Manager {
    fn is_quiet(&self) -> bool {
        *self.parts.pressures.borrow() == Pressures::default() && self.parts.pods.pods().is_empty()
    }

    /// One look at the node, and what must follow; returns the pods that go.
    async fn look(&mut self) -> Vec<Gone> {
        let observations = self.observe().await;
        let decision = self
            .state
            .observe(&self.settings, &observations, Instant::now());
        let changed = self.parts.pressures.send_if_modified(|pressures| {
            std::mem::replace(pressures, decision.pressures) != decision.pressures
        });
        if changed {
            tracing::warn!(now = ?decision.pressures, "what the node is short of has changed");
        }
        let over = self.evict_over_limits().await;
        if !over.is_empty() {
            return over;
        }
        let Some(threshold) = decision.due.first().copied() else {
            return Vec::new();
        };
        let resource = threshold.signal.resource();
        let message = format!("Attempting to reclaim {}", resource.name());
        self.tell_node(Level::Warning, "EvictionThresholdMet", message);
        if self.reclaim(threshold.signal).await {
            return Vec::new();
        }
        let active = self.active().await;
        let mut candidates = self.candidates(&active, resource).await;
        rank::rank(resource, &mut candidates);
        let first = candidates
            .into_iter()
            .find(|candidate| !rank::is_critical(&candidate.pod));
        let Some(Candidate { pod, .. }) = first else {
            let signal = resource.name();
            tracing::debug!(signal, "the node is short, and no pod could be evicted");
            return Vec::new();
        };
        let usages = match active.iter().find(|one| one.pod.uid() == pod.uid()) {
            Some(one) => self.usages(one, resource).await,
            None => Usages::new(),
        };
        let told = message::node_is_low(resource, &pod, &usages, &decision.due, &observations);
        let grace = grace(threshold.grace.is_some(), &pod, self.settings.max_pod_grace);
        self.evict(&pod, told, Cause::Node, grace).await
    }

    /// What cannot be read is left out.
    async fn observe(&mut self) -> Observations {
        let runtime = &self.parts.runtime;
        let mut found = Observations::new();
        match runtime.memory().await {
            Ok(readings) => found.extend(self.of_memory(readings)),
            Err(error) => tracing::warn!(%error, "the machine's memory cannot be read"),
        }
        if let Some((nodefs, imagefs)) = self.disks().await {
            let signals = [
                (nodefs, Signal::NodefsBytes, Signal::NodefsInodes),
                (imagefs, Signal::ImagefsBytes, Signal::ImagefsInodes),
            ];
            for (space, bytes, inodes) in signals {
                match space {
                    Ok(space) => found.extend(of_disk(space, bytes, inodes)),
                    Err(error) => tracing::warn!(%error, "a disk cannot be measured"),
                }
            }
        }
        if let Ok((running, capacity)) = node::processes() {
            let observed = Observed {
                available: capacity.saturating_sub(running),
                capacity,
            };
            found.insert(Signal::Pids, observed);
        }
        found
    }

    /// The node's disk and that of images. One that hangs holds up nothing else: it is left out.
    async fn disks(&mut self) -> Option<Spaces> {
        let dirs = self.parts.dirs.clone();
        let measure = move || (Space::of(&dirs.state), Space::of(&dirs.images));
        let spaces = self.disks.ask(measure, DISK_WITHIN).await;
        if spaces.is_none() {
            tracing::warn!("a disk did not answer within {DISK_WITHIN:?}");
        }
        spaces
    }

    fn of_memory(&self, readings: MemoryReadings) -> Vec<(Signal, Observed)> {
        let mut found = Vec::new();
        match readings.machine {
            Ok(memory) => {
                let observed = Observed {
                    available: memory.available_bytes(),
                    capacity: memory.total_bytes,
                };
                found.push((Signal::Memory, observed));
            }
            Err(error) => tracing::warn!(%error, "the machine's memory cannot be read"),
        }
        if let Ok(working_set) = readings.pods_working_set {
            let capacity = self.parts.pods_memory;
            let observed = Observed {
                available: capacity.saturating_sub(working_set),
                capacity,
            };
            found.push((Signal::AllocatableMemory, observed));
        }
        found
    }

    /// Pods that have something on this node and have not ended.
    async fn active(&self) -> Vec<Active> {
        let states = self.parts.runtime.pods().await;
        let mut states: HashMap<String, PodState> = states
            .into_iter()
            .map(|state| (state.config.identity.uid.clone(), state))
            .collect();
        let pods = self.parts.pods.pods().into_iter();
        pods.filter(|pod| !pod::is_over(pod))
            .filter_map(|pod| {
                let state = states.remove(&pod.uid()?)?;
                Some(Active { pod, state })
            })
            .collect()
    }

    /// Pods that use more of the disk than they or their volumes may.
    async fn evict_over_limits(&mut self) -> Vec<Gone> {
        let any = |pod: &Arc<Pod>| local::has_limits(pod);
        if !self.parts.pods.pods().iter().any(any) {
            self.rest.clear();
            return Vec::new();
        }
        let now = Instant::now();
        self.rest.retain(|_, until| *until > now);
        let mut gone = Vec::new();
        for active in self.active().await {
            let uid = active.pod.uid().unwrap_or_default();
            if !local::has_limits(&active.pod) || self.rest.contains_key(&uid) {
                continue;
            }
            let began = Instant::now();
            let Some(usage) = self.measure(&active).await else {
                continue;
            };
            self.rest
                .insert(uid, Instant::now() + began.elapsed() * REST);
            if rank::is_critical(&active.pod) {
                continue;
            }
            if let Some(message) = local::violation(&active.pod, &usage) {
                let told = Told {
                    message,
                    ..Told::default()
                };
                gone.extend(self.evict(&active.pod, told, Cause::Pod, GRACE).await);
            }
        }
        gone
    }

    async fn measure(&self, active: &Active) -> Option<LocalUsage> {
        let Parts { runtime, dirs, .. } = &self.parts;
        let places = Places::of(&active.pod, &active.state, runtime, dirs);
        blocking(move || places.measure()).await
    }

    async fn candidates(&self, active: &[Active], resource: Resource) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for one in active {
            let uid = &one.state.config.identity.uid;
            let usage = match resource {
                Resource::Memory | Resource::Pids => {
                    let usage = self.parts.runtime.pod_usage(uid).await.ok();
                    usage.map(|usage| match resource {
                        Resource::Pids => usage.pids,
                        _ => usage.memory_working_set_bytes,
                    })
                }
                Resource::EphemeralStorage => self.measure(one).await.map(|usage| usage.total),
                Resource::Inodes => self.measure(one).await.map(|usage| usage.inodes),
            };
            candidates.push(Candidate {
                pod: one.pod.clone(),
                usage,
            });
        }
        candidates
    }

    /// What each container of the pod uses, where there are requests to compare it with.
    async fn usages(&self, active: &Active, resource: Resource) -> Usages {
        match resource {
            Resource::Memory => {
                let mut usages = Usages::new();
                for container in &active.state.containers {
                    if let Ok(usage) = self.parts.runtime.container_usage(&container.id).await {
                        usages.insert(container.name.clone(), usage.memory_working_set_bytes);
                    }
                }
                usages
            }
            Resource::EphemeralStorage => {
                let usage = self.measure(active).await.unwrap_or_default();
                usage.containers
            }
            Resource::Inodes | Resource::Pids => Usages::new(),
        }
    }

    /// Takes back what no pod needs; true if that was enough.
    async fn reclaim(&mut self, signal: Signal) -> bool {
        let of_images = match signal {
            Signal::ImagefsBytes | Signal::ImagefsInodes => true,
            Signal::NodefsBytes | Signal::NodefsInodes => false,
            Signal::Memory | Signal::AllocatableMemory | Signal::Pids => return false,
        };
        let one_disk = self.parts.dirs.is_one_disk();
        if !of_images || one_disk {
            for active in self.active().await {
                let uid = active.pod.uid().unwrap_or_default();
                self.send(Order::RemoveDead { uid }).await;
            }
        }
        if of_images || one_disk {
            self.parts.images.remove_unused().await;
        }
        let observations = self.observe().await;
        decide::is_relieved(&self.settings, &observations)
    }

    async fn evict(&self, pod: &Pod, told: Told, cause: Cause, grace: Duration) -> Vec<Gone> {
        let Told {
            message,
            annotations,
        } = told;
        tracing::warn!(pod = pod.name_any(), message, "evicting a pod");
        let events = &self.parts.events;
        events.annotated(pod, Level::Warning, REASON, &message, annotations);
        let (done, gone) = oneshot::channel();
        let eviction = Eviction {
            message,
            cause,
            grace,
            done,
        };
        let uid = pod.uid().unwrap_or_default();
        self.send(Order::Evict { uid, eviction }).await;
        vec![gone]
    }

    async fn send(&self, order: Order) {
        // The table ends only with the kubelet.
        let _ = self.parts.orders.send(order).await;
    }

    fn tell_node(&self, level: Level, reason: &'static str, message: String) {
        let node = node_ref(&self.parts.node);
        self.parts.events.about(node, level, reason, message);
    }
}

/// How events name the node.
pub fn node_ref(node: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(node.into()),
        uid: Some(node.into()),
        ..ObjectReference::default()
    }
}

/// Some filesystems count no inodes; then there is nothing to run short of.
fn of_disk(space: Space, bytes: Signal, inodes: Signal) -> Observations {
    let all = [
        (bytes, space.available_bytes, space.capacity_bytes),
        (inodes, space.inodes_free, space.inodes),
    ];
    all.into_iter()
        .filter(|(.., capacity)| *capacity > 0)
        .map(|(signal, available, capacity)| {
            let observed = Observed {
                available,
                capacity,
            };
            (signal, observed)
        })
        .collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!(%error, "measuring failed"))
        .ok()
}

/// How long a pod may take to end that is evicted from a node under pressure. `soft`: of a threshold
/// that has a grace period of its own.
fn grace(soft: bool, pod: &Pod, most: Duration) -> Duration {
    match soft {
        false => GRACE,
        true => pod::grace(pod).min(most),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn how_long_an_evicted_pod_may_take() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [], "terminationGracePeriodSeconds": 20},
        }))
        .unwrap();
        for (soft, most, want) in [(false, 100, 1), (true, 100, 20), (true, 5, 5), (true, 0, 0)] {
            let got = grace(soft, &pod, Duration::from_secs(most));
            assert_eq!(got.as_secs(), want, "soft: {soft}, most: {most}");
        }
    }
}
