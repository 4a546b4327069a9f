//! What one Service should do on this node, in one family of addresses. Pure: Service and EndpointSlices in,
//! fronts out.
//!
//! Always true: whatever objects say, no connection is led to an address that is only on this host or
//! its links, and no front stands on one of the cluster's own addresses except a cluster IP, and on the node's
//! own only for what the cluster's own controller of load balancers has written into the status.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{LoadBalancerIngress, Node as NodeObject, Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::ResourceExt;

use super::{
    hints::{self, Hints, backends},
    listening::Listening,
};
use crate::{
    addresses::{
        balancing,
        family::{Family, OfFamily},
        may_be_proxied_to,
    },
    own_ports::OwnPorts,
};

/// A Service may name so many ranges of clients; with more, nobody gets in.
const MOST_SOURCES: usize = 1024;
/// The label of a Node in a zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The node, and what a Service must not take of it.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// As endpoints carry it.
    pub name: String,
    /// The ranges of pods and of services.
    pub cluster: Vec<IpNet>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Those by which its Node is known: others may lead them to its own.
    pub known_as: BTreeSet<IpAddr>,
    /// The zone that its Node is in.
    pub zone: Option<String>,
    /// Ports that no Service takes.
    pub own_ports: OwnPorts,
    /// Those on which programs of the node listen: no load balancer takes them.
    pub listening: Listening,
}

impl Node {
    /// Takes over what its Node says; whether that is something new.
    pub fn take(&mut self, object: Option<&NodeObject>) -> bool {
        let status = object.and_then(|object| object.status.as_ref());
        let addresses = status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let known_as = addresses
            .filter_map(|one| one.address.parse().ok())
            .collect();
        let labels = object.and_then(|object| object.metadata.labels.as_ref());
        let zone = labels.and_then(|labels| labels.get(ZONE).cloned());
        let before = std::mem::replace(&mut self.known_as, known_as);
        let zone_before = std::mem::replace(&mut self.zone, zone);
        before != self.known_as || zone_before != self.zone
    }

    /// Its own addresses of this family that are none of the cluster's inside.
    fn outer(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let inside = |address: &IpAddr| self.cluster.iter().any(|range| range.contains(address));
        let own = self.addresses.iter().copied();
        own.filter(move |address| address.family() == family && !inside(address))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// `None`: every address of the node.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    pub audience: Audience,
}

/// Whose packets a front is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    Everyone,
    /// Clients that are neither pods nor this node: they alone are bound by
    /// `externalTrafficPolicy: Local`, and are looked at first.
    Outside,
}

pub type Backend = (IpAddr, u16);

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Forward {
        backends: BTreeSet<Backend>,
        /// Seconds that a client stays with its backend.
        affinity: Option<u32>,
        /// Clients outside these are dropped; without any, everybody may come.
        sources: BTreeSet<IpNet>,
    },
    /// Nobody serves it anywhere: say so.
    Refuse,
    /// Served, but not here, and it must not be sent on.
    Drop,
}

/// All that one Service asks of this node in one family of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Every address in it is of this one.
    pub family: Family,
    pub fronts: BTreeMap<Front, Outcome>,
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Fronts whose clients' addresses are rewritten, so that answers come back this way.
    pub masqueraded: BTreeSet<Front>,
    /// Backends on this node: they may be their own clients.
    pub local: BTreeSet<IpAddr>,
    /// Addresses that a load balancer's controller has given, which may be on the node's links.
    pub balanced: BTreeSet<IpAddr>,
    /// Those of them that are of the pool: nothing but Services answers there.
    pub pooled: BTreeSet<IpAddr>,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_port: Option<u16>,
    /// External addresses that are not served, and why.
    pub ignored: BTreeMap<String, &'static str>,
    /// When the Service was made, in seconds, and its UID: the older one wins.
    pub since: (i64, String),
}

impl Plan {
    /// Of a Service that is not there, or not of this family.
    pub fn nothing(family: Family) -> Self {
        Self {
            family,
            fronts: BTreeMap::new(),
            cluster_ips: BTreeSet::new(),
            masqueraded: BTreeSet::new(),
            local: BTreeSet::new(),
            balanced: BTreeSet::new(),
            pooled: BTreeSet::new(),
            health_port: None,
            ignored: BTreeMap::new(),
            since: Default::default(),
        }
    }

