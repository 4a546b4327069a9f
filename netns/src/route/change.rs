//! What can be changed in a namespace, each as one message, made by rtnetlink's builders.

use std::{
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo},
    link::{InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use rtnetlink::{
    LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, LinkWireguard,
    RouteMessageBuilder, packet_core::Emitable,
};

use super::{Mac, Prefix};
use crate::wire::{self, Attrs, Message};

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
/// Whose routes those of [`RouteKind::Via`] and [`RouteKind::Tunnel`] are: a number that nobody else is known to use.
pub const VIA_PROTOCOL: u8 = 86;
/// Which of several IPv6 routes to the same destination counts: the kernel's own for an address' network has
/// this.
const CONNECTED_V6: u32 = 256;
/// The routing table of what is this machine's own.
const LOCAL_TABLE: u8 = libc::RT_TABLE_LOCAL;

/// Which of the groups 01:80:c2:00:00:00 to 0f a port treats as others: all but the one of pause frames,
/// which every bridge drops.
const ALL_GROUPS: u16 = !(1 << 1);

/// A veth pair to be made: one end here, the other in a namespace given by descriptor.
#[derive(Debug)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub peer_name: &'a str,
    pub peer_netns: BorrowedFd<'a>,
    pub mac: Mac,
    pub peer_mac: Mac,
    pub mtu: u32,
    /// Bridge that this end becomes a port of.
    pub master: Option<u32>,
}

/// How a bridge treats one of its ports. All may have a frame sent back by where it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The bridge learns which hardware addresses are behind it, and floods what it does not know.
    Learning,
    /// Nothing is learned and nothing is flooded: frames come to the port by
    /// [`Change::add_forwarding`] alone, and from it with those sender addresses alone. Frames for the groups
    /// of the bridge's own protocols (spanning tree, LLDP and others) are frames like others: the bridge
    /// would take some of them past all rules.
    Fixed,
}

impl Port {
    /// [`Port::Fixed`] only if every setting of it is there, as far as this kernel knows it.
    pub(super) fn parse(settings: &[u8]) -> Self {
        const MODE: u16 = 4;
        const LEARNING: u16 = 8;
        const UNICAST_FLOOD: u16 = 9;
        const MULTICAST_FLOOD: u16 = 27;
        const BROADCAST_FLOOD: u16 = 30;
        const GROUPS: u16 = 31;
        const LOCKED: u16 = 39;
        let byte = |kind| wire::attribute(settings, kind)?.first().copied();
        let is = |kind, value| byte(kind) == Some(value);
        let groups = wire::attribute(settings, GROUPS);
        let fixed = is(MODE, 1)
            && [LEARNING, UNICAST_FLOOD, MULTICAST_FLOOD, BROADCAST_FLOOD]
                .iter()
                .all(|kind| is(*kind, 0))
            && groups == Some(&ALL_GROUPS.to_ne_bytes()[..])
            && byte(LOCKED).unwrap_or(1) == 1;
        match fixed {
            true => Self::Fixed,
            false => Self::Learning,
        }
    }
}

/// What the two ends of a VXLAN have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// 24 bits.
    pub id: u32,
    pub port: u16,
    /// The machines' addresses are IPv6 ones, and this is this machine's. `None`: they are IPv4 ones.
    pub local: Option<Ipv6Addr>,
}

impl Vxlan {
    pub(super) fn parse(settings: &[u8]) -> Option<Self> {
        const ID: u16 = 1;
        const PORT: u16 = 15;
        const LOCAL6: u16 = 17;
        let port = wire::attribute(settings, PORT)?;
        let local = wire::attribute(settings, LOCAL6);
        Some(Self {
            id: wire::u32_at(wire::attribute(settings, ID)?, 0)?,
            port: u16::from_be_bytes(port.get(..2)?.try_into().ok()?),
            local: local.and_then(|bytes| Some(<[u8; 16]>::try_from(bytes).ok()?.into())),
        })
    }
}

