//! Links, addresses, routes and neighbours over rtnetlink.
//!
//! Owns the encoding of these messages. Several changes go to the kernel in one datagram: build
//! [`Change`]s, then [`Socket::apply`] them.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::sys::socket::SockProtocol;

use crate::{
    Error,
    socket::Netlink,
    wire::{self, Attrs, Message},
};

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
const UP: u32 = libc::IFF_UP as u32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const BRPORT_MODE_HAIRPIN: u16 = 4;

/// A hardware address.
pub type Mac = [u8; 6];

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl Prefix {
    pub fn new(address: IpAddr, length: u8) -> Self {
        Self { address, length }
    }

    /// The address alone: /32 or /128.
    pub fn host(address: IpAddr) -> Self {
        Self::new(address, 8 * octets(address).len() as u8)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    pub master: Option<u32>,
    /// e.g. `bridge`, `veth`; `None` for hardware and `lo`.
    pub kind: Option<String>,
}

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

/// One change, ready to be sent.
#[derive(Clone, Debug)]
pub struct Change(Message);

impl Change {
    /// A bridge with this hardware address, so that it does not follow its ports'.
    pub fn add_bridge(name: &str, mac: Mac) -> Self {
        let mut message = link_message(
            libc::RTM_NEWLINK,
            CREATE,
            0,
            0,
            format!("add the bridge {name}"),
        );
        message
            .body
            .str(libc::IFLA_IFNAME, name)
            .bytes(libc::IFLA_ADDRESS, &mac)
            .nest(libc::IFLA_LINKINFO, |info| {
                info.str(INFO_KIND, "bridge");
            });
        Self(message)
    }

    /// This end comes up at once; the peer, which never exists outside its own namespace, must be
    /// set up there.
    pub fn add_veth(veth: &Veth<'_>) -> Self {
        let mut message = link_message(
            libc::RTM_NEWLINK,
            CREATE,
            0,
            UP,
            format!("add the veth pair {} and {}", veth.name, veth.peer_name),
        );
        message
            .body
            .str(libc::IFLA_IFNAME, veth.name)
            .bytes(libc::IFLA_ADDRESS, &veth.mac)
            .u32(libc::IFLA_MTU, veth.mtu);
        if let Some(master) = veth.master {
            message.body.u32(libc::IFLA_MASTER, master);
        }
        message.body.nest(libc::IFLA_LINKINFO, |info| {
            info.str(INFO_KIND, "veth").nest(INFO_DATA, |data| {
                let mut peer = Attrs(link_header(0, 0).to_vec());
                peer.str(libc::IFLA_IFNAME, veth.peer_name)
                    .bytes(libc::IFLA_ADDRESS, &veth.peer_mac)
                    .u32(libc::IFLA_MTU, veth.mtu)
                    .u32(libc::IFLA_NET_NS_FD, veth.peer_netns.as_raw_fd() as u32);
                data.bytes(VETH_INFO_PEER | libc::NLA_F_NESTED as u16, &peer.0);
            });
        });
        Self(message)
    }

    /// Lets the bridge send a frame back out of the port it came in by. By name, so that it can
    /// follow the link's creation in one datagram.
    pub fn set_hairpin(name: &str) -> Self {
        let mut message = link_message(
            libc::RTM_NEWLINK,
            0,
            0,
            0,
            format!("set hairpin mode of {name}"),
        );
        message
            .body
            .str(libc::IFLA_IFNAME, name)
            .nest(libc::IFLA_LINKINFO, |info| {
                info.str(INFO_SLAVE_KIND, "bridge")
                    .nest(INFO_SLAVE_DATA, |data| {
                        data.u8(BRPORT_MODE_HAIRPIN, 1);
                    });
            });
        Self(message)
    }

    pub fn set_up(index: u32) -> Self {
        Self(link_message(
            libc::RTM_NEWLINK,
            0,
            index,
            UP,
            format!("set link {index} up"),
        ))
    }

    pub fn set_down(index: u32) -> Self {
        let mut message = link_message(
            libc::RTM_NEWLINK,
            0,
            index,
            UP,
            format!("set link {index} down"),
        );
        // The flags stay out, the mask of flags to change stays in.
        message.body.0[8..12].fill(0);
        Self(message)
    }

    pub fn set_mtu(index: u32, mtu: u32) -> Self {
        let what = format!("set the MTU of link {index} to {mtu}");
        let mut message = link_message(libc::RTM_NEWLINK, 0, index, 0, what);
        message.body.u32(libc::IFLA_MTU, mtu);
        Self(message)
    }

    pub fn set_mac(index: u32, mac: Mac) -> Self {
        let what = format!("set the hardware address of link {index}");
        let mut message = link_message(libc::RTM_NEWLINK, 0, index, 0, what);
        message.body.bytes(libc::IFLA_ADDRESS, &mac);
        Self(message)
    }

    /// Makes the link a port of a bridge.
    pub fn set_master(index: u32, master: u32) -> Self {
        let what = format!("make link {index} a port of {master}");
        let mut message = link_message(libc::RTM_NEWLINK, 0, index, 0, what);
        message.body.u32(libc::IFLA_MASTER, master);
        Self(message)
    }

    pub fn delete_link(name: &str) -> Self {
        let what = format!("delete the link {name}");
        let mut message = link_message(libc::RTM_DELLINK, 0, 0, 0, what);
        message.body.str(libc::IFLA_IFNAME, name);
        Self(message)
    }

    /// Idempotent: an address that is there stays.
    pub fn add_address(index: u32, prefix: Prefix) -> Self {
        let mut fixed = [0u8; 8];
        fixed[0] = family(prefix.address);
        fixed[1] = prefix.length;
        // Duplicate address detection would hold an IPv6 address back for a second.
        fixed[2] = match prefix.address {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => libc::IFA_F_NODAD as u8,
        };
        fixed[4..].copy_from_slice(&index.to_ne_bytes());
        let what = format!("add the address {prefix} to link {index}");
        let mut message = Message::new(libc::RTM_NEWADDR, REPLACE, &fixed, what);
        let address = octets(prefix.address);
        message
            .body
            .bytes(libc::IFA_LOCAL, &address)
            .bytes(libc::IFA_ADDRESS, &address);
        Self(message)
    }

    /// Idempotent. Without a gateway the destination is on the link itself.
    pub fn add_route(index: u32, to: Prefix, via: Option<IpAddr>) -> Self {
        Self(route_message(libc::RTM_NEWROUTE, REPLACE, index, to, via))
    }

    pub fn delete_route(index: u32, to: Prefix) -> Self {
        let mut message = route_message(libc::RTM_DELROUTE, 0, index, to, None);
        // Any scope and protocol: only destination and link say which route is meant.
        message.body.0[5] = 0;
        message.body.0[6] = libc::RT_SCOPE_NOWHERE;
        Self(message)
    }

    /// Idempotent: the address is known to have this hardware address and is never asked for.
    pub fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Self {
        let what = format!("add the neighbour {address} on link {index}");
        let mut message = neighbour_message(libc::RTM_NEWNEIGH, REPLACE, index, address, what);
        message.body.bytes(libc::NDA_LLADDR, &mac);
        Self(message)
    }

    pub fn delete_neighbour(index: u32, address: IpAddr) -> Self {
        let what = format!("delete the neighbour {address} on link {index}");
        Self(neighbour_message(
            libc::RTM_DELNEIGH,
            0,
            index,
            address,
            what,
        ))
    }
}

/// A route socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket(Netlink);

impl Socket {
    pub fn open() -> Result<Self, Error> {
        Netlink::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Sends all changes in one datagram. Each is tried even if one before it failed; the first
    /// failure is returned.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let mut messages: Vec<Message> = changes.into_iter().map(|change| change.0).collect();
        self.0.request(&mut messages)
    }

    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let what = format!("look up the link {name}");
        let mut message = link_message(libc::RTM_GETLINK, 0, 0, 0, what.clone());
        message.body.str(libc::IFLA_IFNAME, name);
        let mut link = None;
        self.0.query(&message, |body| link = parse_link(body))?;
        link.ok_or(Error::Malformed { what })
    }

    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let message = link_message(
            libc::RTM_GETLINK,
            libc::NLM_F_DUMP,
            0,
            0,
            "list links".into(),
        );
        let mut links = Vec::new();
        self.0
            .query(&message, |body| links.extend(parse_link(body)))?;
        Ok(links)
    }

    /// Link and address, for every address of the namespace.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Prefix)>, Error> {
        let message = Message::new(
            libc::RTM_GETADDR,
            libc::NLM_F_DUMP,
            &[0; 8],
            "list addresses",
        );
        let mut addresses = Vec::new();
        self.0
            .query(&message, |body| addresses.extend(parse_address(body)))?;
        Ok(addresses)
    }
}

