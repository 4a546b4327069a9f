//! From policies, namespaces and pods to what the kernel shall hold. Pure.
//!
//! Always true:
//! - Pods that the same policies select have the same chain, and a chain has one rule for each set of ports,
//!   however many policies and rules name it.
//! - The name of a chain says everything about it but the pods that it lets through, so a pod that comes or goes
//!   elsewhere changes elements of sets, never rules.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    model::{Allowed, Chain, Desired, Direction, Peers, PodFacts, PortRange, Ports, Protocol},
    ranges::is_v6,
    rules::{Peer, PodSelector, Port, Rule, Rules},
};
use crate::hex::hex;

/// Everything that counts.
#[derive(Debug, Default)]
pub struct World {
    pub policies: Vec<Arc<Rules>>,
    /// Labels of namespaces by name.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub pods: Vec<PodFacts>,
}

/// What this node's pods get, for addresses of one family.
pub fn plan(world: &World, ipv6: bool) -> Desired {
    let mut planner = Planner::new(world, ipv6);
    let mut desired = Desired::default();
    let mut by_namespace: HashMap<&str, Vec<&Rules>> = HashMap::new();
    for policy in &world.policies {
        let policies = by_namespace.entry(&policy.namespace).or_default();
        policies.push(policy);
    }
    let mut known: HashMap<(Class, Direction), String> = HashMap::new();
    for pod in world.pods.iter().filter(|pod| pod.is_local) {
        let Some(policies) = by_namespace.get(&*pod.namespace) else {
            continue;
        };
        let addresses = pod
            .addresses
            .iter()
            .filter(|address| is_v6(**address) == ipv6);
        let addresses: Vec<IpAddr> = addresses.copied().collect();
        if addresses.is_empty() {
            continue;
        }
        let selecting = policies.iter().filter(|policy| policy.select(&pod.labels));
        let selecting: Vec<&Rules> = selecting.copied().collect();
        for direction in [Direction::Ingress, Direction::Egress] {
            let isolating = selecting
                .iter()
                .filter(|policy| policy.of_direction(direction).is_some());
            let isolating: Vec<&Rules> = isolating.copied().collect();
            if isolating.is_empty() {
                continue;
            }
            let class = Class::of(pod, &isolating);
            let chain = known
                .entry((class, direction))
                .or_insert_with_key(|(class, _)| {
                    let allowed = planner.allowed(pod, direction, &isolating);
                    let name = name(direction, class, &allowed);
                    let chain = Chain { direction, allowed };
                    desired.chains.insert(name.clone(), chain);
                    name
                });
            let chains = match direction {
                Direction::Ingress => &mut desired.ingress,
                Direction::Egress => &mut desired.egress,
            };
            chains.extend(addresses.iter().map(|address| (*address, chain.clone())));
        }
    }
    desired
}

/// What one policy lets through for one pod.
pub fn alone<'a>(
    world: &'a World,
    pod: &PodFacts,
    direction: Direction,
    policy: &'a Rules,
    ipv6: bool,
) -> Allowed {
    Planner::new(world, ipv6).allowed(pod, direction, &[policy])
}

/// What pods of one chain have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Class {
    namespace: String,
    policies: Vec<(String, String)>,
    ports: Vec<((Protocol, String), u16)>,
}

impl Class {
    fn of(pod: &PodFacts, policies: &[&Rules]) -> Self {
        let mut names: Vec<(String, String)> = policies
            .iter()
            .map(|policy| (policy.name.clone(), policy.uid.clone()))
            .collect();
        names.sort();
        let ports = pod.ports.iter().map(|(name, port)| (name.clone(), *port));
        Self {
            namespace: pod.namespace.clone(),
            policies: names,
            ports: ports.collect(),
        }
    }
}

/// Follows from all that makes rules.
fn name(direction: Direction, class: &Class, allowed: &Allowed) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{} {:?}", class.namespace, class.policies));
    for (ports, peers) in allowed {
        let Peers {
            everyone,
            networks,
            selects_pods,
            pods: _,
        } = peers;
        digest.update(format!("{ports:?} {everyone} {networks:?} {selects_pods}"));
    }
    let digest = digest.finalize();
    let prefix = match direction {
        Direction::Ingress => "to",
        Direction::Egress => "from",
    };
    format!("{prefix}-{}-{}", class.namespace, hex(&digest[..8]))
}

/// Texts of the selectors of namespaces and of pods, and the policy's namespace where that counts.
type Selection<'a> = (Option<&'a str>, &'a str, &'a str);

/// Looks selectors up once for all that ask the same.
struct Planner<'a> {
    world: &'a World,
    ipv6: bool,
    by_namespace: BTreeMap<&'a str, Vec<&'a PodFacts>>,
    selected: HashMap<Selection<'a>, Arc<Vec<&'a PodFacts>>>,
}

impl<'a> Planner<'a> {
    fn new(world: &'a World, ipv6: bool) -> Self {
        let mut by_namespace: BTreeMap<&str, Vec<&PodFacts>> = BTreeMap::new();
        for pod in &world.pods {
            by_namespace.entry(&pod.namespace).or_default().push(pod);
        }
        Self {
            world,
            ipv6,
            by_namespace,
            selected: HashMap::new(),
        }
    }

