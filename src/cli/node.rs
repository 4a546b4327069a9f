//! This machine as a node: runtime, pod network, services, DNS and kubelet, put together.
//!
//! Called by the daemon after the API server answers, and by `reset` without one. Several clusters
//! may live on one machine: what must be unique on a host is derived from the root folder.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::{
    core::v1::{Node as NodeObject, NodeCondition, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::wait,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, sync::watch};

use super::{Error, paths::Paths};
use crate::{
    apiserver::{
        request::User,
        start::{Handle, own_user},
    },
    backoff::Backoff,
    dns, format,
    informer::{Change, Changes, Informers, Key},
    kubelet::{
        self,
        container::SwapBehavior,
        network::{self, PodNetwork},
        settings::ResourceSettings,
    },
    own_ports::{OwnPort, OwnPorts, TCP, UDP},
    pki::{self, Leaf, Pki},
    proxy,
    runtime::{self, Runtime, image::Images},
    supervision::{Parts, Policy},
};

const CLUSTER_DOMAIN: &str = "cluster.local";
const DNS_PORT: u16 = 53;
/// The address of the cluster DNS is this one of the service range.
const DNS_ADDRESS: usize = 10;
const MAX_PODS: u32 = 110;
/// The format of what is recorded of the node, and the oldest that is still read.
const RECORD: u32 = 1;
const OLDEST_RECORD: u32 = 1;
/// A node that is not ready by then says why.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What refuses the node's own writes for so long will go on to: who serves a webhook from a pod of
/// this node needs a moment after a start.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// All that differs between nodes.
#[derive(Clone, Debug)]
pub struct Config {
    pub paths: Paths,
    pub name: String,
    pub address: IpAddr,
    pub pod_cidr: IpNet,
    pub services: IpNet,
    pub api_port: u16,
    pub kubelet_port: u16,
    pub limits: PodLimits,
    pub resources: ResourceSettings,
}

/// What the node gives to every pod alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodLimits {
    pub swap: SwapBehavior,
    pub processes: Option<NonZeroU32>,
}

/// The ranges of a cluster when nobody chose any. Below a root of its own they are a part of the
/// usual ranges, so that clusters on one machine hardly ever meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    pub pods: IpNet,
    pub services: IpNet,
}

impl Ranges {
    pub fn of(paths: &Paths) -> Self {
        let v4 = |a, b, c, length| {
            let address = Ipv4Addr::new(10, a, b, c);
            IpNet::V4(Ipv4Net::new_assert(address, length))
        };
        match digest(paths) {
            None => Self {
                pods: v4(42, 0, 0, 24),
                services: v4(96, 0, 0, 12),
            },
            Some([pods, services, ..]) => Self {
                pods: v4(42, pods, 0, 24),
                services: v4(96 + services / 16, services % 16 * 16, 0, 20),
            },
        }
    }
}

/// What must be unique on one host.
struct Names {
    bridge: String,
    table: String,
    proxy_table: String,
    cgroup_root: String,
}

impl Names {
    fn of(paths: &Paths) -> Self {
        match digest(paths) {
            None => Self {
                bridge: "vetch0".into(),
                table: "vetch".into(),
                proxy_table: "vetch-proxy".into(),
                cgroup_root: "vetch".into(),
            },
            Some(bytes) => {
                let tag: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Self {
                    bridge: format!("vetch{tag}"),
                    table: format!("vetch-{tag}"),
                    proxy_table: format!("vetch-proxy-{tag}"),
                    cgroup_root: format!("vetch-{tag}"),
                }
            }
        }
    }
}

/// Follows from the root folder; `None` for the system's own.
fn digest(paths: &Paths) -> Option<[u8; 4]> {
    let root = paths.root.as_ref()?;
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    Some([digest[0], digest[1], digest[2], digest[3]])
}

/// A node that runs.
pub struct Node {
    config: kubelet::Config,
    deps: kubelet::Deps,
    parts: Parts,
}

