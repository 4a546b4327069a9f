//! The node's agent: runs the pods that the API (or the manifest folder) gives this node.
//!
//! Owns pods' lives on this node: volumes, network, containers, probes, status. Knows the API and
//! the runtime; knows no store and no controller.
//! Always true:
//! - A pod's UID has one worker; termination is one-way.
//! - A pod's object goes from the API only after its processes, mounts and address are gone.
//! - A restart of the daemon changes nothing for pods that run.

mod admit;
mod book;
pub mod container;
pub mod events;
pub mod eviction;
mod folder_watch;
pub mod image_gc;
mod images;
pub mod local_volumes;
mod logs;
mod mirrors;
pub mod network;
pub mod node;
mod pieces;
pub mod pod;
pub mod probe;
mod reporter;
pub mod server;
pub mod settings;
mod sources;
mod statics;
pub mod stats;
mod table;
pub mod volumes;
mod worker;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use self::{container::Facts, pieces::Pieces, volumes::Volumes};
use crate::{
    accepting,
    addresses::family::PerFamily,
    causes::causes,
    informer::Informers,
    network_policy::Policies,
    pki::Clients,
    runtime::{Runtime, image::Images},
    served::Served,
};

/// How long containers may take to stop when all pods are removed.
const REMOVAL_GRACE: Duration = Duration::from_secs(5);

/// Orders to pods' workers that may wait; whoever gives one more waits too.
const ORDERS: usize = 64;

/// Where this machine asks for the kubelet's health, as everywhere.
pub const HEALTH: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10248);

/// All that the kubelet is told about its node.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    /// The node's own addresses, the first one is what pods with host network report.
    pub addresses: Vec<IpAddr>,
    /// Port of the kubelet's own API.
    pub port: u16,
    /// This node's range of pod addresses.
    pub pod_cidrs: PerFamily<ipnet::IpNet>,
    /// `pods/<uid>/...` lies below.
    pub state_dir: PathBuf,
    /// `pods/<namespace>_<name>_<uid>/<container>/<attempt>.log` lies below.
    pub log_dir: PathBuf,
    /// Static pods' manifests.
    pub manifest_dir: PathBuf,
    /// What pods' /etc/resolv.conf names.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The host's resolv.conf, for `dnsPolicy: Default` and the search list.
    pub resolv_conf: PathBuf,
    /// The node's cgroup folder, see [`crate::runtime::Config::cgroup_root`].
    pub cgroup_root: String,
    pub max_pods: u32,
    /// How many processes and threads a pod may have, of those started from now on.
    pub pod_pids_limit: Option<std::num::NonZeroU32>,
    pub swap: container::SwapBehavior,
    pub resources: settings::ResourceSettings,
    pub description: node::Description,
    /// Where its cluster DNS listens.
    pub dns: node::DnsAt,
    /// No pod is given one of these.
    pub own_ports: crate::own_ports::OwnPorts,
}

/// What the kubelet works with.
#[derive(Clone)]
pub struct Deps {
    /// With the node's own rights (`system:node:<name>`); `Informers::client` for writing.
    pub informers: Informers,
    pub runtime: Runtime,
    pub images: Images,
    pub network: network::PodNetwork,
    /// Asked before a pod starts.
    pub policies: Policies,
    /// Asked before a pod is told to end.
    pub served: Served,
    /// For the kubelet's own API: asks for client certificates.
    pub server_tls: Arc<rustls::ServerConfig>,
    /// Says whom they name.
    pub clients: Arc<Clients>,
    /// Is told what the API does not take of what the node says of itself.
    pub refused: watch::Sender<node::Refused>,
}

/// Where others in the kubelet look up this node's pods.
pub trait Pods: Send + Sync {
    /// The one of that name that came last.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    fn pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>>;
    fn pods(&self) -> Vec<Arc<Pod>>;
}

