//! Node lifecycle: who is alive, which taints follow, and which pods a taint drives away.
//!
//! `plan.rs` decides. A node's lease or status is its heartbeat, timed by our clock and not by
//! the node's; each node has its own deadline and nothing ticks.
//! Always true: a node is declared silent only after the server itself was asked.

pub mod evict;
mod plan;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::plan::{Eviction, Health, eviction, health, silent, taints};
use super::{
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 8;
/// Silence after which a node is unknown.
const GRACE: Duration = Duration::from_secs(50);
/// Nodes of one zone are given up one by one, at most one in this time.
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);
const LEASES: &str = "kube-node-lease";
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// Judges nodes until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let nodes: Informer<Node> = informers.get();
    let leases: Informer<Lease> = informers.get();
    let controller = Nodes {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "node-controller"),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: informers.get(),
        heard: Mutex::default(),
        evictions: Mutex::default(),
    };
    Loop::new(controller, &nodes)
        .watch(&leases, |lease| {
            let of_node = lease.namespace().as_deref() == Some(LEASES);
            of_node
                .then(|| Key::new("", lease.name_any()))
                .into_iter()
                .collect()
        })
        .run(WORKERS, shutdown)
        .await
}

/// The marks that a heartbeat changes.
type Pulse = (Option<MicroTime>, Option<Time>);

/// The last heartbeat of a node.
struct Heard {
    /// As the caches show it, and as the server last said when it was asked.
    cached: Pulse,
    asked: Option<Pulse>,
    /// When either of them changed.
    at: Instant,
}

impl Heard {
    fn new(pulse: Pulse, now: Instant) -> Self {
        Self {
            cached: pulse,
            asked: None,
            at: now,
        }
    }

    /// How long the node has been silent, now that the caches show this.
    fn seen(&mut self, pulse: Pulse, now: Instant) -> Duration {
        if pulse != self.cached {
            (self.cached, self.at) = (pulse, now);
        }
        now - self.at
    }

    /// How long it has been silent, now that the server says this. What the caches show already is
    /// nothing new.
    fn asked(&mut self, pulse: Pulse, now: Instant) -> Duration {
        if pulse != self.cached && self.asked.as_ref() != Some(&pulse) {
            self.at = now;
        }
        self.asked = Some(pulse);
        now - self.at
    }
}

struct Nodes {
    client: Client,
    events: Recorder,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    /// By node.
    heard: Mutex<HashMap<String, Heard>>,
    /// When a zone may next lose a node's pods.
    evictions: Mutex<HashMap<String, Instant>>,
}

impl Controller for Nodes {
    const NAME: &'static str = "node-lifecycle-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(node) = self.nodes.get(key) else {
            self.with_heard(|heard| heard.remove(&key.name));
            return Ok(Next::Settled);
        };
        let mut silence = self.silence(&node);
        let mut current = node.clone();
        if silence >= GRACE && health(&node) != Health::Unknown {
            // The watches may be what is silent.
            let (live, pulse) = self.ask(&key.name).await?;
            silence = self.with_heard(|heard| match heard.get_mut(&key.name) {
                Some(heard) => heard.asked(pulse, Instant::now()),
                None => Duration::ZERO,
            });
            if silence >= GRACE
                && let Some(live) = live
                && let Some(updated) = self.declare_silent(live).await?
            {
                current = Arc::new(updated);
            }
        }
        let mut next = GRACE.checked_sub(silence).filter(|left| !left.is_zero());
        if health(&current) != Health::Ready {
            self.pods_not_ready(&key.name).await?;
        }
        let eviction = self.may_evict(&current);
        if eviction.is_err() {
            next = Some(EVICTION_INTERVAL.min(next.unwrap_or(EVICTION_INTERVAL)));
        }
        let eviction = eviction.unwrap_or(Eviction::Held);
        if let Some(taints) = taints(&current, eviction, Timestamp::now()) {
            let patch = json!({
                "metadata": {"resourceVersion": current.resource_version()},
                "spec": {"taints": taints},
            });
            Api::<Node>::all(self.client.clone())
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .or_gone()
                .doing(|| format!("taint node {key}"))?;
        }
        Ok(Next::after(next))
    }
}

fn pulse(lease: Option<&Lease>, node: Option<&Node>) -> Pulse {
    let renewed = lease
        .and_then(|lease| lease.spec.as_ref())
        .and_then(|spec| spec.renew_time.clone());
    let posted = node
        .and_then(|node| node.status.as_ref())
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready")
        .and_then(|condition| condition.last_heartbeat_time.clone());
    (renewed, posted)
}