impl Node {
    /// Starts everything; see [`Node::ready`] for when pods can run.
    pub async fn start(
        mut config: Config,
        handle: &Handle,
        pki: &Pki,
        images: Images,
        parts: &Parts,
    ) -> Result<Self, Error> {
        let names = Names::of(&config.paths);
        let listener = kubelet::listen(config.kubelet_port).await?;
        config.kubelet_port = listener.local_addr()?.port();
        let runtime = Runtime::open(runtime_config(&config.paths, &names)).await?;
        Recorded::save(&config)?;
        let network = PodNetwork::open(network_config(&config, &names)).await?;
        let gateway = network.gateway();
        let cluster_dns = cluster_dns(config.services)?;
        let dns = Announcement {
            client: handle.client(own_user()),
            node: config.name.clone(),
            cluster_dns,
            address: gateway,
        };
        if let Err(error) = dns.write().await {
            // What users have set up may refuse it; the node starts all the same.
            tracing::warn!(%error, "the cluster DNS is not announced, will retry");
        }
        let parts = parts.group();
        let client = handle.client(User::internal("system:kube-proxy", &[]));
        let watching = Informers::of("kube-proxy", client, parts.clone());
        parts.start_endless("part/cluster-dns-service", Policy::Restart, {
            let (dns, watching) = (Arc::new(dns), watching.clone());
            move || dns.clone().keep(watching.clone())
        });
        parts.start("part/kube-proxy", Policy::Restart, {
            let (watching, config) = (watching.clone(), proxy_config(&config, &names));
            move |shutdown| proxy::run(watching.clone(), config.clone(), shutdown)
        });
        let resolver = dns::Config {
            listen: vec![SocketAddr::new(gateway, DNS_PORT)],
            domain: CLUSTER_DOMAIN.into(),
            clients: [gateway, config.address, IpAddr::V4(Ipv4Addr::LOCALHOST)]
                .map(IpNet::from)
                .into_iter()
                .chain([cluster_cidr(config.pod_cidr)])
                .collect(),
            resolv_conf: resolv_conf(),
        };
        parts.start("part/cluster-dns", Policy::Restart, move |shutdown| {
            dns::run(watching.clone(), resolver.clone(), shutdown)
        });

        let user = User::internal(&format!("system:node:{}", config.name), &["system:nodes"]);
        let leaf = Leaf::kubelet_serving(&config.name, &[config.address]);
        let deps = kubelet::Deps {
            informers: Informers::of("kubelet", handle.client(user), parts.clone()),
            runtime,
            images,
            network,
            server_tls: Arc::new(pki::server_config(pki, leaf)?),
            clients: pki.clients()?,
            refused: watch::Sender::default(),
        };
        let config = kubelet_config(&config, &names, cluster_dns);
        start_kubelet(&parts, &config, &deps, listener)?;
        Ok(Self {
            config,
            deps,
            parts,
        })
    }

    /// Waits until the node is Ready, one of its parts has failed, or it shows that users have set up
    /// what refuses it.
    pub async fn ready(&self, client: Client) -> Result<Readiness, Error> {
        let nodes: Api<NodeObject> = Api::all(client);
        tokio::select! {
            ready = self.is_ready(&nodes) => ready.map(|()| Readiness::Ready),
            failure = self.parts.failed() => Err(failure.into()),
            why = refused(self.deps.refused.subscribe(), REFUSED_FOR) => Ok(Readiness::Refused(why)),
            () = tokio::time::sleep(READY_WITHIN) => Err(not_ready(&nodes, &self.config.node).await),
        }
    }

    /// Waits until the node is Ready, however long that takes.
    pub async fn ready_at_last(&self, client: Client) -> Result<(), Error> {
        self.is_ready(&Api::all(client)).await
    }

    async fn is_ready(&self, nodes: &Api<NodeObject>) -> Result<(), Error> {
        let is_ready = |node: Option<&NodeObject>| node.is_some_and(is_ready);
        let ready = wait::await_condition(nodes.clone(), &self.config.node, is_ready);
        Ok(ready.await.map(drop)?)
    }

