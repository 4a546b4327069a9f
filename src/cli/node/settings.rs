//! What each part of the node is told, from what differs between nodes.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    CLUSTER_DOMAIN, Config, DNS_PORT,
    names::{Names, cluster_cidr, gateway},
};
use crate::{
    addresses::family::PerFamily,
    cli::{Error, paths::Paths},
    kubelet::{
        self,
        network::{bridge, cni, peers},
    },
    network_policy,
    own_ports::{OwnPort, OwnPorts, TCP, UDP},
    proxy, runtime,
};

const MAX_PODS: u32 = 110;
/// The kernel's own choice.
pub const VXLAN_PORT: u16 = 8472;
/// Of the encrypted tunnel; not 51820, which tunnels of the machine's own mostly have.
pub const WIREGUARD_PORT: u16 = 51871;

pub(super) fn runtime_config(paths: &Paths, names: &Names) -> runtime::Config {
    runtime::Config {
        state_dir: paths.state.join("runtime"),
        run_dir: paths.runtime(),
        cgroup_root: names.cgroup_root.clone(),
    }
}

/// What is on record of the pods' network.
pub(super) fn network_folder(paths: &Paths) -> PathBuf {
    paths.state.join("network")
}

pub(super) fn bridge_config(config: &Config, names: &Names) -> bridge::Config {
    bridge::Config {
        state_dir: network_folder(&config.paths),
        pod_cidrs: config.pod_cidrs,
        bridge: names.bridge.clone(),
        table: names.table.clone(),
        cluster_cidrs: config.pod_cidrs.map(cluster_cidr),
        own_ports: own_ports(config),
    }
}

/// Of the network by CNI plugins in these folders.
pub(super) fn cni_config(config: &Config, folders: cni::Folders) -> cni::Config {
    cni::Config {
        folders,
        state_dir: config.paths.state.join("network/cni"),
        netns_dir: config.paths.run.join("netns"),
        ranges: config.pod_cidrs,
    }
}

/// Where this node's DNS listens: at the first addresses of its ranges of pods, which are its bridge's, or at its
/// own, where that network is others'.
pub fn dns_addresses(config: &Config) -> Result<PerFamily<IpAddr>, Error> {
    match config.cni {
        Some(_) => Ok(config.addresses),
        None => config.pod_cidrs.try_map(|range| {
            gateway(range).ok_or_else(|| format!("--pod-cidr {range} has no address").into())
        }),
    }
}

/// This node among the others.
pub(super) fn own(config: &Config) -> peers::Own {
    peers::Own {
        name: config.name.clone(),
        addresses: config.addresses,
        ranges: config.pod_cidrs,
        clusters: config.pod_cidrs.map(cluster_cidr),
    }
}

/// The tunnels to other machines.
pub(super) fn tunnels(config: &Config, names: &Names) -> peers::Config {
    peers::Config {
        tunnel: tunnel(config, names),
        wireguard: peers::WireGuardConfig {
            link: format!("{}w", names.bridge),
            port: WIREGUARD_PORT,
            table: format!("{}-wireguard", names.table),
            bridge: names.bridge.clone(),
            folder: network_folder(&config.paths),
        },
    }
}

/// The tunnel to machines behind routers. Its number follows from the range of services: clusters below other
/// roots on the same machines have others.
fn tunnel(config: &Config, names: &Names) -> peers::TunnelConfig {
    let digest = Sha256::digest(config.services.to_string());
    let id = u32::from_be_bytes([0, digest[0], digest[1], digest[2]]);
    peers::TunnelConfig {
        link: format!("{}x", names.bridge),
        vxlan: netns::route::Vxlan {
            id: id.max(1),
            port: VXLAN_PORT,
            local: None,
        },
        table: format!("{}-tunnel", names.table),
        bridge: names.bridge.clone(),
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
    let listening: Vec<IpAddr> = { dns_addresses(config) }
        .iter()
        .flat_map(PerFamily::iter)
        .copied()
        .collect();
    let dns = listening.into_iter().flat_map(|address| {
        [TCP, UDP].map(|protocol| own(Some(address), protocol, DNS_PORT, "cluster DNS"))
    });
    let api = config.api_port;
    let api = api.map(|port| own(None, TCP, port, "the API server"));
    OwnPorts::new(
        [
            own(None, TCP, config.kubelet_port, "the kubelet"),
            own(None, UDP, VXLAN_PORT, "the tunnel between machines"),
            own(
                None,
                UDP,
                WIREGUARD_PORT,
                "the encrypted tunnel between machines",
            ),
            own(
                Some(kubelet::HEALTH.0),
                TCP,
                kubelet::HEALTH.1,
                "the kubelet's health checks",
            ),
        ]
        .into_iter()
        .chain(api)
        .chain(dns),
    )
}

pub(super) fn proxy_config(config: &Config, names: &Names) -> proxy::Config {
    // Plugins may give these addresses to pods.
    let bridge = config.pod_cidrs.iter().filter_map(gateway);
    let bridge = bridge.filter(|_| config.cni.is_none());
    proxy::Config {
        table: names.proxy_table.clone(),
        node: config.name.clone(),
        cluster_cidrs: config.pod_cidrs.map(cluster_cidr),
        services: config.services,
        service_link: config.cni.is_none().then(|| names.bridge.clone()),
        mark: proxy::DEFAULT_MARK,
        addresses: config.addresses.iter().copied().chain(bridge).collect(),
        own_ports: own_ports(config),
    }
}

pub(super) fn policy_config(
    config: &Config,
    names: &Names,
    dns: PerFamily<IpAddr>,
) -> network_policy::Config {
    network_policy::Config {
        table: names.policy_table.clone(),
        node: config.name.clone(),
        dns,
    }
}

pub(super) fn kubelet_config(
    config: &Config,
    names: &Names,
    cluster_dns: PerFamily<IpAddr>,
) -> kubelet::Config {
    kubelet::Config {
        node: config.name.clone(),
        addresses: config.addresses.iter().copied().collect(),
        port: config.kubelet_port,
        pod_cidrs: config.pod_cidrs,
        state_dir: config.paths.state.clone(),
        log_dir: match config.paths.root {
            None => "/var/log".into(),
            Some(_) => config.paths.log.clone(),
        },
        manifest_dir: config.paths.etc.join("manifests"),
        cluster_dns: cluster_dns.iter().copied().collect(),
        cluster_domain: CLUSTER_DOMAIN.into(),
        resolv_conf: resolv_conf(),
        cgroup_root: names.cgroup_root.clone(),
        max_pods: MAX_PODS,
        pod_pids_limit: config.limits.processes,
        swap: config.limits.swap,
        resources: config.resources.clone(),
        description: config.description.clone(),
        dns: match config.cni {
            None => kubelet::node::DnsAt::Range,
            Some(_) => kubelet::node::DnsAt::Node,
        },
        own_ports: own_ports(config),
    }
}

/// systemd-resolved's file at the usual place names only itself, which pods cannot reach.
pub(super) fn resolv_conf() -> PathBuf {
    let behind = Path::new("/run/systemd/resolve/resolv.conf");
    let usual = Path::new("/etc/resolv.conf");
    let stub = std::fs::read_to_string(usual).is_ok_and(|text| text.contains("127.0.0.53"));
    match stub && behind.exists() {
        true => behind.into(),
        false => usual.into(),
    }
}
