//! The node's agent: runs the pods that the API (or the manifest folder) gives this node.
//!
//! Owns pods' lives on this node: volumes, network, containers, probes, status. Knows the API and
//! the runtime; knows no store and no controller.
//! Always true:
//! - A pod's UID has one worker; termination is one-way.
//! - A pod's object goes from the API only after its processes, mounts and address are gone.
//! - A restart of the daemon changes nothing for pods that run.

pub mod container;
pub mod events;
mod images;
mod logs;
pub mod network;
pub mod node;
pub mod pod;
pub mod probe;
mod reporter;
pub mod server;
mod sources;
mod statics;
pub mod volumes;

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::{
    informer::Informers,
    runtime::{Runtime, image::Images},
};

/// All that the kubelet is told about its node.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    /// The node's own addresses, the first one is what pods with host network report.
    pub addresses: Vec<IpAddr>,
    /// Port of the kubelet's own API.
    pub port: u16,
    /// This node's range of pod addresses.
    pub pod_cidr: ipnet::IpNet,
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
}

/// What the kubelet works with.
#[derive(Clone)]
pub struct Deps {
    /// With the node's own rights (`system:node:<name>`); `Informers::client` for writing.
    pub informers: Informers,
    pub runtime: Runtime,
    pub images: Images,
    pub network: network::PodNetwork,
    /// For the kubelet's own API: asks for client certificates.
    pub server_tls: Arc<rustls::ServerConfig>,
}

/// Where others in the kubelet look up this node's pods.
pub trait Pods: Send + Sync {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    fn pods(&self) -> Vec<Arc<Pod>>;
}

/// Runs until told to stop; pods go on without it.
pub async fn run(_config: Config, _deps: Deps, _shutdown: CancellationToken) -> Result<(), Error> {
    Err(Error::Unsupported("kubelet"))
}

/// Stops and removes all pods of this node and what they use, without a word to the API. Only when
/// no kubelet runs.
pub async fn remove_pods(_config: &Config, deps: &Deps) -> Result<(), Error> {
    for pod in deps.runtime.pods().await {
        deps.runtime.remove_pod(&pod.config.identity.uid).await?;
    }
    Ok(())
}

/// Why the kubelet cannot go on at all. What concerns one pod is an event and a status instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    #[error("runtime")]
    Runtime(#[from] crate::runtime::Error),
}
