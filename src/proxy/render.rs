//! From plans to nf_tables elements, and from one state to the next. Pure.
//!
//! Owns the picture of what the kernel holds of one family. What a change costs depends on the Service that
//! changed, not on how many there are: rules look services up in maps and never change; each number
//! of backends has one chain, shared by all services with that many.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use netns::nft::{Element, Value, Verdict};
use sha2::{Digest, Sha256};

use super::{
    model::{Audience, Backend, Front, Outcome, Plan, Protocol},
    slots::{Places, assign},
};
use crate::{addresses::family::Family, hex::hex, informer::Key, repair::flows};

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

/// A chain that lets clients of these ranges through to a dealer, and drops all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gate {
    pub dealer: Dealer,
    pub sources: BTreeSet<IpNet>,
}

impl Gate {
    pub fn name(&self) -> String {
        let mut digest = Sha256::new();
        for range in &self.sources {
            digest.update(format!("{range} "));
        }
        let hash = hex(&digest.finalize()[..8]);
        format!("{}-from-{hash}", self.dealer.name())
    }
}

/// Chains that fronts point to; they are never changed, and go when the table is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    pub dealers: BTreeSet<Dealer>,
    pub gates: BTreeSet<Gate>,
}

impl Chains {
    pub fn len(&self) -> usize {
        self.dealers.len() + self.gates.len()
    }

    fn add(&mut self, more: Self) {
        self.dealers.extend(more.dealers);
        self.gates.extend(more.gates);
    }

    fn without(&self, known: &Self) -> Self {
        Self {
            dealers: self.dealers.difference(&known.dealers).copied().collect(),
            gates: self.gates.difference(&known.gates).cloned().collect(),
        }
    }
}

/// What the owner of a Service should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub service: Key,
    pub uid: String,
    pub message: String,
}

/// What one step sends to the kernel: deletions, then chains, then additions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub delete: Vec<(SetName, Element)>,
    pub chains: Chains,
    pub add: Vec<(SetName, Element)>,
    /// Fronts whose backends changed.
    pub moved: Vec<Front>,
    pub notices: Vec<Notice>,
}

impl Step {
    /// Whether the kernel has nothing to do.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

type Place = (SetName, Vec<u8>);
/// Where clients knock, whoever they are: one Service has it whole.
type Spot = (Option<IpAddr>, Protocol, u16);

/// Who comes first where several want one spot: the Service whose cluster IP it is, then the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    foreign: bool,
    since: (i64, String),
    key: Key,
}

/// Everything the table of one family should hold.
#[derive(Debug)]
pub struct State {
    family: Family,
    services: HashMap<Key, Service>,
    spots: HashMap<Spot, BTreeSet<Rank>>,
    /// Who wants an element: many services share a local backend.
    claims: HashMap<Place, Vec<(Key, Value)>>,
    chains: Chains,
}

#[derive(Debug)]
struct Service {
    /// What it asks for.
    wish: Arc<Plan>,
    /// Of that, what no other Service has.
    plan: Arc<Plan>,
    slots: BTreeMap<Front, Vec<Backend>>,
    elements: BTreeMap<Place, Value>,
}

impl Service {
    fn new(family: Family) -> Self {
        let nothing = Arc::new(Plan::nothing(family));
        Self {
            wish: nothing.clone(),
            plan: nothing,
            slots: BTreeMap::new(),
            elements: BTreeMap::new(),
        }
    }
}

