//! Gives each node its range of pod addresses: a part of the cluster's range of each family.
//!
//! `plan.rs` finds a free part. A range that a node has, whoever gave it, is never changed.
//! Always true: no two nodes get ranges that overlap, though the cache may not show the last one yet.

mod plan;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub use self::plan::ClusterRange;
use super::{
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    addresses::family::{OfFamily, PerFamily},
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
    placement::WANTED_RANGE,
};

/// What there is to give.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Of the cluster: nodes get parts of them. The primary family first.
    pub cluster: Vec<ClusterRange>,
    /// The node beside the control plane and its ranges, which it uses before it is registered.
    pub first: (String, Vec<IpNet>),
}

/// A node that got none is looked at again after this: another may have gone.
const EXHAUSTED: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs until `shutdown`.
pub async fn run(
    informers: Informers,
    ranges: Ranges,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let nodes: Informer<Node> = informers.get();
    let controller = Allocator {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "node-ipam-controller"),
        nodes: nodes.clone(),
        ranges,
        given: Mutex::default(),
    };
    // One at a time: what one gets, the next one cannot have.
    Loop::new(controller, &nodes).run(1, shutdown).await
}

/// The ranges that a node has.
fn held(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let ranges = spec.and_then(|spec| spec.pod_cidrs.as_deref());
    let ranges = ranges.unwrap_or_default().iter();
    ranges.filter_map(|range| range.parse().ok()).collect()
}

/// The ranges that it asks to get again.
fn wanted(node: &Node) -> Option<PerFamily<IpNet>> {
    node.annotations().get(WANTED_RANGE)?.parse().ok()
}

/// What was given to nodes and the cache may not show yet.
#[derive(Default)]
struct Given {
    by_node: HashMap<String, Vec<IpNet>>,
    /// The last of each of the cluster's ranges.
    last: Vec<Option<IpNet>>,
}

struct Allocator {
    client: Client,
    events: Recorder,
    nodes: Informer<Node>,
    ranges: Ranges,
    given: Mutex<Given>,
}

impl Controller for Allocator {
    const NAME: &'static str = "node-ipam-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let node = self.nodes.get(key);
        let Some(node) = node.filter(|node| !pods::is_terminating(&**node)) else {
            self.given().by_node.remove(&key.name);
            return Ok(Next::Settled);
        };
        if node
            .spec
            .as_ref()
            .is_some_and(|spec| spec.pod_cidr.is_some())
        {
            self.given().by_node.remove(&key.name);
            return Ok(Next::Settled);
        }
        let Some(ranges) = self.choose(&key.name, wanted(&node)) else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.events
                .record(&*node, Level::Normal, "CIDRNotAvailable", message);
            return Ok(Next::After(EXHAUSTED));
        };
        let ranges: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
        let patch = json!({
            // Somebody may have given it one meanwhile: then this is refused.
            "metadata": {"resourceVersion": node.resource_version(), "uid": node.uid()},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        });
        Api::<Node>::all(self.client.clone())
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .or_gone()
            .doing(|| format!("give node {} its range of pod addresses", key.name))?;
        Ok(Next::Settled)
    }
}

impl Allocator {
    fn given(&self) -> std::sync::MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free part of each range; the same again for a node that was not told of it yet.
    fn choose(&self, name: &str, wanted: Option<PerFamily<IpNet>>) -> Option<Vec<IpNet>> {
        let (first, its_own) = &self.ranges.first;
        if name == first {
            return Some(its_own.clone());
        }
        let nodes = self.nodes.list();
        let mut given = self.given();
        if let Some(ranges) = given.by_node.get(name) {
            return Some(ranges.clone());
        }
        let held = nodes.iter().flat_map(|node| held(node));
        let taken: Vec<IpNet> = held
            .chain(given.by_node.values().flatten().copied())
            .chain(its_own.iter().copied())
            .collect();
        given.last.resize(self.ranges.cluster.len(), None);
        let last = given.last.iter();
        let parts = self.ranges.cluster.iter().zip(last);
        let parts: Option<Vec<IpNet>> = parts
            .map(|(range, last)| {
                let wanted = wanted.and_then(|all| all.of(range.range.family()).copied());
                range.free(&taken, *last, wanted)
            })
            .collect();
        let parts = parts.filter(|parts| !parts.is_empty())?;
        given.last = parts.iter().copied().map(Some).collect();
        given.by_node.insert(name.to_owned(), parts.clone());
        Some(parts)
    }
}