/// Runs until told to stop; pods go on without it. `listener` is for the kubelet's own API, see
/// [`listen`].
pub async fn run(
    config: Config,
    deps: Deps,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let read = node::facts().map_err(during("read what this machine has"))?;
    let (_, pids) = node::processes().map_err(during("read how many processes there may be"))?;
    let budget = node::reserved::Budget::new(&read, pids, &config.resources)?;
    let disk = stats::Space::of(&config.state_dir).map_err(during("measure the node's disk"))?;
    let port = listener
        .local_addr()
        .map_err(during("read the port"))?
        .port();
    let facts = Facts {
        cluster_domain: config.cluster_domain.clone(),
        swap: config.swap,
        pod_pids_limit: config.pod_pids_limit,
        ..read
    };
    // One part that fails ends all.
    let stop = shutdown.child_token();
    let _stops = stop.clone().drop_guard();
    let client = deps.informers.client().clone();
    let (health, mut healthy) = watch::channel(node::Health::NotReady(
        "the pods of this node are not known yet".into(),
    ));
    let (updates, probed) = mpsc::unbounded_channel();
    let events = events::Recorder::start(client.clone(), config.node.clone());
    hold_pods(&budget, &deps.runtime, &events, &config.node).await;
    let uses = image_gc::Uses::default();
    let collector = image_gc::ImageGc::new(
        deps.images.clone(),
        deps.runtime.clone(),
        uses.clone(),
        config.resources.image_gc,
        events.clone(),
        config.node.clone(),
    );
    let (press, pressures) = watch::channel(eviction::Pressures::default());
    let (order, orders) = mpsc::channel(ORDERS);
    let (network, containers, until) = (deps.network.clone(), deps.runtime.clone(), stop.clone());
    let restored = restorations(events.clone(), config.node.clone());
    let context = Arc::new(worker::Context {
        puller: images::Puller::new(deps.images.clone(), client.clone(), events.clone(), uses),
        volumes: Volumes::new(volumes_config(&config, &facts), client.clone()),
        prober: probe::Prober::new(deps.runtime.clone(), updates),
        services: deps.informers.get(),
        runtime: deps.runtime.clone(),
        network: deps.network.clone(),
        policies: deps.policies.clone(),
        served: deps.served.clone(),
        config: config.clone(),
        client: client.clone(),
        facts,
        events: events.clone(),
    });
    let prober = context.prober.clone();
    let book = Arc::new(book::Book::default());
    let server = server::Server {
        node: config.node.clone(),
        pods: book.clone(),
        runtime: deps.runtime.clone(),
        log_dir: logs::folder(&config.log_dir),
        client: client.clone(),
        clients: deps.clients.clone(),
    };
    let log_dir = config.log_dir.clone();
    let room = room(&config, budget.allocatable(disk.capacity_bytes));
    let manager = eviction::Parts {
        runtime: deps.runtime.clone(),
        images: collector.clone(),
        pods: book.clone(),
        events: events.clone(),
        node: config.node.clone(),
        dirs: eviction::Dirs {
            state: config.state_dir.clone(),
            pods: config.state_dir.join("pods"),
            logs: config.log_dir.clone(),
            images: deps.images.dir().to_owned(),
        },
        pods_memory: budget.ceilings().memory_bytes,
        orders: order,
        pressures: press,
    };
    let thresholds = config.resources.eviction.clone();
    let node = node::Config {
        node: config.node.clone(),
        addresses: config.addresses.clone(),
        port,
        max_pods: config.max_pods,
        state_dir: config.state_dir.clone(),
        pod_cidrs: config.pod_cidrs,
        dns: config.dns,
        description: config.description.clone(),
    };

    let node = node::Parts {
        config: node,
        budget,
        images: deps.images,
        events,
        refused: deps.refused,
    };

    let mut pieces = Pieces::default();
    pieces.start("network", async move {
        let kept = network.keep(containers, restored, until).await;
        kept.map_err(|error| during("watch the pod network")(std::io::Error::other(error)))
    });
    let until = stop.clone();
    pieces.start_plain("eviction", async move {
        eviction::run(thresholds, manager, until).await;
    });
    let until = stop.clone();
    pieces.start_plain("images", async move { collector.run(until).await });
    let until = stop.clone();
    let informers = deps.informers.clone();
    let pressed = pressures.clone();
    let mut ready = deps.network.readiness();
    pieces.start("node", async move {
        // A node that was ready before must not be told unready while its daemon starts: its pods
        // would be taken for unready too.
        let is_known = |network: &network::Readiness| *network != network::Readiness::Unknown;
        let known = async {
            let _ = healthy
                .wait_for(|health| *health == node::Health::Ready)
                .await;
            let _ = ready.wait_for(is_known).await;
        };
        tokio::select! {
            () = known => {}
            () = until.cancelled() => return Ok(()),
        }
        let (tell, told) = watch::channel(health_of(&ready.borrow()));
        tokio::select! {
            ended = node::run(node, &informers, told, pressed, until) => ended,
            () = follow(ready, tell) => Ok(()),
        }
    });
    let serving = server.serve_with(config, prober, listener, deps.server_tls, stop.clone());
    pieces.start("server", serving);
    match accepting::listen(HEALTH.into()) {
        Ok(listener) => {
            let serving = server::Server::serve_health(listener, stop.clone());
            pieces.start("health", serving);
        }
        // Another node on this machine has it, say. Nothing in the cluster asks there.
        Err(error) => tracing::warn!(%error, "health checks are not served on {HEALTH:?}"),
    }
    let (volumes, until) = (context.volumes.clone(), stop.clone());
    pieces.start_plain("volumes", async move { volumes.run(until).await });
    let (runtime, until) = (deps.runtime, stop.clone());
    pieces.start_plain("logs", async move {
        logs::close_to_others(&log_dir).await;
        logs::compress_rotated(runtime, until).await;
    });
    let admission = table::Admission { room, pressures };
    let table = table::Table::new(context, book, health, admission);
    pieces.start("pods", table.run(probed, orders, stop));
    while let Some(ends) = pieces.ended().await {
        if !(ends.are_plain() && shutdown.is_cancelled()) {
            return Err(Error::Pieces(ends));
        }
    }
    Ok(())
}