    /// Whether it asks for nothing and has nothing to say.
    pub fn is_nothing(&self) -> bool {
        self.cluster_ips.is_empty() && self.fronts.is_empty() && self.ignored.is_empty()
    }
}

/// The fronts of `service` on `node` in one family. The order of the Service's families does not matter.
pub fn plan(service: &Service, slices: &[&EndpointSlice], node: &Node, family: Family) -> Plan {
    let created = service.metadata.creation_timestamp.as_ref();
    let mut plan = Plan {
        since: (
            created.map(|at| at.0.as_second()).unwrap_or_default(),
            service.uid().unwrap_or_default(),
        ),
        ..Plan::nothing(family)
    };
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else {
        return plan;
    };
    plan.cluster_ips = cluster_ips(spec, family);
    if plan.cluster_ips.is_empty() {
        return plan;
    }
    let affinity = affinity(spec);
    let external = externals(service, spec, node, &mut plan);
    let everywhere = |_: &Endpoint| true;
    let here = |endpoint: &Endpoint| endpoint.node_name.as_deref() == Some(&*node.name);
    let local_inside = spec.internal_traffic_policy.as_deref() == Some("Local");
    plan.health_port = health_port(spec);
    let local_outside = spec.external_traffic_policy.as_deref() == Some("Local");
    let slices = slices.iter().copied();
    let slices: Vec<&EndpointSlice> = slices
        .filter(|slice| slice.address_type == family.name())
        .collect();
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (
            Protocol::parse(port.protocol.as_deref()),
            u16::try_from(port.port),
        ) else {
            continue;
        };
        let usable = usable(&slices, port, node, family, everywhere);
        let (all, hinted) = (backends(&usable), hints::nearest(&usable));
        let near = backends(&self::usable(&slices, port, node, family, here));
        plan.local.extend(near.iter().map(|(address, _)| *address));
        let outcome = |local: bool| match (local, all.is_empty(), near.is_empty()) {
            (_, true, _) => Outcome::Refuse,
            (true, _, true) => Outcome::Drop,
            (true, ..) => forward(&near, affinity),
            (false, ..) => forward(&hinted, affinity),
        };
        let front = |address, port, audience| Front {
            address,
            protocol,
            port,
            audience,
        };
        for address in &plan.cluster_ips {
            let front = front(Some(*address), number, Audience::Everyone);
            plan.fronts.insert(front, outcome(local_inside));
        }
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
        let (kept, led): (Vec<_>, Vec<_>) = external
            .iter()
            .filter(|(_, external)| external.has(protocol, number))
            .map(|(address, external)| (*address, external))
            .partition(|(address, _)| reserved(*address, protocol, number, node).is_some());
        for (address, _) in kept {
            if let Some(why) = reserved(address, protocol, number, node) {
                let at = SocketAddr::new(address, number).to_string();
                plan.ignored.insert(at, why);
            }
        }
        let outer = led
            .into_iter()
            .map(|(address, external)| (Some(address), number, external.sources.as_ref()))
            .chain(
                node_port
                    .filter(|port| *port != 0)
                    .map(|port| (None, port, None)),
            );
        for (address, number, sources) in outer {
            let everyone = front(address, number, Audience::Everyone);
            plan.fronts.insert(everyone, gated(outcome(false), sources));
            if local_outside && !all.is_empty() {
                let outside = front(address, number, Audience::Outside);
                plan.fronts.insert(outside, gated(outcome(true), sources));
            } else {
                plan.masqueraded.insert(everyone);
            }
        }
    }
    plan
}

fn forward(backends: &BTreeSet<Backend>, affinity: Option<u32>) -> Outcome {
    Outcome::Forward {
        backends: backends.clone(),
        affinity,
        sources: BTreeSet::new(),
    }
}