    /// The union of what the policies let through.
    fn allowed(&mut self, pod: &PodFacts, direction: Direction, policies: &[&'a Rules]) -> Allowed {
        let mut allowed = Allowed::new();
        for policy in policies {
            for rule in policy.of_direction(direction).into_iter().flatten() {
                self.add(&mut allowed, pod, direction, &policy.namespace, rule);
            }
        }
        for peers in allowed.values_mut().filter(|peers| peers.everyone) {
            *peers = Peers {
                everyone: true,
                ..Peers::default()
            };
        }
        allowed
    }

    fn add(
        &mut self,
        allowed: &mut Allowed,
        pod: &PodFacts,
        direction: Direction,
        namespace: &'a str,
        rule: &'a Rule,
    ) {
        let numbers = rule
            .ports
            .iter()
            .filter_map(|port| match (port, direction) {
                (Port::Numbers(range), _) => Some(*range),
                // The name is that of the pod that is connected to.
                (Port::Named(protocol, name), Direction::Ingress) => resolved(pod, *protocol, name),
                (Port::Named(..), Direction::Egress) => None,
            });
        let numbers: BTreeSet<PortRange> = numbers.collect();
        let ports = match rule.ports.is_empty() {
            true => Some(Ports::All),
            false => (!numbers.is_empty()).then_some(Ports::Some(numbers)),
        };
        if let Some(ports) = ports {
            let peers = allowed.entry(ports).or_default();
            self.join(peers, namespace, rule);
        }
        if direction == Direction::Egress {
            self.add_named(allowed, namespace, rule);
        }
    }

    fn join(&mut self, peers: &mut Peers, namespace: &'a str, rule: &'a Rule) {
        peers.everyone |= rule.peers.is_empty();
        for peer in &rule.peers {
            match peer {
                Peer::Block { ipv6, ranges } if *ipv6 == self.ipv6 => peers.networks.add(ranges),
                Peer::Block { .. } => {}
                Peer::Pods(selector) => {
                    let ipv6 = self.ipv6;
                    peers.selects_pods = true;
                    let selected = self.select(namespace, selector);
                    let addresses = selected.iter().flat_map(|pod| &pod.addresses);
                    peers
                        .pods
                        .extend(addresses.filter(|one| is_v6(**one) == ipv6));
                }
            }
        }
    }

    /// Connections to ports by the names that other pods have for them.
    fn add_named(&mut self, allowed: &mut Allowed, namespace: &'a str, rule: &'a Rule) {
        let named = rule.ports.iter().filter_map(|port| match port {
            Port::Named(protocol, name) => Some((*protocol, name)),
            Port::Numbers(_) => None,
        });
        let ipv6 = self.ipv6;
        for (protocol, name) in named {
            let mut to = |pod: &PodFacts, fits: &dyn Fn(IpAddr) -> bool| {
                let Some(range) = resolved(pod, protocol, name) else {
                    return;
                };
                let addresses = pod.addresses.iter().copied();
                let mut addresses = addresses
                    .filter(|one| is_v6(*one) == ipv6 && fits(*one))
                    .peekable();
                if addresses.peek().is_some() {
                    let peers = allowed.entry(Ports::Some([range].into())).or_default();
                    peers.selects_pods = true;
                    peers.pods.extend(addresses);
                }
            };
            if rule.peers.is_empty() {
                self.world.pods.iter().for_each(|pod| to(pod, &|_| true));
            }
            for peer in &rule.peers {
                match peer {
                    Peer::Block { ranges, .. } => {
                        let pods = self.world.pods.iter();
                        pods.for_each(|pod| to(pod, &|address| ranges.contains(address)));
                    }
                    Peer::Pods(selector) => {
                        let selected = self.select(namespace, selector);
                        selected.iter().for_each(|pod| to(pod, &|_| true));
                    }
                }
            }
        }
    }

    fn select(&mut self, namespace: &'a str, selector: &'a PodSelector) -> Arc<Vec<&'a PodFacts>> {
        let namespaces = selector.namespaces.as_ref();
        let key = (
            namespaces.map(|labels| &*labels.text),
            &*selector.pods.text,
            match namespaces {
                Some(_) => "",
                None => namespace,
            },
        );
        if let Some(found) = self.selected.get(&key) {
            return found.clone();
        }
        let none = BTreeMap::new();
        let is_meant = |name: &str| match namespaces {
            None => name == namespace,
            Some(labels) => labels.select(self.world.namespaces.get(name).unwrap_or(&none)),
        };
        let meant = self.by_namespace.iter().filter(|(name, _)| is_meant(name));
        let pods = meant.flat_map(|(_, pods)| pods);
        let pods = pods.filter(|pod| selector.pods.select(&pod.labels));
        let found = Arc::new(pods.copied().collect());
        self.selected.insert(key, Arc::clone(&found));
        found
    }
}

fn resolved(pod: &PodFacts, protocol: Protocol, name: &str) -> Option<PortRange> {
    let port = pod.ports.get(&(protocol, name.to_owned()))?;
    Some(PortRange {
        protocol,
        first: *port,
        last: *port,
    })
}