/// A route that shall be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedRoute {
    pub to: Prefix,
    pub link: u32,
    pub kind: RouteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// The destination is on the link itself.
    Link,
    /// As the kernel makes them for an address that a link gets: to its network, with that address as
    /// the sender's,
    Connected(IpAddr),
    /// and to the address itself, which is this machine's.
    Local,
    /// By another machine on the link, whose network need not be known. It bears [`VIA_PROTOCOL`], by which
    /// it is found again.
    Via(IpAddr),
    /// By a link that knows itself where packets go. It bears [`VIA_PROTOCOL`], too.
    Tunnel,
}

/// One change, ready to be sent.
#[derive(Clone, Debug)]
pub struct Change(Message);

impl Change {
    fn new(kind: u16, flags: i32, message: &impl Emitable, what: String) -> Self {
        Self(Message::emit(kind, flags, message, what))
    }

    fn set_link(link: LinkMessageBuilder<LinkUnspec>, what: String) -> Self {
        Self::new(libc::RTM_NEWLINK, 0, &link.build(), what)
    }

    pub(super) fn into_message(self) -> Message {
        self.0
    }

    /// A bridge with this hardware address, so that it does not follow its ports'. It stays down
    /// until it has its address.
    pub fn add_bridge(name: &str, mac: Mac) -> Self {
        let bridge = LinkBridge::new(name).down().address(mac.to_vec()).build();
        let what = format!("add the bridge {name}");
        Self::new(libc::RTM_NEWLINK, CREATE, &bridge, what)
    }

    /// A VXLAN link: frames to a hardware address go, in UDP packets to that port, where
    /// [`Change::add_tunnel_entry`] says, and nowhere else. It stays down until it has its address.
    pub fn add_vxlan(name: &str, vxlan: Vxlan, mac: Mac, mtu: u32) -> Self {
        let mut link = LinkVxlan::new(name, vxlan.id)
            .port(vxlan.port)
            .learning(false)
            .address(mac.to_vec())
            .mtu(mtu)
            .down();
        if let Some(local) = vxlan.local {
            link = link.local6(local);
        }
        let link = link.build();
        let what = format!("add the VXLAN link {name}");
        Self::new(libc::RTM_NEWLINK, CREATE, &link, what)
    }

    /// A WireGuard link, without a key and without peers. It stays down until it has its address. `EOPNOTSUPP`: this
    /// kernel has none.
    pub fn add_wireguard(name: &str, mtu: u32) -> Self {
        let link = LinkWireguard::new(name).mtu(mtu).down().build();
        let what = format!("add the WireGuard link {name}");
        Self::new(libc::RTM_NEWLINK, CREATE, &link, what)
    }

    /// Idempotent: frames to this hardware address leave the VXLAN link for that machine.
    pub fn add_tunnel_entry(index: u32, mac: Mac, machine: IpAddr) -> Self {
        let mut message = tunnel_entry(index, mac);
        let machine = NeighbourAttribute::Destination(machine.into());
        message.attributes.push(machine);
        let what = format!("add the tunnel entry of link {index}");
        Self::new(libc::RTM_NEWNEIGH, REPLACE, &message, what)
    }

    pub fn delete_tunnel_entry(index: u32, mac: Mac) -> Self {
        let what = format!("delete the tunnel entry of link {index}");
        Self::new(libc::RTM_DELNEIGH, 0, &tunnel_entry(index, mac), what)
    }

    pub fn set_mtu(index: u32, mtu: u32) -> Self {
        let link = LinkUnspec::new_with_index(index).mtu(mtu);
        Self::set_link(link, format!("set the MTU of link {index} to {mtu}"))
    }