/// `only`: the clients that may come, of this family; `None`: all.
fn gated(outcome: Outcome, only: Option<&BTreeSet<IpNet>>) -> Outcome {
    match (outcome, only) {
        // Ranges of the other family alone let nobody of this one in.
        (Outcome::Forward { .. }, Some(only)) if only.is_empty() || only.len() > MOST_SOURCES => {
            Outcome::Drop
        }
        (
            Outcome::Forward {
                backends, affinity, ..
            },
            Some(only),
        ) => Outcome::Forward {
            backends,
            affinity,
            sources: only.clone(),
        },
        (other, _) => other,
    }
}

fn is_ours(service: &Service) -> bool {
    let foreign = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key("service.kubernetes.io/service-proxy-name"));
    let external = service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    !foreign && !external
}

fn cluster_ips(spec: &ServiceSpec, family: Family) -> BTreeSet<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten();
    listed
        .chain(&spec.cluster_ip)
        .filter_map(|address| address.parse().ok())
        .filter(|address| is_usable(*address, family))
        .collect()
}

/// Whether packets of this family may be led from or to this address.
fn is_usable(address: IpAddr, family: Family) -> bool {
    address.family() == family && may_be_proxied_to(address) && !is_disguised(address)
}

/// An IPv4 address in the form of an IPv6 one, which no packet bears.
fn is_disguised(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4().is_some())
}

/// An address that a Service has beside its cluster IPs.
#[derive(Clone, Debug, Default)]
struct External {
    /// The clients that may use it; `None`: everybody.
    sources: Option<BTreeSet<IpNet>>,
    /// The ports that were given with it; `None`: all of the Service's.
    ports: Option<BTreeSet<(Protocol, u16)>>,
}

impl External {
    fn has(&self, protocol: Protocol, port: u16) -> bool {
        let ports = self.ports.as_ref();
        ports.is_none_or(|ports| ports.contains(&(protocol, port)))
    }
}

/// External addresses of the plan's family; those that cannot be served are noted.
fn externals(
    service: &Service,
    spec: &ServiceSpec,
    node: &Node,
    plan: &mut Plan,
) -> BTreeMap<IpAddr, External> {
    let family = plan.family;
    let mut found = BTreeMap::new();
    let mut take = |text: &str, external: External, giver: Giver| {
        let address: IpAddr = text.parse().ok()?;
        if address.family() != family {
            return None; // for the other family's plan
        }
        match unfit(address, node, giver) {
            Some(why) => {
                plan.ignored.insert(text.to_owned(), why);
                None
            }
            None => {
                plan.ignored.remove(text); // named by its owner, and given too
                found.insert(address, external);
                Some(address)
            }
        }
    };
    for text in spec.external_ips.iter().flatten() {
        take(text, External::default(), Giver::Other);
    }
    let is_pooled = balancing::is_pooled(service);
    let giver = match is_pooled || balancing::is_given(service) {
        true => Giver::Cluster,
        false => Giver::Other,
    };
    let mut balanced = BTreeSet::new();
    for ingress in balanced_addresses(service, spec) {
        let external = External {
            sources: sources(spec, family),
            ports: (giver == Giver::Cluster).then(|| ports(ingress)),
        };
        let text = ingress.ip.as_deref().unwrap_or_default();
        let taken = take(text, external.clone(), giver);
        balanced.extend(taken);
        // What comes for an address that others lead here comes for the node's own.
        let is_known = taken.is_some_and(|address| node.known_as.contains(&address));
        if is_known && giver == Giver::Cluster {
            for address in node.outer(family) {
                balanced.extend(take(&address.to_string(), external.clone(), giver));
            }
        }
    }
    if is_pooled {
        plan.pooled.clone_from(&balanced);
    }
    plan.balanced = balanced;
    found
}

/// An owner may ask for other ports at any time; the controller has judged these.
fn ports(ingress: &LoadBalancerIngress) -> BTreeSet<(Protocol, u16)> {
    let ports = ingress.ports.iter().flatten();
    ports
        .filter(|port| port.error.is_none())
        .filter_map(|port| {
            let protocol = Protocol::parse(Some(&port.protocol))?;
            Some((protocol, u16::try_from(port.port).ok()?))
        })
        .collect()
}

