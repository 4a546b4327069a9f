//! From plans to nf_tables elements, and from one state to the next. Pure.
//!
//! Owns the picture of what the kernel holds. What a change costs depends on the Service that
//! changed, not on how many there are: rules look services up in maps and never change; each number
//! of backends has one chain, shared by all services with that many.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use netns::nft::{Element, Value, Verdict};

use super::{
    model::{Audience, Backend, Front, Outcome, Plan},
    slots::{Places, assign},
};
use crate::informer::Key;

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
        }
    }
}

/// A chain that deals connections to `places` places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dealer {
    pub door: Door,
    pub places: u32,
    pub affinity: Option<u32>,
}

impl Dealer {
    pub fn name(self) -> String {
        match self.affinity {
            None => format!("{}-{}", self.door.name(), self.places),
            Some(seconds) => format!("{}-{}-sticky-{seconds}", self.door.name(), self.places),
        }
    }
}

/// What one step sends to the kernel: deletions, then chains, then additions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub delete: Vec<(SetName, Element)>,
    pub dealers: BTreeSet<Dealer>,
    pub add: Vec<(SetName, Element)>,
    /// Fronts whose backends changed, with those they have now.
    pub moved: Vec<(Front, BTreeSet<Backend>)>,
}

impl Step {
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

type Place = (SetName, Vec<u8>);

/// Everything the table should hold.
#[derive(Debug, Default)]
pub struct State {
    services: HashMap<Key, Service>,
    /// Who wants an element, first come first served: two services may claim one external
    /// address, and many share a local backend.
    claims: HashMap<Place, Vec<(Key, Value)>>,
    dealers: BTreeSet<Dealer>,
}

#[derive(Debug, Default)]
struct Service {
    plan: Plan,
    slots: BTreeMap<Front, Vec<Backend>>,
    elements: BTreeMap<Place, Value>,
}

impl State {
    /// Takes one Service's new plan over (an empty one if it went) and adds what that changes.
    pub fn update(&mut self, key: &Key, plan: Plan, step: &mut Step) {
        let before = self.services.remove(key).unwrap_or_default();
        if before.plan == plan {
            self.keep(key, before);
            return;
        }
        let mut after = Service {
            slots: slots(&before.slots, &plan),
            plan,
            elements: BTreeMap::new(),
        };
        let dealers = elements(&mut after);
        step.dealers.extend(dealers.difference(&self.dealers));
        self.dealers.extend(dealers);
        for (place, value) in &before.elements {
            if after.elements.get(place) != Some(value) {
                self.release(key, place, step);
            }
        }
        for (place, value) in &after.elements {
            if before.elements.get(place) != Some(value) {
                self.claim(key, place, value, step);
            }
        }
        step.moved.extend(moved(&before.plan, &after.plan));
        self.keep(key, after);
    }

    /// Everything, for a table that is made anew.
    pub fn whole(&self) -> Step {
        let add = self.claims.iter().filter_map(|((set, key), claims)| {
            let (_, value) = claims.first()?;
            Some((*set, element(key, value)))
        });
        Step {
            add: add.collect(),
            dealers: self.dealers.clone(),
            ..Step::default()
        }
    }

    fn keep(&mut self, key: &Key, service: Service) {
        if !service.elements.is_empty() {
            self.services.insert(key.clone(), service);
        }
    }

    fn claim(&mut self, key: &Key, place: &Place, value: &Value, step: &mut Step) {
        let claims = self.claims.entry(place.clone()).or_default();
        claims.push((key.clone(), value.clone()));
        if claims.len() == 1 {
            step.add.push((place.0, element(&place.1, value)));
        }
    }

