//! Policies and pods as the plan works with them, and what it comes to: which chain a pod has in each
//! direction, and what that lets through. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::ranges::Ranges;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As objects name it; TCP where they do not. `None`: another one.
    pub fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A pod with an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    /// By their names.
    pub ports: BTreeMap<(Protocol, String), u16>,
    /// It is on this node.
    pub is_local: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
}

/// Where connections may go to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Protocols without ports too.
    All,
    Some(BTreeSet<PortRange>),
}

impl Ports {
    fn include(&self, protocol: u8, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Some(ranges) => ranges.iter().any(|range| {
                range.protocol.number() == protocol && (range.first..=range.last).contains(&port)
            }),
        }
    }
}

/// The other ends of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    pub everyone: bool,
    pub networks: Ranges,
    /// A rule selects pods, be there any or not.
    pub selects_pods: bool,
    pub pods: BTreeSet<IpAddr>,
}

impl Peers {
    fn include(&self, address: IpAddr) -> bool {
        self.everyone || self.pods.contains(&address) || self.networks.contains(address)
    }
}

/// What is let through; everything else ends there.
pub type Allowed = BTreeMap<Ports, Peers>;

/// What happens to the connections of the pods that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub direction: Direction,
    pub allowed: Allowed,
}

impl Chain {
    pub fn passes(&self, peer: IpAddr, protocol: u8, port: u16) -> bool {
        let mut fitting = self
            .allowed
            .iter()
            .filter(|(ports, _)| ports.include(protocol, port));
        fitting.any(|(_, peers)| peers.include(peer))
    }
}

/// What the kernel shall hold, for one family of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The chains of this node's pods by address; a pod that is not here is not isolated.
    pub ingress: BTreeMap<IpAddr, String>,
    pub egress: BTreeMap<IpAddr, String>,
    /// By name. Chains of one name differ at most in the pods that they let through.
    pub chains: BTreeMap<String, Chain>,
}

impl Desired {
    pub fn of(&self, direction: Direction) -> &BTreeMap<IpAddr, String> {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Pods that are isolated in a direction.
    pub fn isolated(&self) -> BTreeSet<IpAddr> {
        self.ingress
            .keys()
            .chain(self.egress.keys())
            .copied()
            .collect()
    }

    /// Whether nobody is isolated.
    pub fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty()
    }

    /// Whether something that went through before may not do so any more.
    pub fn may_be_stricter_than(&self, before: &Self) -> bool {
        let moved = [Direction::Ingress, Direction::Egress]
            .into_iter()
            .any(|direction| {
                let before = before.of(direction);
                let mut now = self.of(direction).iter();
                now.any(|(address, chain)| before.get(address) != Some(chain))
            });
        let shrunk = || {
            before.chains.iter().any(|(name, was)| {
                let now = self.chains.get(name);
                let now = now.into_iter().flat_map(|chain| chain.allowed.values());
                let mut both = was.allowed.values().zip(now);
                both.any(|(was, now)| !was.pods.is_subset(&now.pods))
            })
        };
        moved || shrunk()
    }

    /// Whether a new connection between two addresses goes through on this node.
    pub fn allows(&self, client: IpAddr, server: IpAddr, protocol: u8, port: u16) -> bool {
        client == server
            || self.passes(Direction::Egress, client, server, protocol, port)
                && self.passes(Direction::Ingress, server, client, protocol, port)
    }

    /// The same as far as the pod in question decides it.
    pub fn passes(
        &self,
        direction: Direction,
        pod: IpAddr,
        peer: IpAddr,
        protocol: u8,
        port: u16,
    ) -> bool {
        let Some(chain) = self.of(direction).get(&pod) else {
            return true;
        };
        let chain = self.chains.get(chain);
        chain.is_some_and(|chain| chain.passes(peer, protocol, port))
    }
}
