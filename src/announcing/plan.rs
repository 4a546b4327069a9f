//! Which node has which address of the pool. Pure, and the same for every node that asks.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Service};
use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::is_pooled;
use crate::{
    addresses::balancing::{is_local, is_open, pool_addresses},
    informer::Key,
};

/// So many nodes wait for an address; with all of them gone at once, the next ones follow when the cluster has
/// noticed. Each of them watches the Leases of all others.
const MOST_CANDIDATES: usize = 8;

/// Who may have each address of the pool that a Service has, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates(BTreeMap<IpAddr, Candidate>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Candidate {
    nodes: Vec<String>,
    services: Vec<Key>,
}

impl Candidates {
    /// Whether no Service has any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.0.values().flat_map(|one| &one.nodes)
    }

    pub fn has(&self, node: &str) -> bool {
        self.nodes().any(|one| one == node)
    }

    pub fn services(&self, address: IpAddr) -> &[Key] {
        self.0.get(&address).map_or(&[], |one| &one.services)
    }

    /// What this node, which is there, has: nobody who comes before it is.
    pub fn of(&self, node: &str, is_alive: impl Fn(&str) -> bool) -> BTreeSet<IpAddr> {
        let has = |one: &Candidate| {
            let mut first = one.nodes.iter().filter(|one| *one == node || is_alive(one));
            first.next().is_some_and(|first| first == node)
        };
        let all = self.0.iter().filter(|(_, one)| has(one));
        all.map(|(address, _)| *address).collect()
    }
}

/// `serving` tells the nodes with endpoints of a Service that take new connections.
pub fn candidates(
    services: &[Arc<Service>],
    nodes: &[Arc<Node>],
    serving: &dyn Fn(&Service) -> BTreeSet<String>,
) -> Candidates {
    let open: Vec<String> = nodes
        .iter()
        .filter(|node| is_open(node))
        .map(|node| node.name_any())
        .collect();
    let mut found: BTreeMap<IpAddr, Candidate> = BTreeMap::new();
    for service in services.iter().filter(|service| is_pooled(service)) {
        let is_bound = service.spec.as_ref().is_some_and(is_local);
        let serving = is_bound.then(|| serving(service));
        for address in pool_addresses(service) {
            let one = found.entry(address).or_insert_with(|| Candidate {
                nodes: open.clone(),
                services: Vec::new(),
            });
            if let Some(serving) = &serving {
                one.nodes.retain(|node| serving.contains(node));
            }
            one.services.push(Key::of(&**service));
        }
    }
    for (address, one) in &mut found {
        one.nodes
            .sort_by_cached_key(|node| (Reverse(weight(node, *address)), node.clone()));
        one.nodes.truncate(MOST_CANDIDATES);
    }
    Candidates(found)
}

/// Each node draws for each address: addresses spread over nodes, and when a node comes or goes, only those move that
/// it has.
fn weight(node: &str, address: IpAddr) -> [u8; 8] {
    let digest = Sha256::digest(format!("{node}/{address}"));
    let mut weight = [0; 8];
    weight.copy_from_slice(&digest[..8]);
    weight
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::addresses::balancing::POOL_CONDITION;

    fn node(name: &str, more: Value) -> Arc<Node> {
        let mut node = json!({
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            node["metadata"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
        names.iter().map(|name| node(name, json!({}))).collect()
    }

    fn service(name: &str, addresses: &[&str], policy: &str) -> Arc<Service> {
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let condition = json!({"type": POOL_CONDITION, "status": "True", "reason": "Given", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let service = json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy},
            "status": {"conditions": [condition], "loadBalancer": {"ingress": ingress}},
        });
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn addresses(count: u8) -> Vec<String> {
        (1..=count).map(|last| format!("192.0.2.{last}")).collect()
    }

    fn all(names: &[&str], count: u8) -> Candidates {
        let addresses = addresses(count);
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let services = [service("s", &addresses, "Cluster")];
        candidates(&services, &nodes(names), &|_| BTreeSet::new())
    }

    #[test]
    fn every_address_has_one_node_and_few_move() {
        let names = ["a", "b", "c", "d"];
        let four = all(&names, 200);
        let mut seen = BTreeSet::new();
        for name in names {
            let own = four.of(name, |_| true);
            assert!((25..=75).contains(&own.len()), "{name}: {}", own.len());
            assert!(own.iter().all(|address| seen.insert(*address)));
        }
        assert_eq!(seen.len(), 200);
        // One is not there any more: the others have its addresses besides their own.
        let mut left = BTreeSet::new();
        for name in ["a", "b", "d"] {
            let (before, now) = (four.of(name, |_| true), four.of(name, |one| one != "c"));
            assert!(before.is_subset(&now), "{name}");
            // As if it had never been.
            assert_eq!(now, all(&["a", "b", "d"], 200).of(name, |_| true));
            left.extend(now);
        }
        assert_eq!(left.len(), 200);
        assert!(four.of("e", |_| true).is_empty() && !four.has("e") && four.has("a"));
    }

    #[test]
    fn few_of_many_wait_for_an_address() {
        let names: Vec<String> = (0..50).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(all(&names, 1).nodes().count(), MOST_CANDIDATES);
    }

    #[test]
    fn who_may_have_an_address() {
        let excluded =
            json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}});
        let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let mut nodes = nodes(&["a", "b", "c"]);
        nodes.push(node("d", excluded));
        nodes.push(node("e", leaving));
        let mut not_ready = (*node("f", json!({}))).clone();
        not_ready.status = None;
        nodes.push(Arc::new(not_ready));
        let serving = |service: &Service| match service.name_any().as_str() {
            "ab" => BTreeSet::from(["a".to_owned(), "b".to_owned(), "d".to_owned()]),
            "bc" => BTreeSet::from(["b".to_owned(), "c".to_owned()]),
            _ => BTreeSet::new(),
        };
        for (services, want) in [
            (
                vec![service("s", &["192.0.2.1"], "Cluster")],
                &["a", "b", "c"][..],
            ),
            (vec![service("ab", &["192.0.2.1"], "Local")], &["a", "b"]),
            (vec![service("nowhere", &["192.0.2.1"], "Local")], &[]),
            (
                vec![
                    service("ab", &["192.0.2.1"], "Local"),
                    service("bc", &["192.0.2.1"], "Local"),
                ],
                &["b"],
            ),
            (
                vec![service("s", &["2001:db8::1"], "Cluster")],
                &["a", "b", "c"],
            ),
            (vec![service("s", &[], "Cluster")], &[]),
        ] {
            let found = candidates(&services, &nodes, &serving);
            let mut names: Vec<&String> = found.nodes().collect();
            names.sort();
            assert_eq!(names, want, "{services:?}");
            assert_eq!(
                found.is_empty(),
                services[0].name_any() == "s" && want.is_empty()
            );
        }
    }
}
