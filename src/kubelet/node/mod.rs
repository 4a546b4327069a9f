//! The node's own object, Lease and measurements.
//!
//! Owns the Node object's status and `kube-node-lease/<node>`. Called by the kubelet's `run`.

use std::net::IpAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::container::Facts;
use crate::runtime::{Runtime, image::Images};

#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub max_pods: u32,
    pub state_dir: std::path::PathBuf,
    pub pod_cidr: Option<String>,
}

/// Whether the node can run pods; the text says what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    NotReady(String),
}

/// What the host has, read once at start.
pub fn facts() -> std::io::Result<Facts> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Registers the node (or takes over its object), then keeps status and Lease fresh until told to
/// stop. Returns at once from waiting when `health` changes.
pub async fn run(
    _config: Config,
    _client: kube::Client,
    _images: Images,
    _runtime: Runtime,
    _health: watch::Receiver<Health>,
    _shutdown: CancellationToken,
) -> Result<(), super::Error> {
    Err(super::Error::Unsupported("node status"))
}
