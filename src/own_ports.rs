//! The ports of the node that are the daemon's own: nothing that an object says ever takes them.
//!
//! Made once by the daemon, which knows where its parts listen; asked by everybody who would lead a
//! port of the node elsewhere (host ports, services) or give one out (node ports). Pure.

use std::{net::IpAddr, sync::Arc};

use crate::addresses::family::{Family, OfFamily};
use netns::nft::{Reg, Rule, Verdict};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Where one part of the daemon listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPort {
    /// `None`: on every address of the node.
    pub address: Option<IpAddr>,
    /// The number in the IP header.
    pub protocol: u8,
    pub port: u16,
    /// Who listens, as users are told.
    pub user: &'static str,
}

/// All of them; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct OwnPorts(Arc<[OwnPort]>);

impl OwnPorts {
    pub fn new(ports: impl IntoIterator<Item = OwnPort>) -> Self {
        Self(ports.into_iter().filter(|own| own.port != 0).collect())
    }

    /// Who listens there; asked for every address, only what is ours on every address counts: of
    /// the others, the rest can be had.
    pub fn user(&self, address: Option<IpAddr>, protocol: u8, port: u16) -> Option<&'static str> {
        self.0
            .iter()
            .filter(|own| (own.protocol, own.port) == (protocol, port))
            .find(|own| own.address.is_none() || own.address == address)
            .map(|own| own.user)
    }

    /// Ports that are ours on every address.
    pub fn everywhere(&self) -> Vec<u16> {
        let everywhere = self.0.iter().filter(|own| own.address.is_none());
        everywhere.map(|own| own.port).collect()
    }

    /// Rules, of a table of this family, that return from their chain with every packet for one of our
    /// ports.
    pub fn spare(&self, family: Family) -> impl Iterator<Item = Rule> {
        let of_family = move |own: &&OwnPort| own.address.is_none_or(|one| one.family() == family);
        self.0.iter().filter(of_family).map(move |own| {
            let rule = Rule::new()
                .protocol(Reg(0))
                .equal(Reg(0), &[own.protocol])
                .destination_port(Reg(0))
                .equal(Reg(0), &own.port.to_be_bytes());
            let rule = match own.address {
                Some(address) => rule.destination_in(address, family.bits(), true),
                None => rule.destination_local(),
            };
            rule.verdict(&Verdict::Return)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_port_is() {
        let own = |address: Option<[u8; 4]>, protocol, port, user| OwnPort {
            address: address.map(IpAddr::from),
            protocol,
            port,
            user,
        };
        let ports = OwnPorts::new([
            own(None, TCP, 6443, "api"),
            own(Some([10, 0, 0, 1]), UDP, 53, "dns"),
            own(None, TCP, 0, "nobody"),
        ]);
        let node = Some(IpAddr::from([192, 0, 2, 1]));
        let gateway = Some(IpAddr::from([10, 0, 0, 1]));
        for (address, protocol, port, want) in [
            (None, TCP, 6443, Some("api")),
            (node, TCP, 6443, Some("api")),
            (node, UDP, 6443, None),
            (gateway, UDP, 53, Some("dns")),
            (None, UDP, 53, None), // every other address can be had
            (node, UDP, 53, None),
            (None, TCP, 0, None), // not known, not listened on
        ] {
            assert_eq!(
                ports.user(address, protocol, port),
                want,
                "{address:?} {port}"
            );
        }
        assert_eq!(ports.everywhere(), [6443]);
    }
}