    /// This end comes up at once; the peer, which never exists outside its own namespace, must be
    /// set up there.
    pub fn add_veth(veth: &Veth<'_>) -> Self {
        let peer = LinkUnspec::new_with_name(veth.peer_name)
            .address(veth.peer_mac.to_vec())
            .mtu(veth.mtu)
            .setns_by_fd(veth.peer_netns.as_raw_fd())
            .build();
        let mut pair = LinkVeth::new(veth.name, veth.peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(veth.mac.to_vec())
            .mtu(veth.mtu)
            .up();
        if let Some(master) = veth.master {
            pair = pair.controller(master);
        }
        let what = format!("add the veth pair {} and {}", veth.name, veth.peer_name);
        Self::new(libc::RTM_NEWLINK, CREATE, &pair.build(), what)
    }

    /// How a bridge treats its port. By name, so that it can follow the link's creation in one
    /// datagram.
    pub fn set_port(name: &str, port: Port) -> Self {
        let mut settings = vec![InfoBridgePort::HairpinMode(true)];
        if port == Port::Fixed {
            settings.extend([
                InfoBridgePort::Learning(false),
                InfoBridgePort::UnicastFlood(false),
                InfoBridgePort::MulticastFlood(false),
                InfoBridgePort::BroadcastFlood(false),
                // Kernels before 5.18 pass over it.
                InfoBridgePort::Locked(true),
                InfoBridgePort::GroupFwdMask(ALL_GROUPS),
            ]);
        }
        let link = LinkUnspec::new_with_name(name)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(settings));
        Self::set_link(link, format!("set the bridge port {name}"))
    }