    /// Stops the node's parts; its pods go on.
    pub async fn stop(&self) {
        self.parts.stop().await;
    }

    /// Stops and removes this node's pods; call [`Node::stop`] before.
    pub async fn remove_pods(&self) -> Result<(), Error> {
        let (runtime, network) = (&self.deps.runtime, &self.deps.network);
        Ok(kubelet::remove_pods(&self.config, runtime, network).await?)
    }
}

/// How it went with a node that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The API server works and the node would, but what it says of itself is refused.
    Refused(String),
}

/// Resolves when the API has refused for a while what the node says of itself.
async fn refused(mut told: watch::Receiver<kubelet::node::Refused>, time: Duration) -> String {
    loop {
        let waited = told.wait_for(|refused| why(refused).is_some()).await;
        if waited.map(drop).is_err() {
            return std::future::pending().await; // there is no kubelet
        }
        tokio::time::sleep(time).await;
        if let Some(why) = why(&told.borrow()) {
            return why;
        }
    }
}

fn why(refused: &kubelet::node::Refused) -> Option<String> {
    let kubelet::node::Refused { node, lease } = refused;
    let of_node = node.as_ref().map(|why| ("Node", why));
    let (what, why) = of_node.or(lease.as_ref().map(|why| ("Lease", why)))?;
    Some(format!("the API does not take its {what}: {why}"))
}

/// What the node was called when it last ran below this root.
pub fn recorded_name(paths: &Paths) -> Result<Option<String>, Error> {
    Ok(Recorded::load(paths)?.map(|recorded| recorded.name))
}

/// The kubelet. Its socket stays open when it fails: connections wait meanwhile.
fn start_kubelet(
    parts: &Parts,
    config: &kubelet::Config,
    deps: &kubelet::Deps,
    listener: TcpListener,
) -> Result<(), Error> {
    let (config, deps, socket) = (config.clone(), deps.clone(), listener.into_std()?);
    parts.start("part/kubelet", Policy::Restart, move |shutdown| {
        let (config, deps) = (config.clone(), deps.clone());
        let listener = socket.try_clone().and_then(TcpListener::from_std);
        async move { Ok::<(), Error>(kubelet::run(config, deps, listener?, shutdown).await?) }
    });
    Ok(())
}

/// Takes away what a stopped daemon has left on the host: pods, their network, services. Works with
/// what it finds: the cluster may be removed because something of it is damaged or has expired.
pub async fn remove(paths: &Paths) -> Result<(), Error> {
    let Some(recorded) = Recorded::of_remains(paths) else {
        return Ok(()); // there never was a node
    };
    let names = Names::of(paths);
    let config = Config {
        paths: paths.clone(),
        name: recorded.name,
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod_cidr: recorded.pod_cidr.parse()?,
        services: recorded.services.parse()?,
        api_port: 0,
        kubelet_port: 0,
        limits: PodLimits::default(),
        resources: ResourceSettings::default(),
    };
    let network = match PodNetwork::open(network_config(&config, &names)).await {
        Err(network::Error::Records { .. }) => {
            PodNetwork::open_to_remove(network_config(&config, &names)).await?
        }
        opened => opened?,
    };
    let runtime = Runtime::open(runtime_config(paths, &names)).await?;
    let kubelet = kubelet_config(&config, &names, cluster_dns(config.services)?);
    kubelet::remove_pods(&kubelet, &runtime, &network).await?;
    let hierarchy = cgroups::Hierarchy::detect()?;
    let group = cgroups::Group::open(&hierarchy, &names.cgroup_root)?;
    if !runtime.set_aside().is_empty() {
        // They go too, though nobody knows how they would like to.
        group.kill_all()?;
        runtime.remove_set_aside().await?;
        kubelet::remove_pods(&kubelet, &runtime, &network).await?;
    }
    proxy::remove(proxy_config(&config, &names)).await?;
    network.remove().await?;
    group.remove()?;
    Ok(())
}