fn link_header(index: u32, up: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..16].copy_from_slice(&up.to_ne_bytes());
    header
}

fn link_message(kind: u16, flags: i32, index: u32, up: u32, what: String) -> Message {
    Message::new(kind, flags, &link_header(index, up), what)
}

fn route_message(kind: u16, flags: i32, index: u32, to: Prefix, via: Option<IpAddr>) -> Message {
    let scope = match via {
        Some(_) => libc::RT_SCOPE_UNIVERSE,
        None => libc::RT_SCOPE_LINK,
    };
    let mut fixed = [0u8; 12];
    fixed[0] = family(to.address);
    fixed[1] = to.length;
    fixed[4] = libc::RT_TABLE_MAIN;
    fixed[5] = libc::RTPROT_STATIC;
    fixed[6] = scope;
    fixed[7] = libc::RTN_UNICAST;
    let verb = match kind {
        libc::RTM_NEWROUTE => "add",
        _ => "delete",
    };
    let what = format!("{verb} the route to {to} on link {index}");
    let mut message = Message::new(kind, flags, &fixed, what);
    message.body.u32(libc::RTA_OIF, index);
    if to.length > 0 {
        message.body.bytes(libc::RTA_DST, &octets(to.address));
    }
    if let Some(via) = via {
        message.body.bytes(libc::RTA_GATEWAY, &octets(via));
    }
    message
}

