//! Ports of the node's addresses on which its own programs listen: no load balancer takes them away.
//!
//! The kernel tells nobody when a program begins or ceases to listen, so this is read whenever a Service is planned
//! that has an address of the node, and with that now and then for all of them.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::model::Protocol;
use crate::addresses::canonical;

/// As the kernel writes states of sockets: of TCP, one that listens; of UDP, one without a peer.
const LISTENS: &str = "0A";
const HAS_NO_PEER: &str = "07";

/// Where programs of this network namespace listen; an unspecified address is every one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening(BTreeSet<(Protocol, IpAddr, u16)>);

impl Listening {
    /// Asks the kernel. Without a file, there is nobody of that family.
    pub fn read() -> io::Result<Self> {
        let mut found = Self::default();
        for (name, protocol, state) in [
            ("tcp", Protocol::Tcp, LISTENS),
            ("tcp6", Protocol::Tcp, LISTENS),
            ("udp", Protocol::Udp, HAS_NO_PEER),
            ("udp6", Protocol::Udp, HAS_NO_PEER),
        ] {
            match std::fs::File::open(format!("/proc/thread-self/net/{name}")) {
                Ok(file) => found.add(BufReader::new(file), protocol, state)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Whether connections to this address reach a program of the node. SCTP is not looked at. Who listens on
    /// every IPv6 address is taken to do so on every IPv4 address too: the kernel does not tell.
    pub fn has(&self, address: IpAddr, protocol: Protocol, port: u16) -> bool {
        let everywhere = Ipv6Addr::UNSPECIFIED.into();
        let of_family = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => everywhere,
        };
        let mut listened = [address, of_family, everywhere].into_iter();
        listened.any(|address| self.0.contains(&(protocol, address, port)))
    }

    /// Of TCP, those that listen come first, and the many others are not read.
    fn add(&mut self, lines: impl BufRead, protocol: Protocol, wanted: &str) -> io::Result<()> {
        for line in lines.lines().skip(1) {
            let line = line?;
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), Some(_), Some(state)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match (state == wanted, protocol) {
                (true, _) => self
                    .0
                    .extend(socket(local).map(|(at, port)| (protocol, at, port))),
                (false, Protocol::Tcp) => return Ok(()),
                (false, _) => {}
            }
        }
        Ok(())
    }
}

/// `0100007F:1F90`: words of the address as the machine has them in memory, and the port.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = address.get(at..at + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            canonical(octets.into())
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn what_the_kernel_tells() -> io::Result<()> {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let udp = UdpSocket::bind("0.0.0.0:0")?;
        let both = TcpListener::bind("[::]:0")?;
        let port = |address: io::Result<SocketAddr>| address.map(|address| address.port());
        let (tcp_port, udp_port) = (port(tcp.local_addr())?, port(udp.local_addr())?);
        let both_port = port(both.local_addr())?;
        let found = Listening::read()?;
        let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
        let other = IpAddr::from([192, 0, 2, 1]);
        let other_v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        for (address, protocol, port, want) in [
            (localhost, Protocol::Tcp, tcp_port, true),
            (other, Protocol::Tcp, tcp_port, false),
            (other, Protocol::Udp, udp_port, true),
            (other_v6, Protocol::Udp, udp_port, false),
            (other_v6, Protocol::Tcp, both_port, true),
            (other, Protocol::Tcp, both_port, true),
        ] {
            assert_eq!(
                found.has(address, protocol, port),
                want,
                "{address} {protocol:?}"
            );
        }
        drop((tcp, udp));
        assert!(!Listening::read()?.has(localhost, Protocol::Tcp, tcp_port));
        Ok(())
    }

    #[test]
    fn every_spelling_of_an_address() {
        if cfg!(target_endian = "big") {
            return; // the texts are those of other machines
        }
        for (text, want) in [
            ("0100007F:1F90", Some(("127.0.0.1", 8080))),
            ("00000000:0016", Some(("0.0.0.0", 22))),
            ("00000000000000000000000000000000:0016", Some(("::", 22))),
            (
                "0000000000000000FFFF0000010200C0:0050",
                Some(("192.0.2.1", 80)),
            ),
            (
                "B80D0120000000000000000001000000:0050",
                Some(("2001:db8::1", 80)),
            ),
            ("nonsense", None),
            ("00:0016", None),
        ] {
            let want = want.map(|(address, port)| (address.parse().unwrap(), port));
            assert_eq!(socket(text), want, "{text}");
        }
    }
}