/// What `remove` must know of a node that ran with other settings than the usual ones.
#[derive(Serialize, Deserialize)]
struct Recorded {
    #[serde(default)]
    version: u32,
    name: String,
    pod_cidr: String,
    services: String,
}

impl Recorded {
    fn path(paths: &Paths) -> PathBuf {
        paths.state.join("node.json")
    }

    fn save(config: &Config) -> Result<(), Error> {
        let recorded = Self {
            version: RECORD,
            name: config.name.clone(),
            pod_cidr: config.pod_cidr.to_string(),
            services: config.services.to_string(),
        };
        let path = Self::path(&config.paths);
        std::fs::write(&path, serde_json::to_vec(&recorded)?)
            .map_err(|error| format!("write {}: {error}", path.display()).into())
    }

    /// What is known for a removal. Where the record is lost or damaged, that the node had the usual
    /// settings; nothing where no node has ever run.
    fn of_remains(paths: &Paths) -> Option<Self> {
        match Self::load(paths) {
            Ok(Some(recorded)) => return Some(recorded),
            Ok(None) if !runtime_config(paths, &Names::of(paths)).state_dir.exists() => {
                return None;
            }
            Ok(None) => tracing::warn!("the node's record is lost, its usual settings are assumed"),
            Err(error) => tracing::warn!(%error, "the node's usual settings are assumed"),
        }
        let ranges = Ranges::of(paths);
        Some(Self {
            version: RECORD,
            name: String::new(),
            pod_cidr: ranges.pods.to_string(),
            services: ranges.services.to_string(),
        })
    }

    fn load(paths: &Paths) -> Result<Option<Self>, Error> {
        let path = Self::path(paths);
        match std::fs::read(&path) {
            Ok(bytes) => format::parse(&bytes, OLDEST_RECORD..=RECORD)
                .map(Some)
                .map_err(|error| format!("read {}: {error}", path.display()).into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("read {}: {error}", path.display()).into()),
        }
    }
}

fn runtime_config(paths: &Paths, names: &Names) -> runtime::Config {
    runtime::Config {
        state_dir: paths.state.join("runtime"),
        run_dir: paths.runtime(),
        cgroup_root: names.cgroup_root.clone(),
    }
}

fn network_config(config: &Config, names: &Names) -> network::Config {
    network::Config {
        state_dir: config.paths.state.join("network"),
        pod_cidr: config.pod_cidr,
        bridge: names.bridge.clone(),
        table: names.table.clone(),
        cluster_cidr: cluster_cidr(config.pod_cidr),
        own_ports: own_ports(config),
    }
}

/// Where the parts of this daemon listen on the node.
fn own_ports(config: &Config) -> OwnPorts {
    let own = |address, protocol, port, user| OwnPort {
        address,
        protocol,
        port,
        user,
    };
    let v4 = |address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let gateway = config.pod_cidr.hosts().next().and_then(v4);
    let dns = [TCP, UDP].map(|protocol| own(gateway, protocol, DNS_PORT, "cluster DNS"));
    let health = v4(kubelet::HEALTH.0);
    OwnPorts::new(
        [
            own(None, TCP, config.api_port, "the API server"),
            own(None, TCP, config.kubelet_port, "the kubelet"),
            own(
                health,
                TCP,
                kubelet::HEALTH.1,
                "the kubelet's health checks",
            ),
        ]
        .into_iter()
        .chain(dns),
    )
}

fn proxy_config(config: &Config, names: &Names) -> proxy::Config {
    proxy::Config {
        table: names.proxy_table.clone(),
        node: config.name.clone(),
        cluster_cidr: cluster_cidr(config.pod_cidr),
        service_route: Some((config.services, names.bridge.clone())),
        mark: proxy::DEFAULT_MARK,
        addresses: [Some(config.address), config.pod_cidr.hosts().next()]
            .into_iter()
            .flatten()
            .collect(),
        own_ports: own_ports(config),
    }
}

