//! Links, addresses, routes and neighbours over rtnetlink.
//!
//! Several changes go to the kernel in one datagram: build [`Change`]s, then [`Socket::apply`] them.
//! Answers are read here, attribute by attribute: what a newer kernel adds to a link must not keep
//! a node from starting.

mod change;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage,
};
use nix::sys::socket::SockProtocol;
use rtnetlink::{LinkUnspec, packet_core::Emitable};

use crate::{
    Error,
    socket::Netlink,
    wire::{self, Message},
};

pub use change::{Change, Disturbance, Port, RouteKind, VIA_PROTOCOL, Veth, Vxlan, WantedRoute};

const UP: u32 = libc::IFF_UP as u32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_MASTER_KIND: u16 = 4;
const INFO_PORT: u16 = 5;
/// The protocol of routes that programs make.
const STATIC: u8 = 4;
/// The protocol of routes that the kernel makes of what routers advertise.
const ADVERTISED: u8 = 9;

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
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self::new(address, bits)
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
    /// How its bridge treats it; `None` for what is no port of a bridge.
    pub port: Option<Port>,
    /// `None` for what is no VXLAN link.
    pub vxlan: Option<Vxlan>,
}

/// A route as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub to: Prefix,
    /// `None` for one that leads by several links, or nowhere.
    pub link: Option<u32>,
    /// `None`: the destination is on the link itself.
    pub via: Option<IpAddr>,
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
        let mut messages: Vec<Message> = changes.into_iter().map(Change::into_message).collect();
        self.0.request(&mut messages)
    }

    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let what = format!("look up the link {name}");
        let wanted = LinkUnspec::new_with_name(name).build();
        let message = Message::emit(libc::RTM_GETLINK, 0, &wanted, what.clone());
        let mut link = None;
        self.0.query(&message, |body| link = parse_link(body))?;
        link.ok_or(Error::Malformed { what })
    }

    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let message = dump(libc::RTM_GETLINK, &LinkMessage::default(), "list links");
        let mut links = Vec::new();
        self.0
            .query(&message, |body| links.extend(parse_link(body)))?;
        Ok(links)
    }

    /// The entry of the routing tables by which packets to this address leave, or stay; `None` if
    /// there is none.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>, Error> {
        const FIB_MATCH: u32 = 0x2000;
        let (family, bytes) = match address {
            IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
        };
        let mut fixed = vec![family, bytes.len() as u8 * 8, 0, 0, 0, 0, 0, 0];
        fixed.extend(FIB_MATCH.to_ne_bytes());
        let what = format!("look up the route to {address}");
        let mut message = Message::new(libc::RTM_GETROUTE, 0, &fixed, what);
        message.body.bytes(libc::RTA_DST, &bytes);
        let mut route = None;
        match self.0.query(&message, |body| route = parse_route(body)) {
            Err(error) if !error.is_unreachable() && !error.is_absent() => Err(error),
            _ => Ok(route),
        }
    }

    /// Makes these routes if they are not there; whether one was not.
    pub fn ensure_routes(&mut self, wanted: &[WantedRoute]) -> Result<Vec<Prefix>, Error> {
        let mut made = Vec::new();
        for wanted in wanted {
            let found = self.route_to(probe(&wanted.to))?;
            let same = found.filter(|found| found.to == wanted.to);
            if same
                .as_ref()
                .is_some_and(|found| found.link == Some(wanted.link) && found.via == via(wanted))
            {
                continue;
            }
            let change = Change::ensure_route(wanted);
            // What is there already for that prefix leads elsewhere, or something inside of it has a
            // route of its own.
            match self.apply(vec![change.clone().exclusive()]) {
                Err(error) if error.is_present() && same.is_none() => continue,
                Err(error) if error.is_present() => self.apply(vec![change])?,
                made => made?,
            }
            made.push(wanted.to);
        }
        Ok(made)
    }

    /// Where any table leads, for IPv4: also to addresses of this machine, and to nowhere.
    pub fn destinations(&mut self) -> Result<Vec<Prefix>, Error> {
        let fixed = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed, "list routes");
        let mut found = Vec::new();
        self.0.query(&message, |body| {
            found.extend(parse_route(body).map(|route| route.to));
        })?;
        Ok(found)
    }

    /// Where the main table leads straight to this link because a program said so, not the kernel.
    pub fn static_routes(&mut self, link: u32) -> Result<Vec<Prefix>, Error> {
        let fixed = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let what = "list routes";
        let message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed, what);
        let mut found = Vec::new();
        self.0.query(&message, |body| {
            let header = [4, 5, 6].map(|at| body.get(at).copied().unwrap_or_default());
            let is_static = header == [libc::RT_TABLE_MAIN, STATIC, libc::RT_SCOPE_LINK];
            let route = parse_route(body).filter(|route| is_static && route.link == Some(link));
            found.extend(route.map(|route| route.to));
        })?;
        Ok(found)
    }

    /// Routes of [`RouteKind::Via`] and [`RouteKind::Tunnel`] of one address family, whoever made them.
    pub fn routes_via(&mut self, ipv6: bool) -> Result<Vec<Route>, Error> {
        let family = family(ipv6);
        let fixed = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let what = "list routes";
        let message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed, what);
        let mut found = Vec::new();
        self.0.query(&message, |body| {
            let header = [4, 5].map(|at| body.get(at).copied().unwrap_or_default());
            let is_via =
                header == [libc::RT_TABLE_MAIN, VIA_PROTOCOL] && body.first() == Some(&family);
            found.extend(parse_route(body).filter(|_| is_via));
        })?;
        Ok(found)
    }

    /// Links with a default route that a router has advertised.
    pub fn advertised_defaults(&mut self) -> Result<BTreeSet<u32>, Error> {
        let family = family(true);
        let fixed = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let what = "list IPv6 routes";
        let message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed, what);
        let mut links = BTreeSet::new();
        self.0.query(&message, |body| {
            let is_advertised = body.first() == Some(&family) && body.get(5) == Some(&ADVERTISED);
            let route = parse_route(body).filter(|route| is_advertised && route.to.length == 0);
            links.extend(route.and_then(|route| route.link));
        })?;
        Ok(links)
    }

    /// Addresses on this link whose hardware address was written down for good, with that.
    pub fn permanent_neighbours(&mut self, link: u32) -> Result<HashMap<IpAddr, Mac>, Error> {
        const PERMANENT: u16 = 0x80;
        let message = dump(
            libc::RTM_GETNEIGH,
            &NeighbourMessage::default(),
            "list neighbours",
        );
        let mut found = HashMap::new();
        self.0.query(&message, |body| {
            let is_wanted =
                wire::u32_at(body, 4) == Some(link) && wire::u16_at(body, 8) == Some(PERMANENT);
            let attrs = body.get(12..).unwrap_or_default();
            let mac = wire::attribute(attrs, libc::NDA_LLADDR);
            let mac = mac.and_then(|mac| mac.try_into().ok());
            if let (true, Some((_, address)), Some(mac)) = (is_wanted, parse_neighbour(body), mac) {
                found.insert(address, mac);
            }
        })?;
        Ok(found)
    }

    /// Link and address, for every address of the namespace.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Prefix)>, Error> {
        let all = AddressMessage::default();
        let message = dump(libc::RTM_GETADDR, &all, "list addresses");
        let mut addresses = Vec::new();
        self.0
            .query(&message, |body| addresses.extend(parse_address(body)))?;
        Ok(addresses)
    }
}

