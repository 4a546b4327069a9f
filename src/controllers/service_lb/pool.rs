//! Which addresses of the pool Services of the type LoadBalancer get. Pure.
//!
//! What a status says is the record: who has an address keeps it, whatever others ask for later.
//! Always true:
//! - An address belongs to one Service, or to several that have all asked for it, have no port in common and are
//!   served by the same endpoints where that matters. Of those that say to have one, the oldest counts.
//! - A Service that shall have no address any more has it until its status says so: nobody else gets it before.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::plan::{Place, Port, Refusal, Share, Source, age, families, is_wanted, ports};
use crate::{
    addresses::{
        balancing::{CLASS, is_local},
        family::{Family, OfFamily},
        pool::Pool,
    },
    informer::Key,
};

/// What keeps two Services from sharing an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// One of them was given it without having asked.
    NotAsked,
    Port(Port),
    /// One of them has `externalTrafficPolicy: Local`, and their selectors differ.
    Endpoints,
    /// It is about to give it back.
    Leaving,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => {
                f.write_str("shares it with nobody, as it does not ask for it by spec.loadBalancerIP")
            }
            Self::Port(port) => write!(f, "both have port {port}"),
            Self::Endpoints => f.write_str(
                "with externalTrafficPolicy Local only Services with the same selector share an address",
            ),
            Self::Leaving => f.write_str("has not given it back yet"),
        }
    }
}

/// Whether it gets addresses of the pool, and not those of nodes: it asks neither for the nodes' by its class nor
/// for that of one of them.
pub fn is_asked(service: &Service, pool: &Pool, places: &[Place]) -> bool {
    let Some(spec) = service.spec.as_ref().filter(|_| !pool.is_empty()) else {
        return false;
    };
    let is_nodes = |address: IpAddr| places.iter().any(|place| place.address == address);
    is_wanted(service)
        && spec.load_balancer_class.as_deref() != Some(CLASS)
        && !requested(spec).is_some_and(|text| text.parse().is_ok_and(is_nodes))
}

fn requested(spec: &ServiceSpec) -> Option<&str> {
    let text = spec.load_balancer_ip.as_deref();
    text.filter(|text| !text.is_empty())
}

/// Those that may get an address when something about another Service changes.
pub fn waiting(all: &[Arc<Service>]) -> impl Iterator<Item = &Service> {
    let wanting = all.iter().map(AsRef::as_ref);
    wanting.filter(|service| {
        let spec = service.spec.as_ref().filter(|_| is_wanted(service));
        spec.is_some_and(|spec| {
            let has = crate::addresses::balancing::pool_addresses(service).len();
            requested(spec).is_some() || has < families(spec).len()
        })
    })
}

/// What each of the Services that ask for addresses of the pool gets. `held` tells which addresses of it a Service
/// has by now.
pub fn allot(
    all: &[Arc<Service>],
    held: &dyn Fn(&Service) -> Vec<IpAddr>,
    pool: &Pool,
    places: &[Place],
) -> HashMap<Key, Share> {
    let mut taken = Taken::new(pool, places);
    let mut asking: Vec<&Service> = Vec::new();
    for service in all {
        match is_asked(service, pool, places) {
            true => asking.push(service),
            false => taken.leaving(service, held(service)),
        }
    }
    asking.sort_by_cached_key(|service| age(*service));
    // Who has something comes before who wants something.
    let mut kept: Vec<Vec<IpAddr>> = Vec::new();
    for service in &asking {
        let mut own = held(service);
        let mut seen = HashSet::new();
        own.retain(|address| {
            taken.fits(service, *address)
                && seen.insert(address.family())
                && taken.obstacle(service, *address).is_none()
        });
        for address in &own {
            taken.put(service, *address);
        }
        kept.push(own);
    }
    let shares = asking.into_iter().zip(kept);
    shares
        .map(|(service, kept)| (Key::of(service), taken.complete(service, &kept)))
        .collect()
}

/// Who has which address.
struct Taken<'a> {
    pool: &'a Pool,
    /// Addresses of nodes, which are nobody else's.
    nodes: HashSet<IpAddr>,
    holders: HashMap<IpAddr, Vec<Holder<'a>>>,
}

