//! Which nodes' addresses a Service of the type LoadBalancer gets. Pure.
//!
//! Always true: an address of a node and a port of it belong to one Service, the oldest that may have it; to
//! the same one whoever asks, in whatever order.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use kube::ResourceExt;

use super::pool;
use crate::{
    addresses::{
        balancing::{self, is_asked_for, is_local},
        family::Family,
        may_be_proxied_to,
        pool::Pool,
    },
    controllers::pods::is_terminating,
    informer::Key,
};

/// A status lists so many addresses: each change of a node writes all of them.
const MOST_ADDRESSES: usize = 256;
/// Nodes that a message names.
const MOST_NAMED: usize = 5;

/// A port that is the cluster's own on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub protocol: &'static str,
    pub port: u16,
    /// Who listens there, as users are told.
    pub user: &'static str,
}

/// What is the cluster's own.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub ports: Vec<Reserved>,
    /// Addresses that Services get rather than those of nodes; it may have none.
    pub pool: Pool,
    /// Ranges whose addresses no machine has, whatever its Node says.
    pub ranges: Vec<IpNet>,
}

/// An address by which clients reach a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: IpAddr,
    pub node: String,
    /// New connections may come here.
    is_open: bool,
    kubelet_port: Option<i32>,
}

/// Whose addresses a Service gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    #[default]
    Nodes,
    Pool,
}

/// What a Service gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub source: Source,
    /// In the order of the Service's families.
    pub addresses: Vec<IpAddr>,
    /// Why it has none, or not all that it could.
    pub refusals: Vec<Refusal>,
}

/// Why a Service has no address, or not one of some node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    OwnPort {
        port: Port,
        user: &'static str,
    },
    Taken {
        port: Port,
        by: Key,
        nodes: Vec<String>,
    },
    /// `spec.loadBalancerIP` is no node's address.
    NotOfANode {
        address: String,
        nodes: Vec<IpAddr>,
    },
    /// It is one's that serves nobody now.
    NotNow {
        address: String,
    },
    NoNode,
    NoEndpoint,
    /// `spec.loadBalancerIP` is neither in the pool nor a node's address, or of a family that it has not.
    NotInPool {
        address: String,
        pool: Pool,
    },
    /// It is another Service's, which does not share it.
    Held {
        address: IpAddr,
        by: Key,
        why: pool::Obstacle,
    },
    PoolExhausted {
        family: Family,
    },
    PoolWithout {
        family: Family,
    },
}

impl Refusal {
    /// One word for the status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OwnPort { .. } => "PortReserved",
            Self::Taken { .. } => "PortTaken",
            Self::NotOfANode { .. } | Self::NotNow { .. } | Self::NotInPool { .. } => {
                "AddressNotAvailable"
            }
            Self::Held { .. } => "AddressTaken",
            Self::PoolExhausted { .. } => "PoolExhausted",
            Self::PoolWithout { .. } => "NoAddressOfFamily",
            Self::NoNode => "NoReadyNode",
            Self::NoEndpoint => "NoReadyEndpoint",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnPort { port, user } => write!(
                f,
                "port {port} of a node belongs to {user}: choose another port for this Service"
            ),
            Self::Taken { port, by, nodes } => write!(
                f,
                "the older Service {by} has port {port} of {}: choose another port for this Service, or \
                 delete the other one or make it a ClusterIP",
                some_of(nodes)
            ),
            Self::NotOfANode { address, nodes } => write!(
                f,
                "spec.loadBalancerIP {address} is not the address of a node: set it to one of {}, or remove it",
                some_of(nodes)
            ),
            Self::NotNow { address } => write!(
                f,
                "the node with spec.loadBalancerIP {address} is not ready or has no endpoint of this Service: \
                 set it to another node's address, or remove it"
            ),
            Self::NoNode => f.write_str(
                "no node with an address of the Service's families is ready and open to load balancers",
            ),
            Self::NoEndpoint => f.write_str(
                "no node that is ready has a serving endpoint of this Service, which externalTrafficPolicy \
                 Local asks for",
            ),
            Self::NotInPool { address, pool } => write!(
                f,
                "spec.loadBalancerIP {address} is neither an address of the Service's families in the pool ({pool}) \
                 nor that of a node: set it to one of these, or remove it"
            ),
            Self::Held { address, by, why } => write!(
                f,
                "the Service {by} has spec.loadBalancerIP {address}, and {why}: ask for another address, or for none"
            ),
            Self::PoolExhausted { family } => write!(
                f,
                "all {family} addresses of the pool are taken: this Service gets one as soon as another gives one \
                 back; `vetch up --load-balancer-pool` makes the pool larger"
            ),
            Self::PoolWithout { family } => write!(
                f,
                "the pool has no {family} addresses: `vetch up --load-balancer-pool` can give it some"
            ),
        }
    }
}