    /// Idempotent: the bridge that the link is a port of sends frames for this hardware address to
    /// it, for as long as the link is its port.
    pub fn add_forwarding(index: u32, mac: Mac) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        let what = format!("add the forwarding entry of the bridge port {index}");
        Self::new(libc::RTM_NEWNEIGH, REPLACE, &message, what)
    }

    pub fn set_up(index: u32) -> Self {
        let link = LinkUnspec::new_with_index(index).up();
        Self::set_link(link, format!("set link {index} up"))
    }

    /// As if its cable was pulled: the other end of a veth pair loses its carrier.
    pub fn set_down(name: &str) -> Self {
        let link = LinkUnspec::new_with_name(name).down();
        Self::set_link(link, format!("set the link {name} down"))
    }

    /// Makes the link a port of the bridge `master`, and sets it up.
    pub fn set_master(name: &str, master: u32) -> Self {
        let link = LinkUnspec::new_with_name(name).controller(master).up();
        Self::set_link(
            link,
            format!("make the link {name} a port of link {master}"),
        )
    }

    pub fn set_mac(index: u32, mac: Mac) -> Self {
        let link = LinkUnspec::new_with_index(index).address(mac.to_vec());
        Self::set_link(link, format!("set the hardware address of link {index}"))
    }

    pub fn delete_link(name: &str) -> Self {
        let link = LinkUnspec::new_with_name(name).build();
        let what = format!("delete the link {name}");
        Self::new(libc::RTM_DELLINK, 0, &link, what)
    }

    /// Idempotent: an address that is there stays.
    pub fn add_address(index: u32, prefix: Prefix) -> Self {
        let message = address(index, prefix);
        let what = format!("add the address {prefix} to link {index}");
        Self::new(libc::RTM_NEWADDR, REPLACE, &message, what)
    }

    /// As [`Change::add_address`], but the kernel itself takes it away after that many seconds, or up to one more,
    /// whatever becomes of this program; each further time counts anew. This machine sends nothing from it by itself.
    pub fn lend_address(index: u32, prefix: Prefix, seconds: u32) -> Self {
        let mut message = address(index, prefix);
        let mut lifetime = CacheInfo::default();
        // One that is not preferred is no sender's.
        (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, seconds);
        message
            .attributes
            .push(AddressAttribute::CacheInfo(lifetime));
        let what = format!("lend the address {prefix} to link {index}");
        Self::new(libc::RTM_NEWADDR, REPLACE, &message, what)
    }

    pub fn delete_address(index: u32, prefix: Prefix) -> Self {
        let what = format!("delete the address {prefix} from link {index}");
        Self::new(libc::RTM_DELADDR, 0, &address(index, prefix), what)
    }

    /// Idempotent. Without a gateway the destination is on the link itself.
    pub fn add_route(index: u32, to: Prefix, via: Option<IpAddr>) -> Self {
        let mut message = route(index, to);
        match via {
            Some(via) => message.attributes.push(RouteAttribute::Gateway(via.into())),
            None => message.header.scope = RouteScope::Link,
        }
        let what = format!("add the route to {to} on link {index}");
        Self::new(libc::RTM_NEWROUTE, REPLACE, &message, what)
    }

    /// Idempotent; takes the place of a route to the same destination.
    pub fn ensure_route(wanted: &WantedRoute) -> Self {
        let mut message = route(wanted.link, wanted.to);
        message.header.scope = RouteScope::Link;
        match wanted.kind {
            RouteKind::Link => {}
            RouteKind::Via(gateway) => {
                message.header.protocol = RouteProtocol::from(VIA_PROTOCOL);
                message.header.scope = RouteScope::Universe;
                message.header.flags = RouteFlags::Onlink;
                let gateway = RouteAttribute::Gateway(gateway.into());
                message.attributes.push(gateway);
            }
            RouteKind::Tunnel => {
                message.header.protocol = RouteProtocol::from(VIA_PROTOCOL);
            }
            RouteKind::Connected(IpAddr::V6(_)) => {
                message.header.protocol = RouteProtocol::Kernel;
                let priority = RouteAttribute::Priority(CONNECTED_V6);
                message.attributes.push(priority);
            }
            RouteKind::Connected(source) => {
                message.header.protocol = RouteProtocol::Kernel;
                let source = RouteAttribute::PrefSource(source.into());
                message.attributes.push(source);
            }
            RouteKind::Local => {
                message.header.protocol = RouteProtocol::Kernel;
                message.header.table = LOCAL_TABLE;
                message.header.scope = RouteScope::Host;
                message.header.kind = RouteType::Local;
                if wanted.to.address.is_ipv4() {
                    let source = RouteAttribute::PrefSource(wanted.to.address.into());
                    message.attributes.push(source);
                }
            }
        }
        let what = format!("add the route to {} on link {}", wanted.to, wanted.link);
        Self::new(libc::RTM_NEWROUTE, REPLACE, &message, what)
    }

    /// Fails if what it would make is there, instead of replacing it.
    pub fn exclusive(mut self) -> Self {
        self.0.flags &= !(libc::NLM_F_REPLACE as u16);
        self.0.flags |= CREATE as u16;
        self
    }

    pub fn delete_route(index: u32, to: Prefix) -> Self {
        let mut message = route(index, to);
        // Any scope and protocol: only destination and link say which route is meant.
        message.header.scope = RouteScope::NoWhere;
        message.header.protocol = RouteProtocol::Unspec;
        let what = format!("delete the route to {to} on link {index}");
        Self::new(libc::RTM_DELROUTE, 0, &message, what)
    }

    /// Idempotent: the address is known to have this hardware address and is never asked for.
    pub fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Self {
        let mut message = neighbour(index, address);
        let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
        message.attributes.push(mac);
        let what = format!("add the neighbour {address} on link {index}");
        Self::new(libc::RTM_NEWNEIGH, REPLACE, &message, what)
    }

    pub fn delete_neighbour(index: u32, address: IpAddr) -> Self {
        let what = format!("delete the neighbour {address} on link {index}");
        Self::new(libc::RTM_DELNEIGH, 0, &neighbour(index, address), what)
    }
}

/// What becomes of the packets that leave by a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// Each leaves so much later.
    pub delay: Duration,
    /// Of a hundred so many do not leave at all, chosen at random.
    pub lost_percent: u8,
}

