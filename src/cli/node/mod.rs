//! This machine as a node: runtime, pod network, services, DNS and kubelet, put together.
//!
//! Called by the daemon after the API server answers, and by `reset` without one. Several clusters
//! may live on one machine: what must be unique on a host is derived from the root folder.

mod identity;
mod names;
mod network;
mod readiness;
mod removal;
mod settings;
mod surroundings;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, Client};
use tokio::{net::TcpListener, sync::watch};

pub use self::{
    identity::Identity,
    names::{Ranges, cgroup_below, cluster_cidr, cluster_dns, gateway},
    readiness::Readiness,
    removal::{encrypts, recorded_cni, recorded_name, recorded_services, remove},
    settings::{VXLAN_PORT, WIREGUARD_PORT, dns_addresses},
};
use self::{
    names::Names,
    readiness::{READY_WITHIN, REFUSED_FOR, lacking, not_ready, reached, refused},
    removal::Recorded,
    settings::{
        kubelet_config, own, policy_config, proxy_config, resolv_conf, runtime_config, tunnels,
    },
};
use super::{Error, paths::Paths};
use crate::{
    addresses::family::PerFamily,
    announcing, dns,
    kubelet::{
        self,
        container::SwapBehavior,
        network::{PodNetwork, cni::Folders, peers},
        node::Description,
        settings::ResourceSettings,
    },
    network_policy::Policies,
    proxy,
    runtime::{Runtime, image::Images},
    served::Served,
    supervision::{Parts, Policy},
};

const CLUSTER_DOMAIN: &str = "cluster.local";
const DNS_PORT: u16 = 53;
pub const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// All that differs between nodes.
#[derive(Clone, Debug)]
pub struct Config {
    pub paths: Paths,
    pub name: String,
    pub addresses: PerFamily<IpAddr>,
    pub pod_cidrs: PerFamily<IpNet>,
    pub services: PerFamily<IpNet>,
    /// Where the API server listens on this machine; `None` where none does.
    pub api_port: Option<u16>,
    pub kubelet_port: u16,
    pub limits: PodLimits,
    pub resources: ResourceSettings,
    /// Rather than others.
    pub enforces_policies: bool,
    /// Plugins that make the pods' network, rather than we.
    pub cni: Option<Folders>,
    pub description: Description,
}

/// What the node gives to every pod alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodLimits {
    pub swap: SwapBehavior,
    pub processes: Option<NonZeroU32>,
}

/// A node that runs.
pub struct Node {
    config: kubelet::Config,
    deps: kubelet::Deps,
    parts: Parts,
}

impl Node {
    /// Starts everything, as whom `identity` says; see [`Node::ready`] for when pods can run.
    pub async fn start(
        mut config: Config,
        identity: Identity,
        images: Images,
        parts: &Parts,
    ) -> Result<Self, Error> {
        let names = Names::of(&config.paths);
        let listener = kubelet::listen(config.kubelet_port)?;
        config.kubelet_port = listener.local_addr()?.port();
        let runtime = Runtime::open(runtime_config(&config.paths, &names)).await?;
        if let Some(clash) = surroundings::clash(&config, &names)? {
            // A node that ran so far goes on as it did.
            match recorded_name(&config.paths)? {
                None => return Err(clash.into()),
                Some(_) => tracing::warn!("{clash}"),
            }
        }
        let before = Recorded::load(&config.paths)?;
        network::leave_other(&config, &names, &runtime, before.as_ref()).await?;
        Recorded::save(&config)?;
        let network = network::open(&config, &names).await?;
        let dns_addresses = dns_addresses(&config)?;
        let cluster_dns = cluster_dns(&config.services)?;
        let parts = parts.group();
        let place = identity.place;
        let informers = |owner, client| place.informers(owner, client, parts.clone());
        let watching = informers("kube-proxy", identity.proxy);
        let served = Served::default();
        parts.start("part/kube-proxy", Policy::Restart, {
            let (watching, config) = (watching.clone(), proxy_config(&config, &names));
            let served = served.clone();
            move |shutdown| proxy::run(watching.clone(), config.clone(), served.clone(), shutdown)
        });
        // How pods of other nodes are reached is the plugins' business where they make the network.
        if let PodNetwork::Bridge(bridge) = &network {
            parts.start("part/pod-routes", Policy::Restart, {
                let (watching, node, own) =
                    (watching.clone(), identity.kubelet.clone(), own(&config));
                let (tunnels, ways) = (tunnels(&config, &names), bridge.to_peers());
                move |shutdown| {
                    let (watching, node, own) = (watching.clone(), node.clone(), own.clone());
                    peers::run(watching, node, own, tunnels.clone(), ways.clone(), shutdown)
                }
            });
        }
        parts.start("part/load-balancer-addresses", Policy::Restart, {
            let watching = watching.clone();
            let announcing = announcing::Config {
                node: config.name.clone(),
                addresses: config.addresses.iter().copied().collect(),
                client: identity.kubelet.clone(),
            };
            move |shutdown| announcing::run(watching.clone(), announcing.clone(), shutdown)
        });
        let policies = policy_config(&config, &names, dns_addresses);
        let policies = match config.enforces_policies {
            true => Policies::new(policies),
            false => Policies::disabled(policies),
        };
        parts.start("part/network-policy", Policy::Restart, {
            let (watching, policies) = (watching.clone(), policies.clone());
            move |shutdown| policies.clone().run(watching.clone(), shutdown)
        });
        let resolver = dns::Config {
            listen: dns_addresses
                .iter()
                .map(|address| SocketAddr::new(*address, DNS_PORT))
                .collect(),
            domain: CLUSTER_DOMAIN.into(),
            clients: dns_addresses
                .iter()
                .chain(config.addresses.iter())
                .chain(&LOOPBACK)
                .map(|address| IpNet::from(*address))
                .chain(config.pod_cidrs.iter().map(cluster_cidr))
                .collect(),
            resolv_conf: resolv_conf(),
        };
        parts.start("part/cluster-dns", Policy::Restart, move |shutdown| {
            dns::run(watching.clone(), resolver.clone(), shutdown)
        });

        let watching = informers("local-volumes", identity.local_volumes);
        let (name, folders) = (config.name.clone(), config.paths.volumes());
        parts.start("part/local-volumes", Policy::Restart, move |shutdown| {
            let (watching, name, folders) = (watching.clone(), name.clone(), folders.clone());
            kubelet::local_volumes::run(watching, name, folders, shutdown)
        });

        let deps = kubelet::Deps {
            informers: informers("kubelet", identity.kubelet),
            runtime,
            images,
            network,
            policies,
            served,
            server_tls: identity.serving,
            clients: identity.clients,
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
            ready = reached(&nodes, &self.config.node) => ready.map(|()| Readiness::Ready),
            failure = self.parts.failed() => Err(failure.into()),
            why = refused(self.deps.refused.subscribe(), REFUSED_FOR) => Ok(Readiness::Refused(why)),
            why = lacking(self.deps.network.readiness(), REFUSED_FOR) => Ok(Readiness::NoNetwork(why)),
            () = tokio::time::sleep(READY_WITHIN) => Err(not_ready(&nodes, &self.config.node).await),
        }
    }

    /// Waits until the node is Ready, however long that takes.
    pub async fn ready_at_last(&self, client: Client) -> Result<(), Error> {
        reached(&Api::all(client), &self.config.node).await
    }

    /// Resolves when one of the node's parts has failed before it came up.
    pub async fn failed(&self) -> Error {
        self.parts.failed().await.into()
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
