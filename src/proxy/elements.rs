//! The sets and maps of the table, and what they hold of one Service. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netns::nft::Value;

use super::{
    chains::{Chain, Chains, DROPPED, Dealer, Gate},
    model::{Audience, Front, Outcome, Plan, Protocol},
    slots::Slots,
};

/// A chain's number and a place's, as maps have them: the upper half of each tells it from whatever else a
/// packet's priority may be.
pub const CHAINS: u32 = 0x7664_0000;
pub const PLACES: u32 = 0x7665_0000;
/// The bits that both have in common.
pub const COMMON: u32 = 0xfffe_0000;

/// The four maps a new connection is looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    Addresses,
    Ports,
    OutsideAddresses,
    OutsidePorts,
}

impl Door {
    pub const ALL: [Self; 4] = [
        Self::Addresses,
        Self::Ports,
        Self::OutsideAddresses,
        Self::OutsidePorts,
    ];

    fn of(front: &Front) -> Self {
        match (front.address, front.audience) {
            (Some(_), Audience::Everyone) => Self::Addresses,
            (None, Audience::Everyone) => Self::Ports,
            (Some(_), Audience::Outside) => Self::OutsideAddresses,
            (None, Audience::Outside) => Self::OutsidePorts,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Ports => "ports",
            Self::OutsideAddresses => "outside-addresses",
            Self::OutsidePorts => "outside-ports",
        }
    }

    /// Keys begin with the destination address.
    pub fn by_address(self) -> bool {
        matches!(self, Self::Addresses | Self::OutsideAddresses)
    }
}

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    Door(Door),
    Backs(Door),
    ClusterIps,
    MasqueradedAddresses,
    MasqueradedPorts,
    RefusedAddresses,
    RefusedPorts,
    Hairpin,
    Balanced,
    Pooled,
    /// Node ports that are passed on from loopback addresses too.
    LoopbackPorts,
}

impl SetName {
    pub fn name(self) -> String {
        match self {
            Self::Door(door) => door.name().into(),
            Self::Backs(door) => format!("{}-backs", door.name()),
            Self::ClusterIps => "cluster-ips".into(),
            Self::MasqueradedAddresses => "masqueraded-addresses".into(),
            Self::MasqueradedPorts => "masqueraded-ports".into(),
            Self::RefusedAddresses => "refused-addresses".into(),
            Self::RefusedPorts => "refused-ports".into(),
            Self::Hairpin => "hairpin".into(),
            Self::Balanced => "balanced".into(),
            Self::Pooled => "pooled".into(),
            Self::LoopbackPorts => "loopback-ports".into(),
        }
    }

    /// Several Services may want one element of it: theirs are all the same.
    pub fn is_shared(self) -> bool {
        matches!(
            self,
            Self::ClusterIps | Self::Hairpin | Self::Balanced | Self::Pooled
        )
    }
}

/// A set and a key.
pub type Place = (SetName, Vec<u8>);

/// The dealer of a front, and where it leads: to the gate before that, if there is one.
fn chain(
    front: &Front,
    places: usize,
    affinity: Option<u32>,
    sources: &BTreeSet<IpNet>,
) -> (Dealer, Chain) {
    let dealer = Dealer {
        door: Door::of(front),
        places: places as u32,
        affinity,
    };
    let sources = sources.clone();
    let chain = match sources.is_empty() {
        true => Chain::Dealer(dealer),
        false => Chain::Gate(Gate { dealer, sources }),
    };
    (dealer, chain)
}

/// All chains that a plan needs.
pub fn chains(plan: &Plan, slots: &Slots) -> BTreeSet<Chain> {
    let mut chains = BTreeSet::new();
    for (front, outcome) in &plan.fronts {
        if let Outcome::Forward {
            affinity, sources, ..
        } = outcome
        {
            let places = slots.of(front).len();
            let (dealer, chain) = chain(front, places, *affinity, sources);
            chains.extend([Chain::Dealer(dealer), chain]);
        }
    }
    chains
}

/// A service's elements. `chains` has all that it needs.
pub fn elements(plan: &Plan, slots: &Slots, chains: &Chains) -> BTreeMap<Place, Value> {
    let mut elements = BTreeMap::new();
    let mut put = |set, key: Vec<u8>, value| {
        elements.insert((set, key), value);
    };
    let number = |number: u32| Value::Data((CHAINS + number).to_ne_bytes().to_vec());
    for (front, outcome) in &plan.fronts {
        let door = Door::of(front);
        match outcome {
            Outcome::Drop => put(SetName::Door(door), key(front), number(DROPPED)),
            Outcome::Refuse => {
                let set = match front.address {
                    Some(_) => SetName::RefusedAddresses,
                    None => SetName::RefusedPorts,
                };
                put(set, key(front), Value::None);
            }
            Outcome::Forward {
                affinity, sources, ..
            } => {
                let slots = slots.of(front);
                let (_, chain) = chain(front, slots.len(), *affinity, sources);
                let leads_to = chains.number(&chain).unwrap_or(DROPPED);
                put(SetName::Door(door), key(front), number(leads_to));
                if door == Door::Ports && front.protocol == Protocol::Tcp {
                    put(SetName::LoopbackPorts, key(front), Value::None);
                }
                for (slot, (address, port)) in (PLACES..).zip(slots) {
                    let key = [key(front), slot.to_ne_bytes().to_vec()].concat();
                    let [high, low] = port.to_be_bytes();
                    let data = [octets(*address), vec![high, low, 0, 0]].concat();
                    put(SetName::Backs(door), key, Value::Data(data));
                }
            }
        }
    }
    for address in &plan.cluster_ips {
        put(SetName::ClusterIps, octets(*address), Value::None);
    }
    for address in &plan.balanced {
        put(SetName::Balanced, octets(*address), Value::None);
    }
    for address in &plan.pooled {
        put(SetName::Pooled, octets(*address), Value::None);
    }
    for front in &plan.masqueraded {
        let set = match front.address {
            Some(_) => SetName::MasqueradedAddresses,
            None => SetName::MasqueradedPorts,
        };
        put(set, key(front), Value::None);
    }
    for address in &plan.local {
        put(SetName::Hairpin, hairpin(*address), Value::None);
    }
    elements
}

fn key(front: &Front) -> Vec<u8> {
    let [high, low] = front.port.to_be_bytes();
    let address = front.address.map(octets).unwrap_or_default();
    let rest = vec![front.protocol.number(), 0, 0, 0, high, low, 0, 0];
    [address, rest].concat()
}

fn hairpin(address: IpAddr) -> Vec<u8> {
    octets(address).repeat(2)
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