/// Tells on the Node what happens to its network.
fn restorations(events: events::Recorder, node: String) -> impl Fn(&'static str, String) {
    move |reason, message| {
        let about = eviction::node_ref(&node);
        events.about(about, events::Level::Warning, reason, message);
    }
}

/// Whether the node, whose pods are known, can run more: what it lacks says its network.
fn health_of(network: &network::Readiness) -> node::Health {
    match network {
        network::Readiness::Unknown | network::Readiness::Ready => node::Health::Ready,
        network::Readiness::NotReady(why) => {
            node::Health::NotReady(network::cni::Error::NotReady(why.clone()).to_string())
        }
    }
}

/// Keeps `health` as the network is.
async fn follow(
    mut network: watch::Receiver<network::Readiness>,
    health: watch::Sender<node::Health>,
) {
    loop {
        let now = health_of(&network.borrow_and_update());
        health.send_if_modified(|before| {
            let is_news = *before != now;
            *before = now;
            is_news
        });
        if network.changed().await.is_err() {
            return std::future::pending().await; // it stays as it is
        }
    }
}

/// Has the kernel hold all pods together to what is not reserved. A node whose kernel will not is
/// still one: it says so, and goes on.
async fn hold_pods(
    budget: &node::reserved::Budget,
    runtime: &Runtime,
    events: &events::Recorder,
    node: &str,
) {
    let about = eviction::node_ref(node);
    match runtime.set_ceilings(budget.ceilings()).await {
        Ok(()) => tracing::debug!(ceilings = ?budget.ceilings(), "pods are held to what is theirs"),
        Err(error) => {
            let error = causes(&error);
            tracing::warn!(error, "the pods' limits as a whole are not set");
            let message = format!("Failed to update Node Allocatable Limits: {error}");
            let level = events::Level::Warning;
            events.about(about, level, "FailedNodeAllocatableEnforcement", message);
        }
    }
}