fn some_of<T: ToString>(names: &[T]) -> String {
    let mut shown: Vec<String> = names.iter().take(MOST_NAMED).map(T::to_string).collect();
    if names.len() > MOST_NAMED {
        shown.push(format!("{} more", names.len() - MOST_NAMED));
    }
    shown.join(", ")
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    number: i32,
    protocol: String,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// Whether it shall have addresses of nodes.
pub fn is_wanted(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(is_asked_for) && !is_terminating(service)
}

/// Where clients reach the nodes, without what two nodes claim: it is the older one's.
pub fn places(nodes: &[Arc<Node>], ranges: &[IpNet]) -> Vec<Place> {
    let mut nodes: Vec<&Node> = nodes.iter().map(AsRef::as_ref).collect();
    nodes.sort_by_cached_key(|node| age(*node));
    let mut seen = HashSet::new();
    let places = nodes.into_iter().flat_map(|node| of_node(node, ranges));
    places.filter(|place| seen.insert(place.address)).collect()
}

/// Of each family the external addresses, or without any the internal ones.
pub fn of_node(node: &Node, ranges: &[IpNet]) -> Vec<Place> {
    let status = node.status.as_ref();
    let listed = || {
        status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten())
    };
    let of_type = |kind: &str, is_v4: bool| -> Vec<IpAddr> {
        listed()
            .filter(|address| address.type_ == kind)
            .filter_map(|address| address.address.parse().ok())
            .filter(|address: &IpAddr| address.is_ipv4() == is_v4 && may_be_proxied_to(*address))
            .filter(|address| !ranges.iter().any(|range| range.contains(address)))
            .collect()
    };
    let is_open = balancing::is_open(node);
    let kubelet_port = status
        .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
        .map(|endpoint| endpoint.port);
    let addresses = [true, false].into_iter().flat_map(|is_v4| {
        let external = of_type("ExternalIP", is_v4);
        match external.is_empty() {
            true => of_type("InternalIP", is_v4),
            false => external,
        }
    });
    addresses
        .map(|address| Place {
            address,
            node: node.name_any(),
            is_open,
            kubelet_port,
        })
        .collect()
}

/// What `service` gets, beside `all` Services. `serving` tells the nodes with endpoints of a Service that take new
/// connections.
pub fn share(
    service: &Service,
    all: &[Arc<Service>],
    places: &[Place],
    cluster: &Cluster,
    serving: &dyn Fn(&Service) -> BTreeSet<String>,
) -> Share {
    let judge = Judge {
        places,
        cluster,
        node_ports: held_node_ports(all),
        serving,
    };
    let mut taken = HashMap::new();
    let takes_ports = |other: &Service| !pool::is_asked(other, &cluster.pool, places);
    let elders = elders(service, all).into_iter().rev();
    for elder in elders.filter(|elder| takes_ports(elder)) {
        let got = judge.share(elder, &taken);
        for address in got.addresses {
            let ports = ports(elder).into_iter();
            taken.extend(ports.map(|port| ((address, port), Key::of(elder))));
        }
    }
    judge.share(service, &taken)
}

/// Those before it on whose ports it depends, youngest first: some of them have a port in common with it, others
/// with one of those.
fn elders<'a>(service: &'a Service, all: &'a [Arc<Service>]) -> Vec<&'a Service> {
    let own = age(service);
    let mut older: Vec<&Service> = all.iter().map(AsRef::as_ref).collect();
    older.retain(|other| is_wanted(other) && age(*other) < own);
    older.sort_by_cached_key(|other| Reverse(age(*other)));
    connected(ports(service), older)
}

