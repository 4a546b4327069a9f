//! NetworkPolicies: which connections the pods of this node may begin and take.
//!
//! Owns one nf_tables table. `rules.rs` takes a policy apart, `plan.rs` works out what each pod of this node
//! lets through, `table.rs` has the rules, `sync.rs` brings the kernel there; `watched.rs` is what is kept of
//! the cluster's pods. Started by the node; the kubelet asks before it starts a pod's first container.
//! Always true:
//! - A pod never runs without the rules of the policies that select it: they are there before its first
//!   container is.
//! - A change is one transaction: packets see all of it or nothing.
//! - A packet of a known connection costs the same with no policy that concerns it and with ten thousand; a new
//!   connection costs one look-up in each direction and one rule for each set of ports that its pod's policies name.
//! - Connections that began before they were forbidden are forgotten, and do not go on.
//! - Where no policy is, nothing is watched but policies, and there is no table.
//!
//! Egress is checked on the client's node, ingress on the server's. The node itself reaches its pods, whatever
//! policies say, as probes must. Each family of the cluster has a table of its own.

mod model;
mod plan;
mod ranges;
mod rules;
mod snapshot;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod trace;
mod watched;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use k8s_openapi::api::{
    core::v1::{Namespace, ObjectReference, Pod},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::ResourceExt;
use netns::monitor::Changes as HostChanges;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    model::PodFacts,
    plan::{World, plan},
    rules::Rules,
    sync::Writer,
    watched::WatchedPod,
};
pub use self::{
    model::Protocol,
    snapshot::Snapshot,
    trace::{Connection, End, Judgement},
};
use crate::{
    addresses::family::PerFamily,
    events::{Level, Recorder, Source},
    informer::{Informer, Informers, Key, revision_of, services::SERVICE_NAME},
    repair::{self, HostState},
};

/// What comes within this time after a change is carried out together.
const TOGETHER: Duration = Duration::from_millis(20);
/// A pod that has to wait longer for its rules is tried again later.
const ADMIT_WITHIN: Duration = Duration::from_secs(30);
/// Packets that met the rules of before have arrived by then.
const ARRIVED: Duration = Duration::from_millis(50);
/// The cluster's own DNS, which policies select as everywhere although no pod serves it.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_NAME: &str = "kube-dns";
const DNS_LABEL: &str = "k8s-app";

#[derive(Clone, Debug)]
pub struct Config {
    /// The nf_tables table, e.g. `vetch-policy`; nobody else's.
    pub table: String,
    /// This node's name, as pods carry it.
    pub node: String,
    /// Where this node's DNS answers: an address of each family of the cluster.
    pub dns: PerFamily<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action}")]
    Netlink {
        action: &'static str,
        source: netns::Error,
    },
    #[error("which network policies there are is not known yet: the API server has not answered")]
    Unknown,
    #[error("a panic while rules of network policies were written")]
    Panicked,
}

fn during(action: &'static str) -> impl FnOnce(netns::Error) -> Error {
    move |source| Error::Netlink { action, source }
}

/// The policies of a node; cheap to clone.
#[derive(Clone)]
pub struct Policies {
    engine: Arc<Mutex<Engine>>,
    /// What is known of the cluster.
    stage: Arc<watch::Sender<Stage>>,
    /// Something has come to pass that no informer tells.
    wake: Arc<Notify>,
    enforced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The policies are not known yet.
    Starting,
    /// There are none.
    Idle,
    /// All pods and namespaces are watched.
    Enforcing,
}

impl Policies {
    pub fn new(config: Config) -> Self {
        Self::made(config, true)
    }

    /// For a node where others enforce policies, or nobody.
    pub fn disabled(config: Config) -> Self {
        Self::made(config, false)
    }

