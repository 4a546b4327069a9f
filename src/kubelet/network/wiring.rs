//! The kernel side of the pod network: bridge, veth pairs, masquerade. Blocking.
//!
//! Pods have their address alone (/32) and a route to the gateway: all their traffic is routed by
//! the host, none is switched between bridge ports. So packets between two pods of one node pass
//! the same hooks as any other, and replies of services find their way back without br_netfilter.
//! The bridge learns nothing and floods nothing: who is where is written down when a pod is wired.
//! What a pod may send at all is `guard.rs`'s.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
};

use ipnet::{IpNet, Ipv4Net};
use netns::{
    nft::{BaseChain, Batch, ChainKind, Family, Hook, Policy, Reg, Rule, Table, Verdict},
    route::{self, Change, Link, Mac, Prefix, Socket, Veth},
    sysctl,
};
use sha2::{Digest, Sha256};

use super::{bandwidth::Bandwidth, guard::Port};
use crate::hex::hex;

/// A packet that a pod sends must not need a larger frame than any link on its way has.
const MTU: u32 = 1500;
const ICMP: u8 = 1;
const ICMP_REDIRECT: u8 = 5;

/// Makes or takes over the bridge; its hardware address follows from its name.
pub fn ensure_bridge(name: &str, gateway: Ipv4Addr, range: Ipv4Net) -> Result<Link, netns::Error> {
    let mut socket = Socket::open()?;
    match socket.apply(vec![Change::add_bridge(name, mac(name))]) {
        Err(error) if !error.is_present() => return Err(error),
        _ => {}
    }
    let link = socket.link(name)?;
    // Pods reach each other by the way that they came, on purpose.
    sysctl::write(&format!("net/ipv4/conf/{name}/send_redirects"), "0")?;
    socket.apply(vec![
        Change::set_mac(link.index, mac(name)),
        Change::add_address(link.index, Prefix::new(gateway.into(), range.prefix_len())),
        Change::set_up(link.index),
    ])?;
    socket.link(name)
}

/// Wires a namespace: afterwards `eth0` has the address and reaches everything by the gateway,
/// and neither side has to ask for the other's hardware address. On error nothing is left.
pub fn attach(
    bridge: &Link,
    gateway: IpAddr,
    pod_uid: &str,
    address: IpAddr,
    pod: BorrowedFd<'_>,
) -> Result<(), netns::Error> {
    let name = link_name(pod_uid);
    let (host_mac, pod_mac) = (mac(&name), mac(pod_uid));
    let mut host = Socket::open()?;
    if let Ok(link) = host.link(&name) {
        let wired = link.master == Some(bridge.index)
            && netns::namespace::run_in(pod, || is_configured(address))??;
        if wired {
            return Ok(()); // the daemon was restarted, the pod was not
        }
        // Left over from an attempt that was cut short, or from a bridge that is no more.
        remove_link(&mut host, &name)?;
    }
    let veth = Veth {
        name: &name,
        peer_name: "eth0",
        peer_netns: pod,
        mac: host_mac,
        peer_mac: pod_mac,
        mtu: MTU,
        master: Some(bridge.index),
    };
    let wired = host
        .apply(vec![
            Change::add_veth(&veth),
            Change::set_port(&name, route::Port::Fixed),
            Change::add_neighbour(bridge.index, address, pod_mac),
        ])
        .and_then(|()| {
            let port = host.link(&name)?;
            host.apply(vec![Change::add_forwarding(port.index, pod_mac)])
        })
        .and_then(|()| netns::namespace::run_in(pod, || configure_pod(bridge, gateway, address))?);
    if wired.is_err() {
        let _ = detach(bridge, pod_uid, address);
    }
    wired
}

/// Brings the wires of these pods, as far as they are there, to what [`attach`] makes of them today:
/// pods outlive the daemon that wired them.
pub fn adopt(bridge: &Link, ports: &[Port]) -> Result<(), netns::Error> {
    let mut host = Socket::open()?;
    let links = host.links()?;
    let wired: HashMap<&str, u32> = links
        .iter()
        .filter(|link| link.master == Some(bridge.index))
        .map(|link| (link.name.as_str(), link.index))
        .collect();
    let changes = ports
        .iter()
        .filter_map(|port| Some((port, wired.get(port.link.as_str())?)))
        .flat_map(|(port, index)| {
            [
                Change::add_forwarding(*index, port.mac),
                Change::set_port(&port.link, route::Port::Fixed),
                Change::add_neighbour(bridge.index, port.address.into(), port.mac),
            ]
        })
        .collect();
    host.apply(changes)
}

/// Connects wires with the bridge again that have lost it, or lie down.
pub fn reconnect(bridge: &Link, ports: &[Port]) -> Result<(), netns::Error> {
    let masters = ports
        .iter()
        .map(|port| Change::set_master(&port.link, bridge.index));
    Socket::open()?.apply(masters.collect())?;
    adopt(bridge, ports)
}

