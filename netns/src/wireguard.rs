//! WireGuard links: keys, port and peers, over generic netlink (the family `wireguard`).
//!
//! The link itself is made and removed over rtnetlink ([`crate::route::Change::add_wireguard`]). The kernel does all of
//! the cryptography: it takes a private key, and tells the public one that belongs to it.
//! Source: kernel, include/uapi/linux/wireguard.h.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::SockProtocol;

use crate::{
    Error,
    socket::Netlink,
    wire::{self, Attrs, Message},
};

/// The kernel loads its module when it is asked for the family by this name.
const FAMILY: &str = "wireguard";
/// Both of generic netlink's own family and of this one.
const VERSION: u8 = 1;
/// `genlmsghdr`: command, version, two bytes that are reserved.
const GENERIC_HEADER: usize = 4;

const CONTROLLER: u16 = libc::NLMSG_MIN_TYPE as u16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;

const LINK_NAME: u16 = 2;
const PRIVATE_KEY: u16 = 3;
const PUBLIC_KEY: u16 = 4;
const LISTEN_PORT: u16 = 6;
const PEERS: u16 = 8;

const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_ALLOWED: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;

const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;

/// Of an attribute that is one of a list.
const ITEM: u16 = 0;
const KEY: usize = 32;

/// A peer, as the others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY]);

/// What only its owner knows.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY]);

impl PrivateKey {
    /// Of these bytes, which are random: some bits of a key are fixed (RFC 7748, 5).
    pub fn clamped(mut bytes: [u8; KEY]) -> Self {
        bytes[0] &= 248;
        bytes[KEY - 1] = bytes[KEY - 1] & 127 | 64;
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }
}

/// It is shown nowhere.
impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// A WireGuard link as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub private_key: Option<PrivateKey>,
    pub public_key: Option<PublicKey>,
    pub port: u16,
    pub peers: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub key: PublicKey,
    /// Where packets for it go: the kernel follows a peer that sends from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// The networks whose packets go to it, and which its packets may come from.
    pub allowed: BTreeSet<(IpAddr, u8)>,
}

/// One change of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Device {
        private_key: PrivateKey,
        port: u16,
    },
    /// The peer has these networks from now on, and no others. Without an endpoint it keeps the one that it has.
    Peer(Peer),
    Remove(PublicKey),
}

/// A socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    netlink: Netlink,
    family: u16,
}

impl Socket {
    /// Absent ([`Error::is_absent`]) where the kernel has no WireGuard.
    pub fn open() -> Result<Self, Error> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let mut message = generic(
            CONTROLLER,
            GET_FAMILY,
            0,
            "look up the netlink family of WireGuard",
        );
        message.body.str(FAMILY_NAME, FAMILY);
        let mut family = None;
        netlink.query(&message, |body| {
            let attrs = body.get(GENERIC_HEADER..).unwrap_or_default();
            family = wire::attribute(attrs, FAMILY_ID).and_then(|id| wire::u16_at(id, 0));
        })?;
        let family = family.ok_or(Error::Malformed { what: message.what })?;
        Ok(Self { netlink, family })
    }

    pub fn device(&mut self, link: &str) -> Result<Device, Error> {
        let what = format!("read the WireGuard link {link}");
        let mut message = generic(self.family, GET_DEVICE, libc::NLM_F_DUMP, what);
        message.body.str(LINK_NAME, link);
        let mut device = Device::default();
        self.netlink.query(&message, |body| {
            device.take(body.get(GENERIC_HEADER..).unwrap_or_default());
        })?;
        Ok(device)
    }

    /// Each is tried even if one before it failed; the first failure is returned.
    pub fn apply(&mut self, link: &str, changes: &[Change]) -> Result<(), Error> {
        let message = |change| message(self.family, link, change);
        let mut messages: Vec<Message> = changes.iter().map(message).collect();
        self.netlink.request(&mut messages)
    }
}

/// Whether this kernel has WireGuard, or can load it.
pub fn is_supported() -> bool {
    Socket::open().is_ok()
}

fn generic(family: u16, command: u8, flags: i32, what: impl Into<String>) -> Message {
    Message::new(family, flags, &[command, VERSION, 0, 0], what)
}