    fn made(config: Config, enforced: bool) -> Self {
        Self {
            engine: Arc::new(Mutex::new(Engine::new(config))),
            stage: Arc::new(watch::Sender::new(Stage::Starting)),
            wake: Arc::default(),
            enforced,
        }
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        // A panic leaves a table that is in doubt, which the next change makes anew.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the rules for this pod are there, which has these addresses now. Before any of its
    /// containers starts. Waits for a while if nobody knows yet which policies there are.
    pub async fn admit(&self, pod: &Pod, addresses: &[IpAddr]) -> Result<(), Error> {
        if !self.enforced {
            return Ok(());
        }
        let admitted = tokio::time::timeout(ADMIT_WITHIN, self.admit_at_last(pod, addresses));
        admitted.await.unwrap_or(Err(Error::Unknown))
    }

    async fn admit_at_last(&self, pod: &Pod, addresses: &[IpAddr]) -> Result<(), Error> {
        let facts = watched::starting(pod, addresses);
        let namespace = facts.namespace.clone();
        let mut stage = self.stage.subscribe();
        // The sender lives as long as `self`.
        let _ = stage.wait_for(|stage| *stage != Stage::Starting).await;
        {
            let mut engine = self.engine();
            engine.admitted.insert(facts.uid.clone(), facts);
            if !engine.isolates_in(&namespace) {
                return Ok(());
            }
        }
        let _ = stage.wait_for(|stage| *stage == Stage::Enforcing).await;
        self.write().await.map(drop)
    }

    /// The pod has gone, and its addresses are nobody's.
    pub fn forget(&self, uid: &str) {
        if self.engine().admitted.remove(uid).is_some() {
            self.wake.notify_one();
        }
    }

    /// Whether something is forbidden now that was not before.
    async fn write(&self) -> Result<bool, Error> {
        let policies = self.clone();
        blocking(move || policies.engine().refresh()).await
    }

    /// Keeps the table as the API says, until `shutdown`; the table stays then, for running pods.
    pub async fn run(self, informers: Informers, shutdown: CancellationToken) -> Result<(), Error> {
        if !self.enforced {
            let policies = self.clone();
            blocking(move || policies.engine().clear()).await?;
            self.stage.send_replace(Stage::Idle);
            shutdown.cancelled().await;
            return Ok(());
        }
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = self.follow(&informers) => ended,
        }
    }

    async fn follow(&self, informers: &Informers) -> Result<(), Error> {
        let policies: Informer<NetworkPolicy> = informers.get();
        let mut changes = policies.changes();
        policies.synced().await;
        self.engine().policies = Some(policies.clone());
        if policies.list().is_empty() {
            // What a daemon before this one has left.
            let left = self.clone();
            blocking(move || left.engine().clear()).await?;
            self.stage.send_replace(Stage::Idle);
            while policies.list().is_empty() {
                if changes.next().await.is_none() {
                    return Ok(());
                }
            }
        }
        let watched = Watched::start(informers).await;
        self.engine().watched = Some(watched.clone());
        let failed = Notify::new();
        let own = self.engine().own_port()?;
        let node = self.engine().config.node.clone();
        let events = Recorder::start(
            informers.client().clone(),
            Source {
                component: "network-policy",
                host: Some(node.clone()),
            },
        );
        let keeping = repair::keep(
            Arc::new(self.clone()),
            own,
            &failed,
            restorations(events, node),
            CancellationToken::new(),
        );
        tokio::select! {
            () = keeping => Ok(()),
            ended = self.enforce(&policies, &watched, &failed) => ended,
        }
    }