/// The pod's end of its wire, as [`attach`] makes it.
pub fn port(bridge: &str, pod_uid: &str, address: Ipv4Addr) -> Port {
    Port {
        link: link_name(pod_uid),
        mac: mac(pod_uid),
        gateway: mac(bridge),
        address,
    }
}

/// Limits what goes to the pod and what comes from it, each where it leaves the end of the pod's wire that it
/// comes from.
pub fn shape(pod_uid: &str, pod: BorrowedFd<'_>, bandwidth: Bandwidth) -> Result<(), netns::Error> {
    let limit = |name: &str, bits: Option<u64>| match bits {
        None => Ok(()),
        Some(bits) => {
            let mut socket = Socket::open()?;
            let link = socket.link(name)?.index;
            socket.apply(vec![Change::limit_rate(link, bits)])
        }
    };
    limit(&link_name(pod_uid), bandwidth.ingress)?;
    netns::namespace::run_in(pod, || limit("eth0", bandwidth.egress))?
}

/// Whether [`configure_pod`] has been here: it sends all its changes at once.
fn is_configured(address: IpAddr) -> Result<bool, netns::Error> {
    let mut socket = Socket::open()?;
    match socket.link("eth0") {
        Ok(eth0) => {
            let wanted = (eth0.index, Prefix::host(address));
            Ok(eth0.up && socket.addresses()?.contains(&wanted))
        }
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

fn configure_pod(bridge: &Link, gateway: IpAddr, address: IpAddr) -> Result<(), netns::Error> {
    let mut socket = Socket::open()?;
    let lo = socket.link("lo")?.index;
    let eth0 = socket.link("eth0")?.index;
    let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let mut changes = vec![
        Change::set_up(lo),
        Change::set_up(eth0),
        Change::add_address(eth0, Prefix::host(address)),
        Change::add_route(eth0, Prefix::host(gateway), None),
        Change::add_route(eth0, everywhere, Some(gateway)),
    ];
    if let Some(mac) = bridge.mac {
        changes.push(Change::add_neighbour(eth0, gateway, mac));
    }
    socket.apply(changes)
}

/// Removes what [`attach`] made; what is gone already is fine.
pub fn detach(bridge: &Link, pod_uid: &str, address: IpAddr) -> Result<(), netns::Error> {
    let mut socket = Socket::open()?;
    match socket.apply(vec![Change::delete_neighbour(bridge.index, address)]) {
        Err(error) if !error.is_absent() => return Err(error),
        _ => {}
    }
    remove_link(&mut socket, &link_name(pod_uid))
}

pub fn remove_bridge(name: &str) -> Result<(), netns::Error> {
    remove_link(&mut Socket::open()?, name)
}

fn remove_link(socket: &mut Socket, name: &str) -> Result<(), netns::Error> {
    match socket.apply(vec![Change::delete_link(name)]) {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// Masquerades what pods send out of the cluster.
/// Everything is in a table of our own.
pub fn masquerade(table: &str, bridge: &str, pods: IpNet, cluster: IpNet) -> Batch {
    let table = Table::new(Family::Ip, table);
    let base = |kind, hook, priority| BaseChain {
        kind,
        hook,
        priority,
        policy: Policy::Accept,
    };
    let mut batch = Batch::new();
    batch
        .remove_table(&table)
        .add_table(&table)
        .add_base_chain(
            &table,
            "postrouting",
            base(ChainKind::Nat, Hook::Postrouting, 100),
        )
        .add_rule(
            &table,
            "postrouting",
            Rule::new()
                .source_in(pods.network(), pods.prefix_len(), true)
                .destination_in(cluster.network(), cluster.prefix_len(), false)
                .not_output_link(bridge)
                .masquerade(),
        )
        // Pods reach each other through the gateway on purpose; redirects would only confuse them.
        .add_base_chain(&table, "output", base(ChainKind::Filter, Hook::Output, 0))
        .add_rule(
            &table,
            "output",
            Rule::new()
                .output_link(bridge)
                .protocol(Reg(0))
                .equal(Reg(0), &[ICMP])
                .icmp_type(Reg(0))
                .equal(Reg(0), &[ICMP_REDIRECT])
                .verdict(&Verdict::Drop),
        );
    batch
}

/// The host's end of a pod's veth pair: 15 bytes at most, the same for the same pod.
pub fn link_name(pod_uid: &str) -> String {
    let digest = Sha256::digest(pod_uid.as_bytes());
    format!("veth{}", hex(&digest[..5]))
}

/// A hardware address of the locally administered kind that follows from `seed`.
pub fn mac(seed: &str) -> Mac {
    let digest = Sha256::digest(seed.as_bytes());
    [2, digest[6], digest[7], digest[8], digest[9], digest[10]]
}