fn neighbour_message(kind: u16, flags: i32, index: u32, address: IpAddr, what: String) -> Message {
    let mut fixed = [0u8; 12];
    fixed[0] = family(address);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed, what);
    message.body.bytes(libc::NDA_DST, &octets(address));
    message
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let attrs = body.get(16..)?;
    let number = |kind| wire::u32_at(wire::attribute(attrs, kind)?, 0);
    Some(Link {
        index: wire::u32_at(body, 4)?,
        up: wire::u32_at(body, 8)? & UP != 0,
        name: wire::text(wire::attribute(attrs, libc::IFLA_IFNAME)?),
        mac: wire::attribute(attrs, libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        mtu: number(libc::IFLA_MTU).unwrap_or_default(),
        master: number(libc::IFLA_MASTER),
        kind: wire::attribute(attrs, libc::IFLA_LINKINFO)
            .and_then(|info| wire::attribute(info, INFO_KIND))
            .map(wire::text),
    })
}

fn parse_address(body: &[u8]) -> Option<(u32, Prefix)> {
    let attrs = body.get(8..)?;
    // On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL is ours.
    let bytes = wire::attribute(attrs, libc::IFA_LOCAL)
        .or_else(|| wire::attribute(attrs, libc::IFA_ADDRESS))?;
    let address = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some((wire::u32_at(body, 4)?, Prefix::new(address, *body.get(1)?)))
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
