//! Links, addresses, routes and neighbours over rtnetlink.
//!
//! Several changes go to the kernel in one datagram: build [`Change`]s, then [`Socket::apply`] them.
//! Answers are read here, attribute by attribute: what a newer kernel adds to a link must not keep
//! a node from starting.

mod change;

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::{address::AddressMessage, link::LinkMessage};
use nix::sys::socket::SockProtocol;
use rtnetlink::{LinkUnspec, packet_core::Emitable};

use crate::{
    Error,
    socket::Netlink,
    wire::{self, Message},
};

pub use change::{Change, Port, Veth};

const UP: u32 = libc::IFF_UP as u32;
const INFO_KIND: u16 = 1;

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

fn dump(kind: u16, all: &impl Emitable, what: &str) -> Message {
    Message::emit(kind, libc::NLM_F_DUMP, all, what)
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
