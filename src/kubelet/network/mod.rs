//! Wires pods to the node: bridge, veth pair, address, masquerade.
//!
//! Owns the node's bridge, the address records in the state folder and the nf_tables table for
//! masquerade. Called by the kubelet when a pod's namespace is made and when it goes.
//! Always true: an address belongs to one pod at a time, across restarts; a failed attach leaves
//! nothing.

use std::{net::IpAddr, os::fd::BorrowedFd, path::PathBuf};

use ipnet::IpNet;

/// Names are made from `cluster`, so that several nodes can share one network namespace's host.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    pub pod_cidr: IpNet,
    /// At most 15 bytes, e.g. `vetch0`.
    pub bridge: String,
    /// The nf_tables table for masquerade, e.g. `vetch`.
    pub table: String,
    /// Traffic inside these is not masqueraded (the cluster's pod range).
    pub cluster_cidr: IpNet,
}

/// The node's pod network; cheap to clone.
#[derive(Clone, Debug)]
pub struct PodNetwork {}

impl PodNetwork {
    /// Makes or takes over bridge, forwarding and masquerade.
    pub async fn open(_config: Config) -> Result<Self, Error> {
        Err(Error::Exhausted)
    }

    /// The bridge's address: the node as pods see it.
    pub fn gateway(&self) -> IpAddr {
        IpAddr::from([0, 0, 0, 0])
    }

    /// Gives the namespace `eth0`, its address and a default route. A pod that already has its
    /// address keeps it.
    pub async fn attach(&self, _pod_uid: &str, _netns: BorrowedFd<'_>) -> Result<IpAddr, Error> {
        Err(Error::Exhausted)
    }

    /// Removes the pod's link and gives its address back. A pod that was never attached is fine.
    pub async fn detach(&self, _pod_uid: &str) -> Result<(), Error> {
        Err(Error::Exhausted)
    }

    /// The pod's address, if it has one.
    pub async fn address(&self, _pod_uid: &str) -> Option<IpAddr> {
        None
    }

    /// Gives back the addresses and links of pods that are not in `live`.
    pub async fn retain(&self, _live: &[String]) -> Result<(), Error> {
        Err(Error::Exhausted)
    }

    /// Takes bridge and table away again (for `reset`).
    pub async fn remove(&self) -> Result<(), Error> {
        Err(Error::Exhausted)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no free address in the pod range")]
    Exhausted,
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{action}")]
    Netlink {
        action: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