enum Holder<'a> {
    Stays(&'a Service),
    Leaves(&'a Service),
}

impl<'a> Taken<'a> {
    fn new(pool: &'a Pool, places: &[Place]) -> Self {
        Self {
            pool,
            nodes: places.iter().map(|place| place.address).collect(),
            holders: HashMap::new(),
        }
    }

    fn leaving(&mut self, service: &'a Service, held: Vec<IpAddr>) {
        for address in held {
            let holders = self.holders.entry(address).or_default();
            holders.push(Holder::Leaves(service));
        }
    }

    fn put(&mut self, service: &'a Service, address: IpAddr) {
        let holders = self.holders.entry(address).or_default();
        holders.push(Holder::Stays(service));
    }

    /// Whether it is one that the Service may have, whoever has it.
    fn fits(&self, service: &Service, address: IpAddr) -> bool {
        let Some(spec) = service.spec.as_ref() else {
            return false;
        };
        let asked = requested(spec).map(str::parse::<IpAddr>);
        self.pool.contains(&address)
            && !self.nodes.contains(&address)
            && families(spec).contains(&address.is_ipv4())
            && match asked {
                Some(Ok(asked)) => asked == address || asked.family() != address.family(),
                Some(Err(_)) => false,
                None => true,
            }
    }

    /// Who keeps the Service from this address, and why.
    fn obstacle(&self, service: &Service, address: IpAddr) -> Option<(Key, Obstacle)> {
        let holders = self.holders.get(&address)?.iter();
        let mut obstacles = holders.filter_map(|holder| match holder {
            Holder::Leaves(other) => Some((Key::of(*other), Obstacle::Leaving)),
            Holder::Stays(other) => {
                let obstacle = between(service, other, address)?;
                Some((Key::of(*other), obstacle))
            }
        });
        obstacles.next()
    }

    /// What the Service gets beside what it keeps: an address for each of its families.
    fn complete(&mut self, service: &'a Service, kept: &[IpAddr]) -> Share {
        let mut share = Share {
            source: Source::Pool,
            ..Share::default()
        };
        let Some(spec) = service.spec.as_ref() else {
            return share;
        };
        let families = families(spec).into_iter().map(|is_v4| match is_v4 {
            true => Family::V4,
            false => Family::V6,
        });
        let families: Vec<Family> = families.collect();
        let asked = requested(spec);
        let address = asked.and_then(|text| text.parse::<IpAddr>().ok());
        let fits = address.is_some_and(|address| self.fits(service, address));
        if let Some(text) = asked.filter(|_| !fits) {
            share.refusals.push(Refusal::NotInPool {
                address: text.to_owned(),
                pool: self.pool.clone(),
            });
            return share;
        }
        for family in families {
            let wanted = address.filter(|address| address.family() == family);
            let kept = kept.iter().find(|address| address.family() == family);
            let got = match (kept, wanted) {
                (Some(kept), _) => {
                    share.addresses.push(*kept);
                    continue;
                }
                (None, Some(wanted)) => match self.obstacle(service, wanted) {
                    None => Ok(wanted),
                    Some((by, why)) => Err(Refusal::Held {
                        address: wanted,
                        by,
                        why,
                    }),
                },
                (None, None) => self.free(family),
            };
            match got {
                Ok(address) => {
                    self.put(service, address);
                    share.addresses.push(address);
                }
                Err(refusal) => share.refusals.push(refusal),
            }
        }
        share
    }

    fn free(&self, family: Family) -> Result<IpAddr, Refusal> {
        if !self.pool.has(family) {
            return Err(Refusal::PoolWithout { family });
        }
        let is_free =
            |address: &IpAddr| !self.holders.contains_key(address) && !self.nodes.contains(address);
        let mut addresses = self.pool.addresses(family);
        addresses
            .find(is_free)
            .ok_or(Refusal::PoolExhausted { family })
    }
}

/// What keeps these two from having the address together.
fn between(one: &Service, other: &Service, address: IpAddr) -> Option<Obstacle> {
    let (Some(one_spec), Some(other_spec)) = (&one.spec, &other.spec) else {
        return Some(Obstacle::NotAsked);
    };
    let asks = |spec| requested(spec).map(str::parse) == Some(Ok(address));
    if !asks(one_spec) || !asks(other_spec) {
        return Some(Obstacle::NotAsked);
    }
    let theirs = ports(other);
    if let Some(port) = ports(one).into_iter().find(|port| theirs.contains(port)) {
        return Some(Obstacle::Port(port));
    }
    let same = one_spec.selector == other_spec.selector
        && one_spec
            .selector
            .as_ref()
            .is_some_and(|all| !all.is_empty())
        && one.metadata.namespace == other.metadata.namespace;
    let is_bound = is_local(one_spec) || is_local(other_spec);
    (is_bound && !same).then_some(Obstacle::Endpoints)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::*;
    use crate::{addresses::balancing::pool_addresses, controllers::service_lb::plan::places};

    /// A Service made in this second, with what its status says to have of the pool.
    fn service(name: &str, second: u8, spec: Value, held: &[&str]) -> Arc<Service> {
        let mut service = json!({
            "metadata": {"name": name, "namespace": "n", "uid": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"type": "LoadBalancer", "selector": {"app": "a"}, "ports": [{"port": 80, "protocol": "TCP"}]},
            "status": {},
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        if !held.is_empty() {
            let ingress: Vec<Value> = held.iter().map(|ip| json!({"ip": ip})).collect();
            let condition = json!({"type": "vetch.io/PoolAddresses", "status": "True", "reason": "Given",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            service["status"] =
                json!({"conditions": [condition], "loadBalancer": {"ingress": ingress}});
        }
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn plain(name: &str, second: u8, held: &[&str]) -> Arc<Service> {
        service(name, second, json!({}), held)
    }

    fn asking(name: &str, second: u8, address: &str, port: u16, more: Value) -> Arc<Service> {
        let mut spec =
            json!({"loadBalancerIP": address, "ports": [{"port": port, "protocol": "TCP"}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        service(name, second, spec, &[])
    }

    /// What each gets of 192.0.2.11 to 13 and 2001:db8::1, beside a node with the address 192.0.2.12.
    fn got(all: &[Arc<Service>]) -> Vec<(String, Vec<String>, Vec<&'static str>)> {
        let node = json!({"metadata": {"name": "a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.12"}]}});
        let node: Node = serde_json::from_value(node).unwrap();
        let ranges = ["192.0.2.11-192.0.2.13", "2001:db8::1-2001:db8::1"];
        let ranges = ranges.map(|text| text.parse().unwrap()).to_vec();
        let pool = Pool::new(ranges, &[]).unwrap();
        let held = |service: &Service| pool_addresses(service);
        let shares = allot(all, &held, &pool, &places(&[Arc::new(node)], &[]));
        let mut got: Vec<_> = shares
            .into_iter()
            .map(|(key, share)| {
                assert_eq!(share.source, Source::Pool);
                let addresses = share.addresses.iter().map(ToString::to_string).collect();
                let reasons = share.refusals.iter().map(Refusal::reason).collect();
                (key.name, addresses, reasons)
            })
            .collect();
        got.sort();
        got
    }

    #[test]
    fn who_gets_what() {
        let v6 = || json!({"ipFamilies": ["IPv6"]});
        let both = || json!({"ipFamilies": ["IPv6", "IPv4"]});
        let local = || json!({"externalTrafficPolicy": "Local"});
        let other = || json!({"selector": {"app": "b"}});
        let cluster_ip = json!({"type": "ClusterIP"});
        const ONE: &str = "192.0.2.11";
        const THREE: &str = "192.0.2.13";
        type Want<'a> = &'a [(&'a str, &'a [&'a str], &'a [&'a str])];
        let cases: Vec<(Vec<Arc<Service>>, Want<'_>)> = vec![
            // In the order of their age; a node's address is nobody's.
            (
                vec![plain("b", 2, &[]), plain("a", 1, &[]), plain("c", 3, &[])],
                &[
                    ("a", &[ONE], &[]),
                    ("b", &[THREE], &[]),
                    ("c", &[], &["PoolExhausted"]),
                ],
            ),
            // Who has one keeps it.
            (
                vec![
                    plain("a", 1, &[]),
                    plain("b", 2, &[ONE]),
                    plain("c", 3, &[THREE]),
                ],
                &[
                    ("a", &[], &["PoolExhausted"]),
                    ("b", &[ONE], &[]),
                    ("c", &[THREE], &[]),
                ],
            ),
            // Of two that say to have it the older one.
            (
                vec![plain("b", 2, &[ONE]), plain("a", 1, &[ONE])],
                &[("a", &[ONE], &[]), ("b", &[THREE], &[])],
            ),
            // What is not in the pool any more, or a node's now, is given up.
            (
                vec![
                    plain("a", 1, &["192.0.2.99"]),
                    plain("b", 2, &["192.0.2.12"]),
                ],
                &[("a", &[ONE], &[]), ("b", &[THREE], &[])],
            ),
            // One of each family that there is.
            (
                vec![service("a", 1, both(), &[]), service("b", 2, v6(), &[])],
                &[
                    ("a", &["2001:db8::1", ONE], &[]),
                    ("b", &[], &["PoolExhausted"]),
                ],
            ),
            // Who shall have none keeps it until it says so no more.
            (
                vec![
                    service("a", 1, cluster_ip, &[ONE, THREE]),
                    plain("b", 2, &[]),
                ],
                &[("b", &[], &["PoolExhausted"])],
            ),
            // A request is for that one.
            (
                vec![asking("a", 1, THREE, 80, json!({})), plain("b", 2, &[])],
                &[("a", &[THREE], &[]), ("b", &[ONE], &[])],
            ),
            (
                vec![
                    plain("a", 1, &[THREE]),
                    asking("b", 2, THREE, 81, json!({})),
                ],
                &[("a", &[THREE], &[]), ("b", &[], &["AddressTaken"])],
            ),
            (
                vec![
                    asking("a", 1, "192.0.2.99", 80, json!({})),
                    asking("b", 2, "nonsense", 80, json!({})),
                    asking("c", 3, "2001:db8::1", 80, json!({})),
                    asking("d", 4, "2001:db8::1", 80, both()),
                ],
                &[
                    ("a", &[], &["AddressNotAvailable"]),
                    ("b", &[], &["AddressNotAvailable"]),
                    ("c", &[], &["AddressNotAvailable"]),
                    ("d", &["2001:db8::1", ONE], &[]),
                ],
            ),
            // A node's address is not asked of the pool.
            (vec![asking("a", 1, "192.0.2.12", 80, json!({}))], &[]),
            (
                vec![service("a", 1, json!({"loadBalancerClass": CLASS}), &[])],
                &[],
            ),
            (
                vec![service("a", 1, json!({"loadBalancerClass": "a.b/c"}), &[])],
                &[],
            ),
            // Two that ask for the same one share it, if they can.
            (
                vec![
                    asking("a", 1, ONE, 80, json!({})),
                    asking("b", 2, ONE, 81, other()),
                ],
                &[("a", &[ONE], &[]), ("b", &[ONE], &[])],
            ),
            (
                vec![
                    asking("a", 1, ONE, 80, json!({})),
                    asking("b", 2, ONE, 80, json!({})),
                ],
                &[("a", &[ONE], &[]), ("b", &[], &["AddressTaken"])],
            ),
            (
                vec![
                    asking("a", 1, ONE, 80, local()),
                    asking("b", 2, ONE, 81, json!({})),
                ],
                &[("a", &[ONE], &[]), ("b", &[ONE], &[])],
            ),
            (
                vec![
                    asking("a", 1, ONE, 80, local()),
                    asking("b", 2, ONE, 81, other()),
                ],
                &[("a", &[ONE], &[]), ("b", &[], &["AddressTaken"])],
            ),
        ];
        for (all, want) in cases {
            let got = got(&all);
            let got: Vec<_> = got
                .iter()
                .map(|(name, addresses, reasons)| {
                    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
                    (name.as_str(), addresses, reasons.clone())
                })
                .collect();
            let want: Vec<_> = want
                .iter()
                .map(|(name, addresses, reasons)| (*name, addresses.to_vec(), reasons.to_vec()))
                .collect();
            let specs: Vec<_> = all.iter().map(|service| &service.spec).collect();
            assert_eq!(got, want, "{specs:?}");
        }
    }

    #[test]
    fn who_may_get_one_when_another_changes() {
        let both = json!({"ipFamilies": ["IPv4", "IPv6"]});
        let all = [
            plain("has", 1, &["192.0.2.11"]),
            plain("waits", 2, &[]),
            asking("asks", 3, "192.0.2.11", 80, json!({})),
            service("half", 4, both, &["192.0.2.13"]),
            service("other", 5, json!({"type": "ClusterIP"}), &[]),
        ];
        let names: Vec<_> = waiting(&all)
            .map(|one| one.metadata.name.as_deref())
            .collect();
        assert_eq!(names, [Some("waits"), Some("asks"), Some("half")]);
    }
}