fn room(config: &Config, allocatable: node::reserved::Amounts) -> admit::Room {
    let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    admit::Room {
        pods: config.max_pods,
        milli_cpu: signed(allocatable.cpu_milli),
        memory: signed(allocatable.memory),
        ephemeral: signed(allocatable.ephemeral),
    }
}

/// Takes the port of the kubelet's own API; 0 for any that is free.
pub fn listen(port: u16) -> Result<TcpListener, Error> {
    accepting::listen_everywhere(port).map_err(|source| {
        let action = match source.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "port {port} is taken by another program; choose another with --kubelet-port"
                )
            }
            _ => format!("listen on port {port}"),
        };
        Error::Io { action, source }
    })
}

fn during(action: &str) -> impl FnOnce(std::io::Error) -> Error {
    let action = action.to_owned();
    move |source| Error::Io { action, source }
}

fn volumes_config(config: &Config, facts: &Facts) -> volumes::Config {
    volumes::Config {
        pods_dir: config.state_dir.join("pods"),
        local_volumes: config.state_dir.join(crate::placement::local::FOLDER),
        node: config.node.clone(),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        facts: facts.clone(),
    }
}

/// Stops and removes all pods of this node and what they use, without a word to the API, but those
/// that the runtime does not understand. Only when no kubelet runs. Needs neither certificates nor
/// keys: what is removed may be a cluster that has broken ones.
pub async fn remove_pods(
    config: &Config,
    runtime: &Runtime,
    network: &network::PodNetwork,
) -> Result<(), Error> {
    let volumes = Volumes::new(volumes_config(config, &Facts::default()), nobody());
    let pods = runtime.pods().await;
    let removals = pods.into_iter().map(|pod| remove_pod(runtime, pod));
    for removed in futures::future::join_all(removals).await {
        removed?;
    }
    let failed = |action: &str, error: String| Error::Io {
        action: action.to_owned(),
        source: std::io::Error::other(error),
    };
    let set_aside: Vec<String> = runtime.set_aside().into_keys().collect();
    let known = volumes.known().await;
    let known = known.map_err(|error| failed("list volumes", causes(&error)))?;
    for uid in known.into_iter().filter(|uid| !set_aside.contains(uid)) {
        let released = volumes.of_pod(&uid).release().await;
        released.map_err(|error| failed("remove volumes", causes(&error)))?;
    }
    logs::remove_orphans(&config.log_dir, set_aside.clone()).await;
    let detached = network.detach_all_but(&set_aside).await;
    detached.map_err(|error| failed("give back addresses", causes(&error)))
}

/// A client where there is no API server: every request fails.
fn nobody() -> kube::Client {
    let refuse = |_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other(
            "there is no API server",
        ))
    };
    kube::Client::new(tower::service_fn(refuse), "default")
}

/// Gives the pod's containers a moment to stop by themselves.
async fn remove_pod(runtime: &Runtime, pod: crate::runtime::PodState) -> Result<(), Error> {
    let uid = pod.config.identity.uid.clone();
    worker::stop_containers(runtime, pod, worker::Hooks::Skip, |_| REMOVAL_GRACE).await;
    Ok(runtime.remove_pod(&uid).await?)
}

/// Why the kubelet cannot go on at all. What concerns one pod is an event and a status instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Pieces(pieces::Ends),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("{action}")]
    Io {
        action: String,
        source: std::io::Error,
    },
    #[error("{action}")]
    Api {
        action: String,
        source: Box<kube::Error>,
    },
    #[error(transparent)]
    Setting(#[from] settings::Invalid),
    #[error("runtime")]
    Runtime(#[from] crate::runtime::Error),
}