    async fn enforce(
        &self,
        policies: &Informer<NetworkPolicy>,
        watched: &Watched,
        failed: &Notify,
    ) -> Result<(), Error> {
        let mut changes = (
            policies.changes(),
            watched.pods.changes(),
            watched.namespaces.changes(),
            watched.slices.changes(),
        );
        let mut sweep: Option<Instant> = None;
        loop {
            match self.write().await {
                Ok(is_stricter) => {
                    self.stage.send_replace(Stage::Enforcing);
                    let due = is_stricter.then(|| Instant::now() + ARRIVED);
                    sweep = sweep.or(due);
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "network policies are not up to date, will retry");
                    failed.notify_one();
                }
            }
            loop {
                let due = sweep;
                let open = tokio::select! {
                    change = changes.0.next() => change.is_some(),
                    change = changes.1.next() => change.is_some(),
                    change = changes.2.next() => change.is_some(),
                    change = changes.3.next() => change.is_some(),
                    () = self.wake.notified() => true,
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        sweep = None;
                        self.sweep(failed).await;
                        continue;
                    }
                };
                if !open {
                    return Ok(());
                }
                break;
            }
            tokio::time::sleep(TOGETHER).await;
            while let Some(Some(_)) = changes.0.next().now_or_never() {}
            while let Some(Some(_)) = changes.1.next().now_or_never() {}
            while let Some(Some(_)) = changes.2.next().now_or_never() {}
            while let Some(Some(_)) = changes.3.next().now_or_never() {}
        }
    }

    async fn sweep(&self, failed: &Notify) {
        let policies = self.clone();
        if let Err(error) = blocking(move || policies.engine().sweep()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "connections that are forbidden now are not forgotten yet"
            );
            failed.notify_one();
        }
    }
}

/// Tells on the Node what of policies' rules others had undone on this host.
fn restorations(events: Recorder, node: String) -> impl Fn(repair::Told<'_, Error>) {
    let about = ObjectReference {
        kind: Some("Node".into()),
        name: Some(node.clone()),
        uid: Some(node),
        ..ObjectReference::default()
    };
    move |told| {
        let (reason, message) = repair::event(&told);
        events.record_ref(about.clone(), Level::Warning, reason, message);
    }
}

/// Takes the table away (for `reset`).
pub async fn remove(config: Config) -> Result<(), Error> {
    blocking(move || Engine::new(config).clear()).await
}

impl HostState for Policies {
    type Error = Error;

    fn notice(&self, changes: &HostChanges) -> bool {
        let mut engine = self.engine();
        engine
            .writer
            .as_mut()
            .is_some_and(|writer| writer.notice(changes))
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let policies = self.clone();
        blocking(move || policies.engine().settle()).await
    }
}

/// What of the cluster counts once there is a policy.
#[derive(Clone)]
struct Watched {
    pods: Informer<WatchedPod>,
    namespaces: Informer<Namespace>,
    slices: Informer<EndpointSlice>,
}

impl Watched {
    async fn start(informers: &Informers) -> Self {
        let watched = Self {
            pods: informers.get(),
            namespaces: informers.get(),
            slices: informers.get(),
        };
        watched.pods.synced().await;
        watched.namespaces.synced().await;
        watched.slices.synced().await;
        watched
    }
}

struct Engine {
    config: Config,
    policies: Option<Informer<NetworkPolicy>>,
    watched: Option<Watched>,
    /// Pods of this node that may run, by uid: the API learns of their addresses later.
    admitted: HashMap<String, PodFacts>,
    /// Policies taken apart, with their revisions.
    rules: BTreeMap<Key, (u64, Arc<Rules>)>,
    writer: Option<Writer>,
}

impl Engine {
    fn new(config: Config) -> Self {
        Self {
            config,
            policies: None,
            watched: None,
            admitted: HashMap::new(),
            rules: BTreeMap::new(),
            writer: None,
        }
    }

    fn isolates_in(&self, namespace: &str) -> bool {
        let policies = self.policies.as_ref();
        policies.is_some_and(|policies| !policies.list_in(namespace).is_empty())
    }

