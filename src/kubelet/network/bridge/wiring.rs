//! The kernel side of the pod network: bridge and veth pairs. Blocking.
//!
//! Pods have their addresses alone (/32, /128) and a route to each gateway: all their traffic is routed by
//! the host, none is switched between bridge ports. So packets between two pods of one node pass
//! the same hooks as any other, and replies of services find their way back without br_netfilter.
//! The bridge learns nothing and floods nothing: who is where is written down when a pod is wired.
//! What a pod may send at all is `guard.rs`'s. Neither bridge nor pods have an IPv6 link-local address of their
//! own: nobody asks for anybody's hardware address, nor for routers, and a host without one sends no redirects.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use netns::{
    route::{self, Change, Link, Mac, Prefix, Socket, Veth},
    sysctl,
};
use sha2::{Digest, Sha256};

use super::{Bandwidth, guard::Port};
use crate::{
    addresses::family::{OfFamily, PerFamily},
    hex::hex,
};

/// How a link of ours does IPv6: with the addresses that it is given, and no others.
pub const IPV6_SETTINGS: [(&str, &str); 5] = [
    ("disable_ipv6", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    // No link-local address.
    ("addr_gen_mode", "1"),
];
/// The kernel makes an IPv6 address' own route a moment after the address.
const ROUTE_WITHIN: Duration = Duration::from_secs(1);

/// What a pod is wired to, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Wire<'a> {
    pub bridge: &'a Link,
    pub gateways: PerFamily<IpAddr>,
    /// Of the same families, or of one of them.
    pub addresses: PerFamily<IpAddr>,
    pub mtu: u32,
}

/// Makes or takes over the bridge; its hardware address follows from its name. `gateways`: its addresses.
pub fn ensure_bridge(name: &str, gateways: &[Prefix]) -> Result<Link, netns::Error> {
    let mut socket = Socket::open()?;
    match socket.apply(vec![Change::add_bridge(name, mac(name))]) {
        Err(error) if !error.is_present() => return Err(error),
        _ => {}
    }
    let link = socket.link(name)?;
    // Pods reach each other by the way that they came, on purpose.
    sysctl::write(&format!("net/ipv4/conf/{name}/send_redirects"), "0")?;
    let (ipv6, ipv4): (Vec<Prefix>, Vec<Prefix>) = gateways
        .iter()
        .partition(|gateway| gateway.address.is_ipv6());
    if !ipv6.is_empty() {
        set_ipv6(name)?;
        sysctl::write(&format!("net/ipv6/conf/{name}/forwarding"), "1")?;
    }
    let add = |gateway: &Prefix| Change::add_address(link.index, *gateway);
    let mut changes = vec![Change::set_mac(link.index, mac(name))];
    changes.extend(ipv4.iter().map(add));
    changes.push(Change::set_up(link.index));
    // A link that is down has no IPv6 addresses.
    changes.extend(ipv6.iter().map(add));
    socket.apply(changes)?;
    for gateway in ipv6 {
        await_route(&mut socket, Prefix::host(gateway.address))?;
    }
    socket.link(name)
}

/// Readies a link for IPv6 addresses.
pub fn set_ipv6(link: &str) -> Result<(), netns::Error> {
    for (setting, value) in IPV6_SETTINGS {
        sysctl::write(&format!("net/ipv6/conf/{link}/{setting}"), value)?;
    }
    Ok(())
}

