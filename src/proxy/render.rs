//! From plans to what the kernel should hold, and from one state to the next. Pure.
//!
//! Owns the picture of what the kernel holds of one family. What a change costs depends on the Service that
//! changed, not on how many there are: rules look services up in maps and never change; each number
//! of backends has one chain, shared by all services with that many.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use netns::nft::Value;

use super::{
    chains::Chains,
    elements::{Place, chains, elements},
    model::{Front, Outcome, Plan, Protocol},
    slots::Slots,
    step::{Delta, Notice, Step, put},
};
use crate::{addresses::family::Family, informer::Key, repair::flows};

/// Where clients knock, whoever they are: one Service has it whole.
type Spot = (Option<IpAddr>, Protocol, u16);

/// Who comes first where several want one spot: the Service whose cluster IP it is, then the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    foreign: bool,
    since: (i64, String),
    key: Arc<Key>,
}

/// Everything the table of one family should hold.
#[derive(Debug)]
pub struct State {
    family: Family,
    services: HashMap<Key, Service>,
    /// Who wants them, the first of them first.
    spots: HashMap<Spot, Vec<Rank>>,
    /// How many want an element of those that are shared: a local backend, say.
    shared: HashMap<Place, usize>,
    chains: Chains,
}

#[derive(Debug)]
struct Service {
    /// What it asks for.
    wish: Arc<Plan>,
    /// Of that, what no other Service has.
    plan: Arc<Plan>,
    slots: Slots,
}

impl Service {
    fn new(family: Family) -> Self {
        let nothing = Arc::new(Plan::nothing(family));
        Self {
            wish: nothing.clone(),
            plan: nothing,
            slots: Slots::default(),
        }
    }
}

impl State {
    pub fn new(family: Family) -> Self {
        Self {
            family,
            services: HashMap::new(),
            spots: HashMap::new(),
            shared: HashMap::new(),
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
        let shared_key = Arc::new(key.clone());
        let mut affected = BTreeSet::from([shared_key.clone()]);
        let spots: BTreeSet<Spot> = before
            .fronts
            .keys()
            .chain(plan.fronts.keys())
            .map(spot)
            .collect();
        for spot in spots {
            let wanting = self.spots.entry(spot).or_default();
            let first = wanting.first().cloned();
            wanting.retain(|rank| *rank.key != *key);
            if plan.fronts.keys().any(|front| self::spot(front) == spot) {
                let rank = rank(&shared_key, &plan, spot);
                let at = wanting.partition_point(|other| *other < rank);
                wanting.reserve_exact(1);
                wanting.insert(at, rank);
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
        let settled = affected.iter().map(|key| self.settle(key, step));
        let settled: Vec<Settled> = settled.collect();
        // What one gives up another may take.
        for (place, value) in settled.iter().flat_map(Settled::removed) {
            self.release(place, value, step);
        }
        for (place, value) in settled.iter().flat_map(Settled::added) {
            self.claim(place, value, step);
        }
    }

    /// Brings one Service to what it wishes and has.
    fn settle(&mut self, key: &Key, step: &mut Step) -> Settled {
        let Some(mut service) = self.services.remove(key) else {
            return Settled::default();
        };
        let plan = self.won(key, &service.wish, step);
        if service.plan == plan {
            self.keep(key, service);
            return Settled::default();
        }
        let before = elements(&service.plan, &service.slots, &self.chains);
        step.moved.extend(moved(&service.plan, &plan));
        service.slots = service.slots.next(&plan);
        service.plan = plan;
        let needed = chains(&service.plan, &service.slots);
        step.chains.extend(self.chains.add(needed));
        let after = elements(&service.plan, &service.slots, &self.chains);
        self.keep(key, service);
        Settled { before, after }
    }

    /// The part of a wish whose spots no other Service has before it.
    fn won(&self, key: &Key, wish: &Arc<Plan>, step: &mut Step) -> Arc<Plan> {
        let owner = |front: &Front| self.spots.get(&spot(front))?.first();
        let has = |front: &Front| owner(front).is_some_and(|first| *first.key == *key);
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
    pub fn whole(&self) -> Delta {
        let mut whole = Delta {
            chains: self.chains.all().clone(),
            ..Delta::default()
        };
        for service in self.services.values() {
            for (place, value) in elements(&service.plan, &service.slots, &self.chains) {
                if !place.0.is_shared() {
                    put(&mut whole.add, place, value);
                }
            }
        }
        for place in self.shared.keys() {
            put(&mut whole.add, place.clone(), Value::None);
        }
        whole
    }

    /// Where senders of UDP write to.
    pub fn udp_fronts(&self) -> BTreeSet<flows::Front> {
        let udp = self.spots.keys().filter(|spot| spot.1 == Protocol::Udp);
        udp.map(|(address, _, port)| (*address, *port)).collect()
    }

    /// Where UDP for this address and port may arrive, whoever sends it.
    pub fn served(&self, (address, port): flows::Front) -> BTreeSet<(IpAddr, u16)> {
        let wanted = (address, Protocol::Udp, port);
        let owner = self.spots.get(&wanted).and_then(|all| all.first());
        let service = owner.and_then(|rank| self.services.get(&*rank.key));
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
        let services = self.services.values();
        let used = services.flat_map(|service| chains(&service.plan, &service.slots));
        self.chains.retain(&used.collect());
    }

    fn keep(&mut self, key: &Key, service: Service) {
        if !service.wish.is_nothing() {
            self.services.insert(key.clone(), service);
        }
    }

    fn claim(&mut self, place: &Place, value: &Value, step: &mut Step) {
        if place.0.is_shared() {
            let wanting = self.shared.entry(place.clone()).or_default();
            *wanting += 1;
            if *wanting > 1 {
                return;
            }
        }
        step.add(place.clone(), value.clone());
    }

    fn release(&mut self, place: &Place, value: &Value, step: &mut Step) {
        if let Some(wanting) = self.shared.get_mut(place) {
            *wanting -= 1;
            if *wanting > 0 {
                return;
            }
            self.shared.remove(place);
        }
        step.remove(place.clone(), value.clone());
    }
}

/// One Service's elements before a change and after it.
#[derive(Default)]
struct Settled {
    before: BTreeMap<Place, Value>,
    after: BTreeMap<Place, Value>,
}

impl Settled {
    fn removed(&self) -> impl Iterator<Item = (&Place, &Value)> {
        only_in(&self.before, &self.after)
    }

    fn added(&self) -> impl Iterator<Item = (&Place, &Value)> {
        only_in(&self.after, &self.before)
    }
}

fn only_in<'a>(
    these: &'a BTreeMap<Place, Value>,
    others: &'a BTreeMap<Place, Value>,
) -> impl Iterator<Item = (&'a Place, &'a Value)> {
    let these = these.iter();
    these.filter(|(place, value)| others.get(*place) != Some(*value))
}

fn spot(front: &Front) -> Spot {
    (front.address, front.protocol, front.port)
}

fn rank(key: &Arc<Key>, plan: &Plan, spot: Spot) -> Rank {
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
