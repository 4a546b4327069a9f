//! Connection tracking: list and delete entries over netlink.

use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use crate::{
    Error,
    socket::Netlink,
    wire::{self, Message},
};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;

/// One tracked connection.
#[derive(Clone, Debug)]
pub struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    family: u8,
    /// `CTA_TUPLE_ORIG` as the kernel gave it, which names the entry when it is to go.
    key: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

/// Every entry of the calling thread's namespace, of one address family.
pub fn list(ipv6: bool) -> Result<Vec<Entry>, Error> {
    let family = family(ipv6);
    let message = Message::new(
        GET,
        libc::NLM_F_DUMP,
        &[family, 0, 0, 0],
        "list tracked connections",
    );
    let mut entries = Vec::new();
    Netlink::open(SockProtocol::NetlinkNetFilter)?.query(&message, |body| {
        entries.extend(body.get(4..).and_then(|attrs| parse(family, attrs)));
    })?;
    Ok(entries)
}

/// Deletes entries; one that is gone already is fine.
pub fn delete(entries: &[Entry]) -> Result<(), Error> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    for entry in entries {
        let mut message = Message::new(
            DELETE,
            0,
            &[entry.family, 0, 0, 0],
            format!("delete the tracked connection {:?}", entry.original),
        );
        message
            .body
            .bytes(TUPLE_ORIG | libc::NLA_F_NESTED as u16, &entry.key);
        match netlink.request(&mut [message]) {
            Err(error) if !error.is_absent() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn family(ipv6: bool) -> u8 {
    match ipv6 {
        true => libc::AF_INET6 as u8,
        false => libc::AF_INET as u8,
    }
}

fn parse(family: u8, attrs: &[u8]) -> Option<Entry> {
    let original = wire::attribute(attrs, TUPLE_ORIG)?;
    Some(Entry {
        original: tuple(original)?,
        reply: tuple(wire::attribute(attrs, TUPLE_REPLY)?)?,
        family,
        key: original.to_vec(),
    })
}

/// Protocols without ports have port 0.
fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let ip = wire::attribute(bytes, TUPLE_IP)?;
    let proto = wire::attribute(bytes, TUPLE_PROTO)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        match wire::attribute(ip, v4) {
            Some(bytes) => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            None => {
                let bytes = wire::attribute(ip, v6)?;
                Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
            }
        }
    };
    let port = |kind: u16| match wire::attribute(proto, kind) {
        Some(bytes) => Some(u16::from_be_bytes(bytes.try_into().ok()?)),
        None => Some(0),
    };
    Some(Tuple {
        protocol: *wire::attribute(proto, 1)?.first()?,
        source: (address(1, 3)?, port(2)?),
        destination: (address(2, 4)?, port(3)?),
    })
}