/// Whoever looks sooner takes the route for lost.
fn await_route(socket: &mut Socket, to: Prefix) -> Result<(), netns::Error> {
    let deadline = Instant::now() + ROUTE_WITHIN;
    loop {
        let found = socket.route_to(to.address)?;
        if found.is_some_and(|found| found.to == to) || Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Wires a namespace: afterwards `eth0` has the addresses and reaches everything by the gateways,
/// and neither side has to ask for the other's hardware address. On error nothing is left.
pub fn attach(wire: &Wire<'_>, pod_uid: &str, pod: BorrowedFd<'_>) -> Result<(), netns::Error> {
    let name = link_name(pod_uid);
    let (host_mac, pod_mac) = (mac(&name), mac(pod_uid));
    let (bridge, addresses) = (wire.bridge, &wire.addresses);
    let mut host = Socket::open()?;
    if let Ok(link) = host.link(&name) {
        if is_wired(&link, bridge, addresses, pod)? {
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
        mtu: wire.mtu,
        master: Some(bridge.index),
    };
    let mut changes = vec![
        Change::add_veth(&veth),
        Change::set_port(&name, route::Port::Fixed),
    ];
    let neighbour = |address: &IpAddr| Change::add_neighbour(bridge.index, *address, pod_mac);
    changes.extend(addresses.iter().map(neighbour));
    let wired = host
        .apply(changes)
        .and_then(|()| {
            let port = host.link(&name)?;
            host.apply(vec![Change::add_forwarding(port.index, pod_mac)])
        })
        .and_then(|()| netns::namespace::run_in(pod, || configure_pod(wire))?);
    if wired.is_err() {
        let _ = detach(bridge, pod_uid, addresses);
    }
    wired
}

/// Whether the pod is wired already, with these addresses at least.
pub fn has_wire(
    bridge: &Link,
    pod_uid: &str,
    addresses: &PerFamily<IpAddr>,
    pod: BorrowedFd<'_>,
) -> Result<bool, netns::Error> {
    match Socket::open()?.link(&link_name(pod_uid)) {
        Ok(link) => is_wired(&link, bridge, addresses, pod),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_wired(
    link: &Link,
    bridge: &Link,
    addresses: &PerFamily<IpAddr>,
    pod: BorrowedFd<'_>,
) -> Result<bool, netns::Error> {
    if link.master != Some(bridge.index) {
        return Ok(false);
    }
    netns::namespace::run_in(pod, || is_configured(addresses))?
}

/// Has both ends of the pod's wire take packets so large; the host's last, by which one sees that it is done.
pub fn set_mtu(pod_uid: &str, pod: BorrowedFd<'_>, mtu: u32) -> Result<(), netns::Error> {
    let set = |name: &str| {
        let mut socket = Socket::open()?;
        let link = socket.link(name)?.index;
        socket.apply(vec![Change::set_mtu(link, mtu)])
    };
    netns::namespace::run_in(pod, || set("eth0"))??;
    set(&link_name(pod_uid))
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
            let neighbour =
                |address: &IpAddr| Change::add_neighbour(bridge.index, *address, port.mac);
            let mut changes = vec![
                Change::add_forwarding(*index, port.mac),
                Change::set_port(&port.link, route::Port::Fixed),
            ];
            changes.extend(port.addresses.iter().map(neighbour));
            changes
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
pub fn port(bridge: &str, pod_uid: &str, addresses: PerFamily<IpAddr>) -> Port {
    Port {
        link: link_name(pod_uid),
        mac: mac(pod_uid),
        gateway: mac(bridge),
        addresses,
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
fn is_configured(addresses: &PerFamily<IpAddr>) -> Result<bool, netns::Error> {
    let mut socket = Socket::open()?;
    match socket.link("eth0") {
        Ok(eth0) => {
            let found = socket.addresses()?;
            let is_there = |address: &IpAddr| found.contains(&(eth0.index, Prefix::host(*address)));
            Ok(eth0.up && addresses.iter().all(is_there))
        }
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

fn configure_pod(wire: &Wire<'_>) -> Result<(), netns::Error> {
    let mut socket = Socket::open()?;
    let lo = socket.link("lo")?.index;
    let eth0 = socket.link("eth0")?.index;
    if wire.addresses.iter().any(IpAddr::is_ipv6) {
        sysctl::write("net/ipv6/conf/lo/disable_ipv6", "0")?;
        set_ipv6("eth0")?;
    }
    let mut changes = vec![Change::set_up(lo), Change::set_up(eth0)];
    for address in wire.addresses.iter() {
        let Some(gateway) = wire.gateways.of(address.family()) else {
            continue;
        };
        let everywhere = match gateway {
            IpAddr::V4(_) => Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            IpAddr::V6(_) => Prefix::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        changes.extend([
            Change::add_address(eth0, Prefix::host(*address)),
            Change::add_route(eth0, Prefix::host(*gateway), None),
            Change::add_route(eth0, everywhere, Some(*gateway)),
        ]);
        if let Some(mac) = wire.bridge.mac {
            changes.push(Change::add_neighbour(eth0, *gateway, mac));
        }
    }
    socket.apply(changes)
}

/// Removes what [`attach`] made; what is gone already is fine.
pub fn detach(
    bridge: &Link,
    pod_uid: &str,
    addresses: &PerFamily<IpAddr>,
) -> Result<(), netns::Error> {
    let mut socket = Socket::open()?;
    for address in addresses.iter() {
        match socket.apply(vec![Change::delete_neighbour(bridge.index, *address)]) {
            Err(error) if !error.is_absent() => return Err(error),
            _ => {}
        }
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