impl Nodes {
    fn with_heard<T>(&self, with: impl FnOnce(&mut HashMap<String, Heard>) -> T) -> T {
        with(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long ago the node's last heartbeat was seen.
    fn silence(&self, node: &Node) -> Duration {
        let name = node.name_any();
        let lease = self.leases.get(&Key::new(LEASES, name.clone()));
        let (pulse, now) = (pulse(lease.as_deref(), Some(node)), Instant::now());
        self.with_heard(|heard| {
            let heard = heard.entry(name);
            let heard = heard.or_insert_with(|| Heard::new(pulse.clone(), now));
            heard.seen(pulse, now)
        })
    }

    /// What the server says now.
    async fn ask(&self, name: &str) -> Result<(Option<Node>, Pulse), Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let (node, lease) = tokio::join!(nodes.get_opt(name), leases.get_opt(name));
        let node = node.doing(|| format!("ask for node {name}"))?;
        let lease = lease.doing(|| format!("ask for the Lease of node {name}"))?;
        let pulse = pulse(lease.as_ref(), node.as_ref());
        Ok((node, pulse))
    }

    /// The node as written, or `None` if it is said to be silent already.
    async fn declare_silent(&self, mut live: Node) -> Result<Option<Node>, Error> {
        let name = live.name_any();
        let api: Api<Node> = Api::all(self.client.clone());
        let Some(status) = silent(&live, Timestamp::now()) else {
            return Ok(None);
        };
        live.status = Some(status);
        let written = api
            .replace_status(&name, &PostParams::default(), &live)
            .await
            .doing(|| format!("declare node {name} unknown"))?;
        let text = format!("Node {name} status is now: NodeNotReady");
        self.events
            .record(&written, Level::Normal, "NodeNotReady", text);
        Ok(Some(written))
    }

    /// Traffic must not go to pods of a node that is not ready.
    async fn pods_not_ready(&self, node: &str) -> Result<(), Error> {
        let ready = self.pods.list();
        for pod in ready
            .iter()
            .filter(|pod| pods::node_name(pod) == Some(node) && pods::is_ready(pod))
        {
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": Time(Timestamp::now()),
            }]}});
            let name = pod.name_any();
            let namespace = pod.namespace().unwrap_or_default();
            Api::<Pod>::namespaced(self.client.clone(), &namespace)
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch))
                .await
                .or_gone()
                .doing(|| format!("mark pod {namespace}/{name} as not ready"))?;
            self.events.record(
                pod.as_ref(),
                Level::Warning,
                "NodeNotReady",
                "Node is not ready",
            );
        }
        Ok(())
    }

    /// What the state of the node's zone allows; the error is "ask again later".
    fn may_evict(&self, node: &Node) -> Result<Eviction, Later> {
        if health(node) == Health::Ready {
            return Ok(Eviction::Allowed);
        }
        let zone = zone_of(node);
        let nodes = self.nodes.list();
        let ready = |node: &Node| health(node) == Health::Ready;
        let here = || nodes.iter().filter(|other| zone_of(other) == zone);
        let ready_here = here().filter(|other| ready(other)).count();
        let bad_here = here().count() - ready_here;
        let anywhere = nodes.iter().filter(|other| ready(other)).count();
        if eviction(ready_here, bad_here, anywhere) == Eviction::Held {
            return Err(Later);
        }
        let has_taint = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_ref())
            .into_iter()
            .flatten()
            .any(|taint| {
                taint.effect == "NoExecute" && taint.key.starts_with("node.kubernetes.io/")
            });
        if has_taint {
            return Ok(Eviction::Allowed);
        }
        let mut evictions = self
            .evictions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if evictions.get(&zone).is_some_and(|next| *next > now) {
            return Err(Later);
        }
        evictions.insert(zone, now + EVICTION_INTERVAL);
        Ok(Eviction::Allowed)
    }
}

/// The zone may not lose more pods at the moment.
#[derive(Debug)]
struct Later;

fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
    format!("{}/{}", label(REGION), label(ZONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_stalls_does_not_make_a_node_silent() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let pulse = |second| {
            let time = Timestamp::from_second(second).expect("a time");
            (Some(MicroTime(time)), None)
        };
        let silent = Duration::from_secs;
        let mut heard = Heard::new(pulse(0), begun);
        // The watch shows nothing more, but the server has heard of the node.
        assert_eq!(heard.seen(pulse(0), at(40)), silent(40));
        assert_eq!(heard.asked(pulse(35), at(40)), silent(0));
        // It is asked once more, and nothing has changed: the node is silent.
        assert_eq!(heard.seen(pulse(0), at(80)), silent(40));
        assert_eq!(heard.asked(pulse(35), at(80)), silent(40));
        // The watch goes on, and the node ends: the server says no more than is known.
        assert_eq!(heard.seen(pulse(90), at(90)), silent(0));
        assert_eq!(heard.seen(pulse(90), at(130)), silent(40));
        assert_eq!(heard.asked(pulse(90), at(130)), silent(40));
    }
}