    fn writer(&mut self) -> Result<&mut Writer, Error> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let opened = Writer::open(&self.config.table, self.config.dns.families());
                let opened = opened.map_err(during("open a socket for nf_tables"))?;
                Ok(none.insert(opened))
            }
        }
    }

    fn own_port(&mut self) -> Result<u32, Error> {
        let port = self.writer()?.own_port();
        port.map_err(during("ask for the port of a socket"))
    }

    /// Brings the kernel to what the caches say.
    fn refresh(&mut self) -> Result<bool, Error> {
        let world = self.world();
        let written = self.writer()?.apply(|ipv6| plan(&world, ipv6));
        written.map_err(during("write the rules of network policies"))
    }

    fn sweep(&mut self) -> Result<(), Error> {
        let swept = self.writer()?.sweep();
        swept.map_err(during("forget connections that are forbidden now"))
    }

    fn settle(&mut self) -> Result<Vec<String>, Error> {
        let settled = self.writer()?.settle();
        settled.map_err(during("write the rules of network policies"))
    }

    fn clear(&mut self) -> Result<(), Error> {
        let removed = self.writer()?.remove();
        self.writer = None;
        removed.map_err(during("remove the rules of network policies"))
    }

    fn world(&mut self) -> World {
        self.take_apart();
        let Some(watched) = &self.watched else {
            return World::default();
        };
        let node = &self.config.node;
        let listed = watched.pods.list();
        let mut pods = Vec::with_capacity(listed.len() + 1);
        let mut seen: HashSet<&str> = HashSet::new();
        for pod in &listed {
            let Some(mut facts) = pod.facts(node) else {
                continue;
            };
            if let Some((uid, admitted)) = self.admitted.get_key_value(&facts.uid) {
                seen.insert(uid);
                facts.addresses.clone_from(&admitted.addresses);
            }
            pods.push(facts);
        }
        let admitted = self.admitted.iter();
        let unseen = admitted.filter(|(uid, _)| !seen.contains(uid.as_str()));
        pods.extend(unseen.map(|(_, facts)| facts.clone()));
        let slices = watched.slices.list();
        let slices = slices.iter().map(|slice| &**slice);
        pods.push(cluster_dns(slices, self.config.dns.iter().copied()));
        let namespaces = watched.namespaces.list();
        let namespaces = namespaces.iter();
        World {
            policies: self
                .rules
                .values()
                .map(|(_, rules)| rules.clone())
                .collect(),
            namespaces: namespaces
                .map(|namespace| (namespace.name_any(), namespace.labels().clone()))
                .collect(),
            pods,
        }
    }

    /// Policies that changed.
    fn take_apart(&mut self) {
        let policies = self
            .policies
            .as_ref()
            .map(Informer::list)
            .unwrap_or_default();
        let mut rules = BTreeMap::new();
        for policy in policies {
            let (key, revision) = (Key::of(&*policy), revision_of(&*policy));
            let known = self.rules.remove(&key).filter(|(at, _)| *at == revision);
            let taken = known.unwrap_or_else(|| (revision, Arc::new(Rules::of(&policy))));
            rules.insert(key, taken);
        }
        self.rules = rules;
    }
}

/// As if a pod served it on each node; `own` is where this one's answers.
fn cluster_dns<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    own: impl Iterator<Item = IpAddr>,
) -> PodFacts {
    let serving = slices.filter(|slice| {
        slice.namespace().as_deref() == Some(DNS_NAMESPACE)
            && slice.labels().get(SERVICE_NAME).map(String::as_str) == Some(DNS_NAME)
    });
    let endpoints = serving.flat_map(|slice| slice.endpoints.iter().flatten());
    let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses);
    let addresses = addresses.filter_map(|address| address.parse().ok());
    let port = |protocol, name: &str| ((protocol, name.to_owned()), 53);
    PodFacts {
        namespace: DNS_NAMESPACE.into(),
        name: DNS_NAME.into(),
        uid: String::new(),
        labels: [(DNS_LABEL.to_owned(), DNS_NAME.to_owned())].into(),
        addresses: addresses.chain(own).collect(),
        ports: [port(Protocol::Udp, "dns"), port(Protocol::Tcp, "dns-tcp")].into(),
        is_local: false,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::Panicked))
}