impl Change {
    /// Idempotent; takes the place of what was set before. `ENOENT`: this kernel has no network emulator
    /// (`sch_netem`).
    pub fn disturb(index: u32, how: &Disturbance) -> Self {
        /// Nanoseconds; the field of the fixed part has the kernel's own ticks.
        const LATENCY64: u16 = 10;
        /// Packets that wait at most: about what a gigabit brings in a second.
        const LIMIT: u32 = 100_000;
        let lost = u64::from(u32::MAX) * u64::from(how.lost_percent.min(100)) / 100;
        let mut options = Attrs::default();
        for word in [0, LIMIT, lost as u32, 0, 0, 0] {
            options.0.extend(word.to_ne_bytes());
        }
        let delay = i64::try_from(how.delay.as_nanos()).unwrap_or(i64::MAX);
        options.bytes(LATENCY64, &delay.to_ne_bytes());
        let what = format!("disturb what leaves by link {index}");
        let mut message = Message::new(libc::RTM_NEWQDISC, REPLACE, &root_queue(index), what);
        message.body.str(QUEUE_KIND, "netem");
        message.body.bytes(QUEUE_OPTIONS, &options.0);
        Self(message)
    }

    /// Takes [`Change::disturb`] back; absent where nothing is disturbed.
    pub fn undisturb(index: u32) -> Self {
        let what = format!("let packets leave by link {index} as they come");
        let message = Message::new(libc::RTM_DELQDISC, 0, &root_queue(index), what);
        Self(message)
    }
}

impl Change {
    /// Idempotent: lets so many bits a second leave by the link (`sch_tbf`); takes the place of what was set
    /// before. What comes faster waits for at most a tenth of a second.
    pub fn limit_rate(index: u32, bits_per_second: u64) -> Self {
        const PARAMETERS: u16 = 1;
        const RATE64: u16 = 4;
        const BURST: u16 = 6;
        const ETHERNET: u8 = 1;
        /// The largest packet that a virtual link passes on in one piece.
        const LEAST_BURST: u64 = 64 << 10;
        let bytes = (bits_per_second / 8).max(1);
        let low = u32::try_from(bytes).unwrap_or(u32::MAX);
        let burst = (bytes / 100).max(LEAST_BURST);
        let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let mut rate = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        rate.extend(low.to_ne_bytes());
        // Rate, no peak rate, bytes that may wait, and two words that others below take the place of.
        rate.extend([0; 12]);
        rate.extend(word(bytes / 10 + burst).to_ne_bytes());
        rate.extend([0; 8]);
        let what = format!("limit what leaves by link {index} to {bits_per_second} bits a second");
        let mut message = Message::new(libc::RTM_NEWQDISC, REPLACE, &root_queue(index), what);
        message.body.str(QUEUE_KIND, "tbf");
        message.body.nest(QUEUE_OPTIONS, |options| {
            options
                .bytes(PARAMETERS, &rate)
                .bytes(RATE64, &bytes.to_ne_bytes())
                .bytes(BURST, &word(burst).to_ne_bytes());
        });
        Self(message)
    }
}

const QUEUE_KIND: u16 = 1;
const QUEUE_OPTIONS: u16 = 2;

/// `tcmsg`: family and padding, link, handle, parent, and a word that is not used here.
fn root_queue(index: u32) -> Vec<u8> {
    const ROOT: u32 = u32::MAX;
    [0, index, 0, ROOT, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

fn tunnel_entry(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn address(index: u32, prefix: Prefix) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(prefix.address);
    message.header.prefix_len = prefix.length;
    message.header.index = index;
    // Duplicate address detection would hold an IPv6 address back for a second.
    if prefix.address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(prefix.address),
        AddressAttribute::Address(prefix.address),
    ];
    message
}

fn route(index: u32, to: Prefix) -> RouteMessage {
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .build();
    message.header.address_family = family(to.address);
    message.header.destination_prefix_length = to.length;
    if to.length > 0 {
        let to = RouteAttribute::Destination(to.address.into());
        message.attributes.push(to);
    }
    message
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