fn message(family: u16, link: &str, change: &Change) -> Message {
    let what = match change {
        Change::Device { port, .. } => {
            format!("set the key and the port {port} of the WireGuard link {link}")
        }
        Change::Peer(_) => format!("set a peer of the WireGuard link {link}"),
        Change::Remove(_) => format!("remove a peer of the WireGuard link {link}"),
    };
    let mut message = generic(family, SET_DEVICE, 0, what);
    message.body.str(LINK_NAME, link);
    match change {
        Change::Device { private_key, port } => {
            message
                .body
                .bytes(PRIVATE_KEY, &private_key.0)
                .bytes(LISTEN_PORT, &port.to_ne_bytes());
        }
        Change::Peer(peer) => one_peer(&mut message.body, |attrs| {
            attrs
                .bytes(PEER_PUBLIC_KEY, &peer.key.0)
                .bytes(PEER_FLAGS, &REPLACE_ALLOWED.to_ne_bytes());
            if let Some(endpoint) = peer.endpoint {
                attrs.bytes(PEER_ENDPOINT, &socket_address(endpoint));
            }
            attrs.nest(PEER_ALLOWED, |list| {
                for (address, length) in &peer.allowed {
                    list.nest(ITEM, |item| allowed(item, *address, *length));
                }
            });
        }),
        Change::Remove(key) => one_peer(&mut message.body, |attrs| {
            attrs
                .bytes(PEER_PUBLIC_KEY, &key.0)
                .bytes(PEER_FLAGS, &REMOVE.to_ne_bytes());
        }),
    }
    message
}

fn one_peer(body: &mut Attrs, fill: impl FnOnce(&mut Attrs)) {
    body.nest(PEERS, |list| {
        list.nest(ITEM, fill);
    });
}

fn allowed(item: &mut Attrs, address: IpAddr, length: u8) {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    item.bytes(ALLOWED_FAMILY, &(family as u16).to_ne_bytes())
        .bytes(ALLOWED_ADDRESS, &bytes)
        .u8(ALLOWED_LENGTH, length);
}

/// `sockaddr_in` or `sockaddr_in6`.
fn socket_address(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    let start = |family: i32| [(family as u16).to_ne_bytes(), port].concat();
    match endpoint {
        SocketAddr::V4(v4) => {
            [start(libc::AF_INET), v4.ip().octets().to_vec(), vec![0; 8]].concat()
        }
        SocketAddr::V6(v6) => [
            start(libc::AF_INET6),
            v6.flowinfo().to_be_bytes().to_vec(),
            v6.ip().octets().to_vec(),
            v6.scope_id().to_ne_bytes().to_vec(),
        ]
        .concat(),
    }
}