fn kubelet_config(config: &Config, names: &Names, cluster_dns: IpAddr) -> kubelet::Config {
    kubelet::Config {
        node: config.name.clone(),
        addresses: vec![config.address],
        port: config.kubelet_port,
        pod_cidr: config.pod_cidr,
        state_dir: config.paths.state.clone(),
        log_dir: match config.paths.root {
            None => "/var/log".into(),
            Some(_) => config.paths.log.clone(),
        },
        manifest_dir: config.paths.etc.join("manifests"),
        cluster_dns: vec![cluster_dns],
        cluster_domain: CLUSTER_DOMAIN.into(),
        resolv_conf: resolv_conf(),
        cgroup_root: names.cgroup_root.clone(),
        max_pods: MAX_PODS,
        pod_pids_limit: config.limits.processes,
        swap: config.limits.swap,
        resources: config.resources.clone(),
        own_ports: own_ports(config),
    }
}

/// The nodes' ranges are /24s of one /16.
fn cluster_cidr(pods: IpNet) -> IpNet {
    match pods {
        IpNet::V4(range) if range.prefix_len() > 16 => {
            IpNet::V4(Ipv4Net::new_assert(range.network(), 16).trunc())
        }
        range => range,
    }
}

/// The address of the cluster DNS.
pub fn cluster_dns(services: IpNet) -> Result<IpAddr, Error> {
    services
        .hosts()
        .nth(DNS_ADDRESS - 1)
        .ok_or_else(|| format!("--service-cidr {services} has less than ten addresses").into())
}

/// systemd-resolved's file at the usual place names only itself, which pods cannot reach.
fn resolv_conf() -> PathBuf {
    let behind = Path::new("/run/systemd/resolve/resolv.conf");
    let usual = Path::new("/etc/resolv.conf");
    let stub = std::fs::read_to_string(usual).is_ok_and(|text| text.contains("127.0.0.53"));
    match stub && behind.exists() {
        true => behind.into(),
        false => usual.into(),
    }
}

/// The objects by which pods find this node's DNS.
struct Announcement {
    client: Client,
    node: String,
    cluster_dns: IpAddr,
    address: IpAddr,
}

impl Announcement {
    async fn write(&self) -> Result<(), Error> {
        apply(&self.client, &dns::service(self.cluster_dns)).await?;
        apply(&self.client, &dns::endpoint_slice(&self.node, self.address)).await
    }