/// The ports of nodes that it has or may get.
pub fn ports_of_nodes(service: &Service) -> Vec<Port> {
    let mut ports = node_ports(service);
    if service.spec.as_ref().is_some_and(is_asked_for) {
        ports.extend(self::ports(service));
    }
    ports
}

/// Those that may get or lose something when a Service with these ports of nodes changes.
pub fn touched(ports: Vec<Port>, all: &[Arc<Service>]) -> Vec<&Service> {
    let mut wanting: Vec<&Service> = all.iter().map(AsRef::as_ref).collect();
    wanting.retain(|other| is_wanted(other));
    wanting.sort_by_cached_key(|other| age(*other));
    connected(ports, wanting)
}

/// Of `services`, in their order, those that have a port of `ports`, or of one before them.
fn connected(ports: Vec<Port>, mut services: Vec<&Service>) -> Vec<&Service> {
    let mut wanted: HashSet<Port> = ports.into_iter().collect();
    services.retain(|service| {
        let theirs = self::ports(service);
        let meets = theirs.iter().any(|port| wanted.contains(port));
        if meets {
            wanted.extend(theirs);
        }
        meets
    });
    services
}

/// Ports that Services have on every node, each with the oldest one.
fn held_node_ports(all: &[Arc<Service>]) -> HashMap<Port, (Age, Key)> {
    let mut held: HashMap<Port, (Age, Key)> = HashMap::new();
    for service in all {
        for port in node_ports(service) {
            let holder = (age(&**service), Key::of(&**service));
            match held.get(&port) {
                Some(before) if *before <= holder => {}
                _ => drop(held.insert(port, holder)),
            }
        }
    }
    held
}

type Taken = HashMap<(IpAddr, Port), Key>;

struct Judge<'a> {
    places: &'a [Place],
    cluster: &'a Cluster,
    node_ports: HashMap<Port, (Age, Key)>,
    serving: &'a dyn Fn(&Service) -> BTreeSet<String>,
}

impl Judge<'_> {
    /// What a Service gets of what others have not taken.
    fn share(&self, service: &Service, taken: &Taken) -> Share {
        let Some(spec) = service.spec.as_ref() else {
            return Share::default();
        };
        let ports = ports(service);
        if let Some(refusal) = own_port(&ports, self.cluster) {
            return refused(refusal);
        }
        let families = families(spec);
        let mut fitting = match self.fitting(service, spec, &families) {
            Ok(fitting) => fitting,
            Err(refusal) => return refused(refusal),
        };
        let mut refusals = Refusals::default();
        let (key, age) = (Key::of(service), age(service));
        fitting.retain(|place| {
            let holder = |port: &Port| {
                let node_port = self.node_ports.get(port);
                let node_port = node_port.filter(|(since, by)| *since < age && *by != key);
                let rival = taken.get(&(place.address, port.clone()));
                rival.or(node_port.map(|(_, by)| by))
            };
            refusals.judge(place, &ports, holder)
        });
        let rank = |place: &Place| {
            families
                .iter()
                .position(|v4| *v4 == place.address.is_ipv4())
        };
        fitting.sort_by_key(|place| (rank(place), place.address));
        let addresses = fitting.iter().map(|place| place.address);
        Share {
            source: Source::Nodes,
            addresses: addresses.take(MOST_ADDRESSES).collect(),
            refusals: refusals.all(),
        }
    }

    /// Where it could be served, whatever others have.
    fn fitting(
        &self,
        service: &Service,
        spec: &ServiceSpec,
        families: &[bool],
    ) -> Result<Vec<&Place>, Refusal> {
        let mut fitting: Vec<&Place> = self.places.iter().collect();
        fitting.retain(|place| families.contains(&place.address.is_ipv4()));
        let wanted = spec.load_balancer_ip.as_deref().unwrap_or_default();
        if !wanted.is_empty() && !fitting.is_empty() {
            let nodes = fitting.iter().map(|place| place.address).collect();
            fitting.retain(|place| wanted.parse::<IpAddr>() == Ok(place.address));
            if fitting.is_empty() {
                let address = wanted.to_owned();
                return Err(Refusal::NotOfANode { address, nodes });
            }
        }
        fitting.retain(|place| place.is_open);
        let is_any_open = !fitting.is_empty();
        if is_local(spec) {
            let serving = (self.serving)(service);
            fitting.retain(|place| serving.contains(&place.node));
        }
        match (fitting.is_empty(), wanted) {
            (false, _) => Ok(fitting),
            (true, "") if is_any_open => Err(Refusal::NoEndpoint),
            (true, "") => Err(Refusal::NoNode),
            (true, wanted) => Err(Refusal::NotNow {
                address: wanted.to_owned(),
            }),
        }
    }
}