    fn release(&mut self, key: &Key, place: &Place, step: &mut Step) {
        let Some(claims) = self.claims.get_mut(place) else {
            return;
        };
        let Some(at) = claims.iter().position(|(owner, _)| owner == key) else {
            return;
        };
        let (_, value) = claims.remove(at);
        let heir = claims.first().map(|(_, value)| value.clone());
        if heir.is_none() {
            self.claims.remove(place);
        }
        if at > 0 || heir.as_ref() == Some(&value) {
            return;
        }
        // Added earlier in this same step: nothing of it has reached the kernel.
        let added = step
            .add
            .iter()
            .position(|(set, added)| *set == place.0 && added.key == place.1);
        match added {
            Some(added) => {
                step.add.swap_remove(added);
            }
            None => step.delete.push((place.0, element(&place.1, &value))),
        }
        if let Some(heir) = heir {
            step.add.push((place.0, element(&place.1, &heir)));
        }
    }
}

fn slots(before: &BTreeMap<Front, Vec<Backend>>, plan: &Plan) -> BTreeMap<Front, Vec<Backend>> {
    plan.fronts
        .iter()
        .filter_map(|(front, outcome)| match outcome {
            Outcome::Forward { backends, affinity } => {
                let before = before.get(front).map_or(&[][..], Vec::as_slice);
                let places = match affinity {
                    Some(_) => Places::Sticky,
                    None => Places::Dense,
                };
                Some((*front, assign(before, backends, places)))
            }
            Outcome::Refuse | Outcome::Drop => None,
        })
        .collect()
}

/// Fills in a service's elements; returns the chains they point to.
fn elements(service: &mut Service) -> BTreeSet<Dealer> {
    let mut dealers = BTreeSet::new();
    let Service {
        plan,
        slots,
        elements,
    } = service;
    let mut put = |set, key: Vec<u8>, value| {
        elements.insert((set, key), value);
    };
    for (front, outcome) in &plan.fronts {
        let door = Door::of(front);
        match outcome {
            Outcome::Drop => put(
                SetName::Door(door),
                key(front),
                Value::Verdict(Verdict::Drop),
            ),
            Outcome::Refuse => {
                let set = match front.address {
                    Some(_) => SetName::RefusedAddresses,
                    None => SetName::RefusedPorts,
                };
                put(set, key(front), Value::None);
            }
            Outcome::Forward { affinity, .. } => {
                let slots = slots.get(front).map_or(&[][..], Vec::as_slice);
                let dealer = Dealer {
                    door,
                    places: slots.len() as u32,
                    affinity: *affinity,
                };
                dealers.insert(dealer);
                let verdict = Value::Verdict(Verdict::Goto(dealer.name()));
                put(SetName::Door(door), key(front), verdict);
                for (slot, (address, port)) in (0u32..).zip(slots) {
                    let key = [key(front), slot.to_ne_bytes().to_vec()].concat();
                    let [high, low] = port.to_be_bytes();
                    let data = [&address.octets()[..], &[high, low, 0, 0]].concat();
                    put(SetName::Backs(door), key, Value::Data(data));
                }
            }
        }
    }
    for address in &plan.cluster_ips {
        put(SetName::ClusterIps, address.octets().to_vec(), Value::None);
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
    dealers
}

/// Fronts whose backends differ between two plans.
fn moved(before: &Plan, after: &Plan) -> Vec<(Front, BTreeSet<Backend>)> {
    let backends = |plan: &Plan, front: &Front| match plan.fronts.get(front) {
        Some(Outcome::Forward { backends, .. }) => backends.clone(),
        _ => BTreeSet::new(),
    };
    let fronts: BTreeSet<&Front> = before.fronts.keys().chain(after.fronts.keys()).collect();
    fronts
        .into_iter()
        .map(|front| (*front, backends(before, front), backends(after, front)))
        .filter(|(_, before, after)| before != after)
        .map(|(front, _, after)| (front, after))
        .collect()
}

fn key(front: &Front) -> Vec<u8> {
    let [high, low] = front.port.to_be_bytes();
    let mut key = Vec::with_capacity(16);
    if let Some(address) = front.address {
        key.extend(address.octets());
    }
    key.extend([front.protocol.number(), 0, 0, 0, high, low, 0, 0]);
    key
}

fn hairpin(address: Ipv4Addr) -> Vec<u8> {
    [address.octets(), address.octets()].concat()
}

fn element(key: &[u8], value: &Value) -> Element {
    Element {
        key: key.to_vec(),
        value: value.clone(),
    }
}
