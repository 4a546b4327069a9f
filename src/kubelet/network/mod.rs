//! The network of this node's pods: the node's own bridge, or CNI plugins that the user brings.
//!
//! One interface over both, for the kubelet: it asks for a pod's addresses when the pod's namespace is made, and
//! gives them back when it goes. [`PodNetwork::keep`] restores what others undo and tries again what failed.
//! Always true: a failed attach leaves nothing, or something on record that is taken back later; a pod that has its
//! addresses keeps them, across restarts of the daemon.

mod bandwidth;
pub mod bridge;
pub mod cni;
pub mod env;
mod unmet;

use std::{collections::BTreeMap, net::IpAddr, os::fd::BorrowedFd};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::{
    bandwidth::Bandwidth,
    bridge::{
        can_guard, peers,
        ports::{Forward, HostAddress, forwards, host_address},
    },
    unmet::Unmet,
};
use self::{bridge::BridgeNetwork, cni::CniNetwork, unmet::Ipv6Loopback};
use crate::{
    addresses::family::PerFamily,
    causes::causes,
    repair,
    runtime::{Runtime, config::Identity},
};

/// The node's pod network; cheap to clone.
#[derive(Clone, Debug)]
pub enum PodNetwork {
    Bridge(BridgeNetwork),
    Cni(CniNetwork),
}

/// A pod with what it asks of its network.
#[derive(Clone, Copy, Debug)]
pub struct PodRequest<'a> {
    pub identity: &'a Identity,
    pub forwards: &'a [Forward],
    pub bandwidth: Bandwidth,
}

/// What a pod has got.
#[derive(Clone, Debug)]
pub struct Attached {
    pub addresses: PerFamily<IpAddr>,
    pub unmet: Vec<Unmet>,
}

/// Whether pods can get a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Nobody has looked yet.
    Unknown,
    Ready,
    /// Why not.
    NotReady(String),
}

impl PodNetwork {
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        match self {
            Self::Bridge(_) => watch::channel(Readiness::Ready).1,
            Self::Cni(cni) => cni.readiness(),
        }
    }

    /// Gives the namespace its link and addresses. A pod that already has its addresses keeps them.
    pub async fn attach(
        &self,
        pod: &PodRequest<'_>,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, Error> {
        match self {
            Self::Bridge(bridge) => {
                let uid = &pod.identity.uid;
                let addresses = bridge.attach(uid, netns).await?;
                if pod.bandwidth.is_limited() {
                    bridge.shape(uid, netns, pod.bandwidth).await?;
                }
                let loopback = match bridge.serves_ipv6_loopback() {
                    true => Ipv6Loopback::PassedOn,
                    false => Ipv6Loopback::Unserved,
                };
                let unmet = unmet::ports(&addresses, pod.forwards, loopback);
                Ok(Attached { addresses, unmet })
            }
            Self::Cni(cni) => Ok(cni.attach(pod, netns).await?),
        }
    }

    /// Leads the ports of the node that the pod asks for to it, which has its addresses, until it is detached.
    /// Plugins have done so when they were given the pod.
    pub async fn forward(&self, pod_uid: &str, forwards: Vec<Forward>) -> Result<(), Error> {
        match self {
            Self::Bridge(bridge) => Ok(bridge.forward(pod_uid, forwards).await?),
            Self::Cni(_) => Ok(()),
        }
    }

    /// Takes the pod's link and addresses away. A pod that was never attached is fine.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), Error> {
        match self {
            Self::Bridge(bridge) => Ok(bridge.detach(pod_uid).await?),
            Self::Cni(cni) => Ok(cni.detach(pod_uid).await?),
        }
    }

    /// The pod's addresses, if it has any.
    pub async fn addresses(&self, pod_uid: &str) -> Option<PerFamily<IpAddr>> {
        match self {
            Self::Bridge(bridge) => bridge.addresses(pod_uid).await,
            Self::Cni(cni) => cni.addresses(pod_uid),
        }
    }

    /// Takes over from an earlier daemon: the pods in `live` go on, with the ports that they ask for. What others
    /// have is taken back, now or by [`PodNetwork::keep`].
    pub async fn adopt(
        &self,
        live: &[String],
        forwards: BTreeMap<String, Vec<Forward>>,
    ) -> Result<(), Error> {
        match self {
            Self::Bridge(bridge) => Ok(bridge.adopt(live, forwards).await?),
            Self::Cni(cni) => {
                cni.adopt(live);
                Ok(())
            }
        }
    }

    /// Takes all pods but these off the network. Only when nobody keeps it.
    pub async fn detach_all_but(&self, kept: &[String]) -> Result<(), Error> {
        match self {
            Self::Bridge(bridge) => Ok(bridge.adopt(kept, BTreeMap::new()).await?),
            Self::Cni(cni) => Ok(cni.detach_all_but(kept).await?),
        }
    }

    /// Keeps the network as it is wanted, until `shutdown`. `tell` hears the reason and the message of events about
    /// the node.
    pub async fn keep(
        &self,
        runtime: Runtime,
        tell: impl Fn(&'static str, String),
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        match self {
            Self::Bridge(bridge) => {
                let tell = |told: repair::Told<'_, bridge::Error>| {
                    let (reason, message) = repair::event(&told);
                    tell(reason, message);
                };
                Ok(bridge.keep(runtime, tell, shutdown).await?)
            }
            Self::Cni(cni) => {
                let tell = |error: &cni::Error| {
                    let error = causes(error);
                    tracing::warn!(
                        error,
                        "a pod that is gone is still on its network, will retry"
                    );
                    tell("FailedKillPod", format!("Will retry: {error}"));
                };
                cni.keep(tell, shutdown).await;
                Ok(())
            }
        }
    }

    /// Takes all of it away again (for `reset`).
    pub async fn remove(&self) -> Result<(), Error> {
        match self {
            Self::Bridge(bridge) => Ok(bridge.remove().await?),
            Self::Cni(cni) => Ok(cni.detach_all_but(&[]).await?),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bridge(#[from] bridge::Error),
    #[error(transparent)]
    Cni(#[from] cni::Error),
}

impl Error {
    /// Whether it is the network itself that is lacking.
    pub fn is_no_network(&self) -> bool {
        matches!(self, Self::Cni(cni::Error::NotReady(_)))
    }
}