fn refused(refusal: Refusal) -> Share {
    Share {
        source: Source::Nodes,
        addresses: Vec::new(),
        refusals: vec![refusal],
    }
}

/// What keeps a Service from the addresses of some nodes.
#[derive(Default)]
struct Refusals {
    taken: BTreeMap<(Port, Key), Vec<String>>,
    kubelet: BTreeSet<Port>,
}

impl Refusals {
    /// Whether all of these ports can be had there, as `holder` tells who has one.
    fn judge<'a>(
        &mut self,
        place: &Place,
        ports: &[Port],
        holder: impl Fn(&Port) -> Option<&'a Key>,
    ) -> bool {
        for port in ports {
            if port.protocol == "TCP" && place.kubelet_port == Some(port.number) {
                self.kubelet.insert(port.clone());
                return false;
            }
            if let Some(by) = holder(port) {
                let nodes = self.taken.entry((port.clone(), by.clone())).or_default();
                nodes.push(place.node.clone());
                return false;
            }
        }
        true
    }

    fn all(self) -> Vec<Refusal> {
        let kubelet = self.kubelet.into_iter().map(|port| Refusal::OwnPort {
            port,
            user: "the kubelet",
        });
        let taken = self.taken.into_iter();
        kubelet
            .chain(taken.map(|((port, by), nodes)| Refusal::Taken { port, by, nodes }))
            .collect()
    }
}

fn own_port(ports: &[Port], cluster: &Cluster) -> Option<Refusal> {
    ports.iter().find_map(|port| {
        let mut reserved = cluster.ports.iter();
        let is_it = |own: &&Reserved| {
            own.protocol == port.protocol && i32::from(own.port) == port.number && own.port != 0
        };
        let user = reserved.find(is_it)?.user;
        let port = port.clone();
        Some(Refusal::OwnPort { port, user })
    })
}

pub fn ports(service: &Service) -> Vec<Port> {
    let spec = service.spec.iter();
    spec.flat_map(|spec| spec.ports.iter().flatten())
        .map(|port| Port {
            number: port.port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        })
        .collect()
}

/// Its ports that every node answers on: node ports, and the one of health checks.
fn node_ports(service: &Service) -> Vec<Port> {
    let spec = service.spec.iter();
    let given = spec.flat_map(|spec| {
        let ports = spec.ports.iter().flatten();
        let node_ports = ports.map(|port| (port.node_port, port.protocol.as_deref()));
        node_ports.chain([(spec.health_check_node_port, Some("TCP"))])
    });
    given
        .filter_map(|(number, protocol)| {
            Some(Port {
                number: number.filter(|number| *number != 0)?,
                protocol: protocol.unwrap_or("TCP").to_owned(),
            })
        })
        .collect()
}

/// Its families in its order; whether each is IPv4.
pub fn families(spec: &ServiceSpec) -> Vec<bool> {
    let listed = spec.ip_families.iter().flatten();
    let families: Vec<bool> = listed.map(|family| family == "IPv4").collect();
    match families.is_empty() {
        true => vec![true],
        false => families,
    }
}

/// When something was made, in seconds, and its uid.
pub type Age = (i64, String);

pub fn age<K: kube::Resource>(object: &K) -> Age {
    let created = object.meta().creation_timestamp.as_ref();
    let since = created.map_or(i64::MAX, |at| at.0.as_second());
    (since, object.uid().unwrap_or_default())
}