impl Device {
    /// One message of the answer. A long list of peers, or of a peer's networks, goes on in the next one.
    fn take(&mut self, attrs: &[u8]) {
        for (kind, value) in wire::attributes(attrs) {
            match kind {
                PRIVATE_KEY => self.private_key = key(value).map(PrivateKey),
                PUBLIC_KEY => self.public_key = key(value).map(PublicKey),
                LISTEN_PORT => self.port = wire::u16_at(value, 0).unwrap_or_default(),
                PEERS => {
                    for peer in wire::attributes(value).filter_map(|(_, peer)| parse_peer(peer)) {
                        match self.peers.last_mut().filter(|last| last.key == peer.key) {
                            Some(last) => last.allowed.extend(peer.allowed),
                            None => self.peers.push(peer),
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// Of a link without one there is a key of zeros, or none.
fn key(value: &[u8]) -> Option<[u8; KEY]> {
    let key: [u8; KEY] = value.try_into().ok()?;
    (key != [0; KEY]).then_some(key)
}

fn parse_peer(attrs: &[u8]) -> Option<Peer> {
    let key = PublicKey(wire::attribute(attrs, PEER_PUBLIC_KEY)?.try_into().ok()?);
    let allowed = wire::attribute(attrs, PEER_ALLOWED).unwrap_or_default();
    Some(Peer {
        key,
        endpoint: wire::attribute(attrs, PEER_ENDPOINT).and_then(parse_endpoint),
        allowed: wire::attributes(allowed)
            .filter_map(|(_, item)| {
                let length = *wire::attribute(item, ALLOWED_LENGTH)?.first()?;
                Some((
                    parse_address(wire::attribute(item, ALLOWED_ADDRESS)?)?,
                    length,
                ))
            })
            .collect(),
    })
}

fn parse_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let family = wire::u16_at(bytes, 0)?;
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address = match i32::from(family) {
        libc::AF_INET => bytes.get(4..8)?,
        _ => bytes.get(8..24)?,
    };
    Some(SocketAddr::new(parse_address(address)?, port))
}

fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(byte: u8, endpoint: &str, allowed: &[(&str, u8)]) -> Peer {
        Peer {
            key: PublicKey([byte; KEY]),
            endpoint: (!endpoint.is_empty()).then(|| endpoint.parse().unwrap()),
            allowed: allowed
                .iter()
                .map(|(address, length)| (address.parse().unwrap(), *length))
                .collect(),
        }
    }

    /// Little-endian machines alone, as the numbers are the host's.
    #[cfg(target_endian = "little")]
    #[test]
    fn the_bytes_of_a_peer() {
        let key = [7; KEY];
        let endpoint4 = [2, 0, 0xca, 0x9f, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        let allowed4 = [
            &[28, 0, 0, 0x80][..],
            &[6, 0, 1, 0, 2, 0, 0, 0],
            &[8, 0, 2, 0, 10, 42, 1, 0],
            &[5, 0, 3, 0, 24, 0, 0, 0],
        ]
        .concat();
        let want = [
            // The command and its version; the name of the link.
            &[1, 1, 0, 0][..],
            &[8, 0, 2, 0],
            b"wg0\0",
            // Peers, of which there is one: its key, "these networks alone", where it is, and its networks.
            &[104, 0, 8, 0x80],
            &[100, 0, 0, 0x80],
            &[36, 0, 1, 0],
            &key,
            &[8, 0, 3, 0, 2, 0, 0, 0],
            &[20, 0, 4, 0],
            &endpoint4,
            &[32, 0, 9, 0x80],
            &allowed4,
        ]
        .concat();
        let one = peer(7, "192.0.2.2:51871", &[("10.42.1.0", 24)]);
        let made = message(30, "wg0", &Change::Peer(one));
        assert_eq!(made.kind, 30);
        assert_eq!(made.body.0, want);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_bytes_of_other_changes() {
        let private_key = PrivateKey::clamped([255; KEY]);
        let device = Change::Device {
            private_key: private_key.clone(),
            port: 51871,
        };
        let want = [
            &[1, 1, 0, 0, 8, 0, 2, 0][..],
            b"wg0\0",
            &[36, 0, 3, 0],
            private_key.bytes(),
            &[6, 0, 6, 0, 0x9f, 0xca, 0, 0],
        ]
        .concat();
        assert_eq!(message(30, "wg0", &device).body.0, want);
        let want = [
            &[1, 1, 0, 0, 8, 0, 2, 0][..],
            b"wg0\0",
            &[52, 0, 8, 0x80, 48, 0, 0, 0x80, 36, 0, 1, 0],
            &[9; KEY],
            &[8, 0, 3, 0, 1, 0, 0, 0],
        ]
        .concat();
        let remove = Change::Remove(PublicKey([9; KEY]));
        assert_eq!(message(30, "wg0", &remove).body.0, want);
        assert_eq!(
            socket_address("[fd00::2]:51871".parse().unwrap()),
            [
                &[10, 0, 0xca, 0x9f, 0, 0, 0, 0, 0xfd][..],
                &[0; 14],
                &[2, 0, 0, 0, 0]
            ]
            .concat()
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let all = [
            peer(1, "192.0.2.2:51871", &[("10.42.1.0", 24), ("fd42::", 64)]),
            peer(2, "[fd00::2]:7", &[("10.42.2.0", 24)]),
            peer(3, "", &[]),
        ];
        let mut device = Device::default();
        for one in &all {
            let message = message(30, "wg0", &Change::Peer(one.clone()));
            device.take(&message.body.0[GENERIC_HEADER..]);
        }
        // The networks of the last one go on in another message.
        let more = peer(3, "", &[("10.42.3.0", 24)]);
        let more = message(30, "wg0", &Change::Peer(more));
        device.take(&more.body.0[GENERIC_HEADER..]);
        let mut want = all.to_vec();
        want[2].allowed.insert(([10, 42, 3, 0].into(), 24));
        assert_eq!(device.peers, want);
        assert_eq!(device.public_key, None);
    }

    #[test]
    fn some_bits_of_a_private_key_are_fixed() {
        for (bytes, first, last) in [([255; KEY], 248, 127), ([0; KEY], 0, 64)] {
            let key = PrivateKey::clamped(bytes);
            assert_eq!((key.0[0], key.0[KEY - 1]), (first, last));
        }
        assert_eq!(format!("{:?}", PrivateKey::clamped([7; KEY])), "PrivateKey");
    }
}