/// Only who may write a Service's status has a say here.
fn balanced_addresses<'a>(
    service: &'a Service,
    spec: &ServiceSpec,
) -> impl Iterator<Item = &'a LoadBalancerIngress> {
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let by_us = |ingress: &&LoadBalancerIngress| ingress.ip_mode.as_deref() != Some("Proxy");
    let status = service.status.as_ref().filter(|_| balanced);
    status
        .into_iter()
        .flat_map(|status| &status.load_balancer)
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter(by_us)
        .filter(|ingress| ingress.ip.is_some())
}

/// The clients of this family that a Service lets in, if it says whom.
fn sources(spec: &ServiceSpec, family: Family) -> Option<BTreeSet<IpNet>> {
    let ranges = spec.load_balancer_source_ranges.as_ref();
    let ranges = ranges.filter(|ranges| !ranges.is_empty())?.iter();
    let parsed = ranges.filter_map(|range| range.trim().parse::<IpNet>().ok());
    let of_family = parsed.filter(|range| range.family() == family);
    Some(of_family.map(|range| range.trunc()).collect())
}

/// On whose word a Service has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Giver {
    /// The cluster's own controller of load balancers.
    Cluster,
    /// Its owner, or another controller.
    Other,
}

/// Why this port is not led elsewhere, on an address that is the node's own.
fn reserved(address: IpAddr, protocol: Protocol, port: u16, node: &Node) -> Option<&'static str> {
    if !node.addresses.contains(&address) {
        return None;
    }
    let user = node.own_ports.user(Some(address), protocol.number(), port);
    if user.is_some() {
        return Some("the port is the node's own");
    }
    let is_listened = node.listening.has(address, protocol, port);
    is_listened.then_some("a program of the node listens on the port")
}

/// Why a Service cannot have this address.
fn unfit(address: IpAddr, node: &Node, giver: Giver) -> Option<&'static str> {
    if !may_be_proxied_to(address) {
        return Some("it is only on this host or its links");
    }
    if is_disguised(address) {
        return Some("it is an IPv4 address in another form");
    }
    if node.addresses.contains(&address) && giver != Giver::Cluster {
        return Some("it is the node's own");
    }
    let inside = node.cluster.iter().any(|range| range.contains(&address));
    inside.then_some("it is in a range of the cluster's own")
}

fn health_port(spec: &ServiceSpec) -> Option<u16> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| asked)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    const THREE_HOURS: u32 = 10_800;
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        spec.session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(THREE_HOURS)
    })
}

/// Ready endpoints of the port that are wanted; if there are none, those that still serve while
/// they end.
fn usable(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    node: &Node,
    family: Family,
    wanted: impl Fn(&Endpoint) -> bool,
) -> BTreeMap<Backend, Hints> {
    let mut ready = BTreeMap::new();
    let mut ending = BTreeMap::new();
    for slice in slices {
        let number = slice.ports.iter().flatten().find_map(|candidate| {
            let same_name = candidate.name.as_deref().unwrap_or_default()
                == port.name.as_deref().unwrap_or_default();
            let same_protocol = Protocol::parse(candidate.protocol.as_deref())
                == Protocol::parse(port.protocol.as_deref());
            (same_name && same_protocol).then_some(candidate.port)?
        });
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten().filter(|e| wanted(e)) {
            let conditions = endpoint.conditions.as_ref();
            let condition =
                |get: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
                    conditions.and_then(get)
                };
            let is_ready = condition(|c| c.ready).unwrap_or(true);
            let is_ending = condition(|c| c.terminating).unwrap_or(false)
                && condition(|c| c.serving).unwrap_or(is_ready);
            // All addresses of an endpoint are the same one; only the first counts.
            let address = endpoint.addresses.first().and_then(|a| a.parse().ok());
            let Some(address) = address.filter(|address| is_usable(*address, family)) else {
                continue;
            };
            let hint = Hints::of(endpoint, node);
            if is_ready {
                ready.insert((address, number), hint);
            } else if is_ending {
                ending.insert((address, number), hint);
            }
        }
    }
    match ready.is_empty() {
        true => ending,
        false => ready,
    }
}