/// An address that a route to this prefix is found by: the first one of an IPv6 network may be every router's
/// there (RFC 4291, 2.6.1), which has a route of its own.
fn probe(to: &Prefix) -> IpAddr {
    match to.address {
        IpAddr::V4(_) => to.address,
        IpAddr::V6(address) => {
            let hosts = u128::MAX.checked_shr(to.length.into()).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) | hosts).into()
        }
    }
}

fn family(ipv6: bool) -> u8 {
    match ipv6 {
        true => libc::AF_INET6 as u8,
        false => libc::AF_INET as u8,
    }
}

fn via(wanted: &WantedRoute) -> Option<IpAddr> {
    match wanted.kind {
        RouteKind::Via(gateway) => Some(gateway),
        RouteKind::Link | RouteKind::Tunnel | RouteKind::Connected(_) | RouteKind::Local => None,
    }
}

fn dump(kind: u16, all: &impl Emitable, what: &str) -> Message {
    Message::emit(kind, libc::NLM_F_DUMP, all, what)
}

pub(crate) fn parse_link(body: &[u8]) -> Option<Link> {
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
        port: wire::attribute(attrs, libc::IFLA_LINKINFO)
            .filter(|info| {
                wire::attribute(info, INFO_MASTER_KIND)
                    .map(wire::text)
                    .as_deref()
                    == Some("bridge")
            })
            .and_then(|info| wire::attribute(info, INFO_PORT))
            .map(Port::parse),
        vxlan: wire::attribute(attrs, libc::IFLA_LINKINFO)
            .filter(|info| {
                wire::attribute(info, INFO_KIND).map(wire::text).as_deref() == Some("vxlan")
            })
            .and_then(|info| wire::attribute(info, INFO_DATA))
            .and_then(Vxlan::parse),
    })
}

/// What a bridge itself tells of one of its ports: its name, and how it is treated now.
pub(crate) fn parse_port(body: &[u8]) -> Option<(String, Port)> {
    let attrs = body.get(16..)?;
    let name = wire::text(wire::attribute(attrs, libc::IFLA_IFNAME)?);
    let settings = wire::attribute(attrs, libc::IFLA_PROTINFO)?;
    Some((name, Port::parse(settings)))
}

pub(crate) fn parse_address(body: &[u8]) -> Option<(u32, Prefix)> {
    let attrs = body.get(8..)?;
    // On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL is ours.
    let bytes = wire::attribute(attrs, libc::IFA_LOCAL)
        .or_else(|| wire::attribute(attrs, libc::IFA_ADDRESS))?;
    let prefix = Prefix::new(address(bytes)?, *body.get(1)?);
    Some((wire::u32_at(body, 4)?, prefix))
}

/// Link and address; of bridges' entries none.
pub(crate) fn parse_neighbour(body: &[u8]) -> Option<(u32, IpAddr)> {
    let is_ip = [libc::AF_INET, libc::AF_INET6].contains(&i32::from(*body.first()?));
    let bytes = wire::attribute(body.get(12..)?, libc::NDA_DST).filter(|_| is_ip)?;
    Some((wire::u32_at(body, 4)?, address(bytes)?))
}

pub(crate) fn parse_route(body: &[u8]) -> Option<Route> {
    let attrs = body.get(12..)?;
    let length = *body.get(1)?;
    let to = match (*body.first()?, wire::attribute(attrs, libc::RTA_DST)) {
        (_, Some(bytes)) => address(bytes)?,
        (family, None) if i32::from(family) == libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        (_, None) => Ipv4Addr::UNSPECIFIED.into(),
    };
    Some(Route {
        to: Prefix::new(to, length),
        link: wire::attribute(attrs, libc::RTA_OIF).and_then(|link| wire::u32_at(link, 0)),
        via: wire::attribute(attrs, libc::RTA_GATEWAY).and_then(address),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
}