    /// Writes them again whenever somebody has deleted them.
    async fn keep(self: Arc<Self>, informers: Informers) {
        let (services, slices) = (informers.get::<Service>(), informers.get::<EndpointSlice>());
        let (mut services, mut slices) = (services.changes(), slices.changes());
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let service = Key::of(&dns::service(self.cluster_dns));
        let slice = Key::of(&dns::endpoint_slice(&self.node, self.address));
        loop {
            match self.write().await {
                Ok(()) => {
                    backoff.reset();
                    tokio::select! {
                        () = gone(&mut services, &service) => {}
                        () = gone(&mut slices, &slice) => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the cluster DNS is not announced");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}

/// Resolves when the object has been deleted, or may have been.
async fn gone<K: Resource<DynamicType = ()>>(changes: &mut Changes<K>, key: &Key) {
    loop {
        match changes.next().await {
            Some(Change::Deleted(object)) if Key::of(&*object) == *key => return,
            Some(Change::Resync) => return,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Whether all that is wanted is there already, whatever else is.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (_, Value::Null) => true,
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| found.get(name).is_some_and(|found| holds(found, value))),
        (Value::Array(found), Value::Array(wanted)) => {
            let pairs = found.iter().zip(wanted);
            found.len() == wanted.len() && pairs.into_iter().all(|(a, b)| holds(a, b))
        }
        (found, wanted) => found == wanted,
    }
}

/// Creates the object, or brings the one that is there to the same content. One that is so already is
/// not written.
async fn apply<K>(client: &Client, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let said =
        |error: kube::Error| -> Error { format!("write {namespace}/{name}: {error}").into() };
    let found = api.get_opt(&name).await.map_err(&said)?;
    let written = match found {
        None => api.create(&PostParams::default(), object).await,
        Some(found) => {
            let json = |object: &K| serde_json::to_value(object).unwrap_or_default();
            if holds(&json(&found), &json(object)) {
                return Ok(());
            }
            let patch = Patch::Merge(object);
            api.patch(&name, &PatchParams::default(), &patch).await
        }
    };
    written.map(drop).map_err(said)
}

fn is_ready(node: &NodeObject) -> bool {
    ready_condition(node).is_some_and(|condition| condition.status == "True")
}

fn ready_condition(node: &NodeObject) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
}

async fn not_ready(nodes: &Api<NodeObject>, name: &str) -> Error {
    let node = nodes.get_opt(name).await.ok().flatten();
    let message = node
        .as_ref()
        .and_then(ready_condition)
        .and_then(|condition| condition.message.clone());
    let message = message.unwrap_or_else(|| "it has not reported".into());
    format!("the node is not ready after {READY_WITHIN:?}: {message}").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_there_is_not_written_again() {
        let found = json!({"a": 1, "ports": [{"port": 53, "protocol": "UDP"}], "more": true});
        for (wanted, want) in [
            (json!({"a": 1, "ports": [{"port": 53}]}), true),
            (json!({"a": 2}), false),
            (json!({"b": 1}), false),
            (json!({"ports": []}), false),
        ] {
            assert_eq!(holds(&found, &wanted), want, "{wanted}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_for_a_while_is_refused() {
        let told = watch::Sender::<kubelet::node::Refused>::default();
        let time = Duration::from_millis(200);
        let mut waits = std::pin::pin!(refused(told.subscribe(), time));
        // Once is nothing yet.
        told.send_modify(|refused| refused.node = Some("failed calling webhook \"w\"".into()));
        tokio::select! {
            why = &mut waits => panic!("{why}"),
            () = tokio::time::sleep(time / 20) => {}
        }
        told.send_modify(|refused| refused.node = None);
        tokio::select! {
            why = &mut waits => panic!("{why}"),
            () = tokio::time::sleep(2 * time) => {}
        }
        told.send_modify(|refused| refused.lease = Some("denied".into()));
        assert_eq!(waits.await, "the API does not take its Lease: denied");
    }

    fn paths(root: Option<&str>) -> Paths {
        let folder = PathBuf::from("/r");
        Paths {
            etc: folder.clone(),
            state: folder.clone(),
            run: folder.clone(),
            log: folder,
            root: root.map(PathBuf::from),
        }
    }

    #[test]
    fn clusters_of_one_machine_do_not_meet() {
        let system = Ranges::of(&paths(None));
        assert_eq!(system.pods.to_string(), "10.42.0.0/24");
        assert_eq!(system.services.to_string(), "10.96.0.0/12");
        let (a, b) = (paths(Some("/a")), paths(Some("/b")));
        assert_ne!(Ranges::of(&a).pods, Ranges::of(&b).pods);
        assert_ne!(Ranges::of(&a).services, Ranges::of(&b).services);
        assert!(system.services.contains(&Ranges::of(&a).services));
        let (a, b) = (Names::of(&a), Names::of(&b));
        assert!(a.bridge.len() <= 15 && a.bridge != b.bridge);
        assert_ne!(a.table, b.table);
    }

    #[test]
    fn ranges_follow_from_one_another() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(cluster_cidr(range("10.42.7.0/24")), range("10.42.0.0/16"));
        assert_eq!(cluster_cidr(range("10.0.0.0/8")), range("10.0.0.0/8"));
        let dns = cluster_dns(range("10.96.0.0/12")).unwrap();
        assert_eq!(dns.to_string(), "10.96.0.10");
        assert!(cluster_dns(range("10.96.0.0/30")).is_err());
    }
}