impl State {
    pub fn new(family: Family) -> Self {
        Self {
            family,
            services: HashMap::new(),
            spots: HashMap::new(),
            claims: HashMap::new(),
            chains: Chains::default(),
        }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Takes one Service's new plan over (an empty one if it went) and adds what that changes, for
    /// others too if it gives up or takes a spot.
    pub fn update(&mut self, key: &Key, plan: Plan, step: &mut Step) {
        let known = self.services.get(key);
        let before = known.map_or_else(
            || Arc::new(Plan::nothing(self.family)),
            |service| service.wish.clone(),
        );
        if *before == plan {
            return;
        }
        if before.ignored != plan.ignored {
            step.notices.extend(ignored(key, &plan));
        }
        let mut affected = BTreeSet::from([key.clone()]);
        let spots: BTreeSet<Spot> = before
            .fronts
            .keys()
            .chain(plan.fronts.keys())
            .map(spot)
            .collect();
        for spot in spots {
            let wanting = self.spots.entry(spot).or_default();
            let first = wanting.first().cloned();
            wanting.retain(|rank| rank.key != *key);
            if plan.fronts.keys().any(|front| self::spot(front) == spot) {
                wanting.insert(rank(key, &plan, spot));
            }
            let now = wanting.first();
            if first.as_ref() != now {
                affected.extend(first.iter().chain(now).map(|rank| rank.key.clone()));
            }
            if wanting.is_empty() {
                self.spots.remove(&spot);
            }
        }
        let service = self.services.entry(key.clone());
        service.or_insert_with(|| Service::new(self.family)).wish = Arc::new(plan);
        for key in affected {
            self.settle(&key, step);
        }
    }

    /// Brings one Service's elements to what it wishes and has.
    fn settle(&mut self, key: &Key, step: &mut Step) {
        let Some(mut service) = self.services.remove(key) else {
            return;
        };
        let plan = self.won(key, &service.wish, step);
        if service.plan == plan {
            return self.keep(key, service);
        }
        let before = std::mem::replace(&mut service.plan, plan);
        service.slots = slots(&service.slots, &service.plan);
        let old = std::mem::take(&mut service.elements);
        let chains = elements(&mut service);
        step.chains.add(chains.without(&self.chains));
        self.chains.add(chains);
        for (place, value) in &old {
            if service.elements.get(place) != Some(value) {
                self.release(key, place, step);
            }
        }
        for (place, value) in &service.elements {
            if old.get(place) != Some(value) {
                self.claim(key, place, value, step);
            }
        }
        step.moved.extend(moved(&before, &service.plan));
        self.keep(key, service);
    }

    /// The part of a wish whose spots no other Service has before it.
    fn won(&self, key: &Key, wish: &Arc<Plan>, step: &mut Step) -> Arc<Plan> {
        let owner = |front: &Front| self.spots.get(&spot(front))?.first();
        let has = |front: &Front| owner(front).is_some_and(|first| first.key == *key);
        let lost = wish.fronts.keys().find(|front| !has(front));
        let Some(lost) = lost else {
            return wish.clone();
        };
        if let (Some(first), Some(address)) = (owner(lost), lost.address) {
            step.notices.push(Notice {
                service: key.clone(),
                uid: wish.since.1.clone(),
                message: format!(
                    "{} is not served for this Service: {}/{} has it",
                    SocketAddr::new(address, lost.port),
                    first.key.namespace,
                    first.key.name
                ),
            });
        }
        let mut plan = (**wish).clone();
        plan.fronts.retain(|front, _| has(front));
        plan.masqueraded.retain(has);
        Arc::new(plan)
    }

    /// Everything, for a table that is made anew.
    pub fn whole(&self) -> Step {
        let add = self.claims.iter().filter_map(|((set, key), claims)| {
            let (_, value) = claims.first()?;
            Some((*set, element(key, value)))
        });
        Step {
            add: add.collect(),
            chains: self.chains.clone(),
            ..Step::default()
        }
    }

    /// Where senders of UDP write to.
    pub fn udp_fronts(&self) -> BTreeSet<flows::Front> {
        let udp = self.spots.keys().filter(|spot| spot.1 == Protocol::Udp);
        udp.map(|(address, _, port)| (*address, *port)).collect()
    }

    /// Where UDP for this address and port may arrive, whoever sends it.
    pub fn served(&self, (address, port): flows::Front) -> BTreeSet<(IpAddr, u16)> {
        let wanted = (address, Protocol::Udp, port);
        let owner = self.spots.get(&wanted).and_then(BTreeSet::first);
        let service = owner.and_then(|rank| self.services.get(&rank.key));
        let fronts = service.into_iter().flat_map(|service| &service.plan.fronts);
        fronts
            .filter(|(front, _)| spot(front) == wanted)
            .filter_map(|(_, outcome)| match outcome {
                Outcome::Forward { backends, .. } => Some(backends),
                Outcome::Refuse | Outcome::Drop => None,
            })
            .flatten()
            .copied()
            .collect()
    }

    /// How many chains there are, used or not.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Forgets the chains that nothing points to any more, for a table that is made anew.
    pub fn forget_chains(&mut self) {
        let mut used = Chains::default();
        for service in self.services.values() {
            used.add(chains(&service.plan, &service.slots));
        }
        self.chains = used;
    }

    fn keep(&mut self, key: &Key, service: Service) {
        if !service.wish.is_nothing() {
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
            Outcome::Forward {
                backends, affinity, ..
            } => {
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

/// The chain of a front, and the gate before it if there is one.
fn chain(
    front: &Front,
    places: usize,
    affinity: Option<u32>,
    sources: &BTreeSet<IpNet>,
) -> (Dealer, Option<Gate>) {
    let dealer = Dealer {
        door: Door::of(front),
        places: places as u32,
        affinity,
    };
    let gate = (!sources.is_empty()).then(|| Gate {
        dealer,
        sources: sources.clone(),
    });
    (dealer, gate)
}

fn chains(plan: &Plan, slots: &BTreeMap<Front, Vec<Backend>>) -> Chains {
    let mut chains = Chains::default();
    for (front, outcome) in &plan.fronts {
        if let Outcome::Forward {
            affinity, sources, ..
        } = outcome
        {
            let places = slots.get(front).map_or(0, Vec::len);
            let (dealer, gate) = chain(front, places, *affinity, sources);
            chains.dealers.insert(dealer);
            chains.gates.extend(gate);
        }
    }
    chains
}

/// Fills in a service's elements; returns the chains they point to.
fn elements(service: &mut Service) -> Chains {
    let Service {
        plan,
        slots,
        elements,
        ..
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
            Outcome::Forward {
                affinity, sources, ..
            } => {
                let slots = slots.get(front).map_or(&[][..], Vec::as_slice);
                let (dealer, gate) = chain(front, slots.len(), *affinity, sources);
                let to = gate.map_or_else(|| dealer.name(), |gate| gate.name());
                let verdict = Value::Verdict(Verdict::Goto(to));
                put(SetName::Door(door), key(front), verdict);
                if door == Door::Ports && front.protocol == Protocol::Tcp {
                    put(SetName::LoopbackPorts, key(front), Value::None);
                }
                for (slot, (address, port)) in (0u32..).zip(slots) {
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
    chains(plan, slots)
}

fn spot(front: &Front) -> Spot {
    (front.address, front.protocol, front.port)
}

fn rank(key: &Key, plan: &Plan, spot: Spot) -> Rank {
    let own = spot
        .0
        .is_some_and(|address| plan.cluster_ips.contains(&address));
    Rank {
        foreign: !own,
        since: plan.since.clone(),
        key: key.clone(),
    }
}

fn ignored(key: &Key, plan: &Plan) -> impl Iterator<Item = Notice> {
    plan.ignored.iter().map(|(address, why)| Notice {
        service: key.clone(),
        uid: plan.since.1.clone(),
        message: format!("the external address {address} is not served: {why}"),
    })
}

/// Fronts whose backends differ between two plans.
fn moved(before: &Plan, after: &Plan) -> Vec<Front> {
    let backends = |plan: &Plan, front: &Front| match plan.fronts.get(front) {
        Some(Outcome::Forward { backends, .. }) => backends.clone(),
        _ => BTreeSet::new(),
    };
    let fronts: BTreeSet<&Front> = before.fronts.keys().chain(after.fronts.keys()).collect();
    fronts
        .into_iter()
        .filter(|front| backends(before, front) != backends(after, front))
        .copied()
        .collect()
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

fn element(key: &[u8], value: &Value) -> Element {
    Element {
        key: key.to_vec(),
        value: value.clone(),
    }
}
