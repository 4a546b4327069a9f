//! Which ranges of pod addresses are on which other node. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::{addresses::family::PerFamily, addresses::ranges::overlap};

/// Where the pods of a range are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: String,
    /// By which its machine is reached.
    pub address: Ipv4Addr,
}

/// What is known of the other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    pub by_range: BTreeMap<Ipv4Net, Peer>,
    /// Nodes whose pods are not reached, and why.
    pub refused: BTreeMap<String, String>,
}

/// What this node is.
#[derive(Clone, Debug)]
pub struct Own {
    pub name: String,
    pub ranges: PerFamily<IpNet>,
    /// Of all nodes' ranges.
    pub clusters: PerFamily<IpNet>,
}

/// The other nodes with their ranges. Of two that have the same the older one counts, and nobody has one of
/// this node's or one that is not the cluster's.
pub fn plan(nodes: &[Arc<Node>], own: &Own) -> Peers {
    let mut nodes: Vec<&Arc<Node>> = nodes
        .iter()
        .filter(|node| node.name_any() != own.name)
        .collect();
    nodes.sort_by_key(|node| (node.creation_timestamp(), node.uid()));
    let mut peers = Peers::default();
    for node in nodes {
        let name = node.name_any();
        let Some(address) = address(node) else {
            continue; // it has not told yet
        };
        for range in ranges(node) {
            let taken = peers
                .by_range
                .iter()
                .find(|(other, _)| overlap(&IpNet::V4(**other), &IpNet::V4(range)));
            let why = match taken {
                _ if overlap(own.ranges.primary(), &IpNet::V4(range)) => Some(format!(
                    "its pod range {range} overlaps this node's, {}",
                    own.ranges.primary()
                )),
                Some((other, peer)) => Some(format!(
                    "its pod range {range} overlaps {other} of the node {}",
                    peer.node
                )),
                None if !own.clusters.primary().contains(&IpNet::V4(range)) => Some(format!(
                    "its pod range {range} is not inside of the cluster's, {}",
                    own.clusters.primary()
                )),
                None => None,
            };
            match why {
                Some(why) => {
                    peers.refused.insert(name.clone(), why);
                }
                None => {
                    let node = name.clone();
                    peers.by_range.insert(range, Peer { node, address });
                }
            }
        }
    }
    peers
}

fn ranges(node: &Node) -> impl Iterator<Item = Ipv4Net> {
    let spec = node.spec.as_ref();
    let ranges = spec.and_then(|spec| spec.pod_cidrs.as_deref());
    let ranges = ranges.unwrap_or_default().iter();
    ranges.filter_map(|range| Some(range.parse::<Ipv4Net>().ok()?.trunc()))
}

/// The first address of the node's machine.
fn address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?.iter();
    let mut internal = addresses.filter(|address| address.type_ == "InternalIP");
    internal.find_map(|address| match address.address.parse() {
        Ok(IpAddr::V4(address)) if crate::addresses::may_be_proxied_to(address.into()) => {
            Some(address)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, made: &str, range: &str, address: &str) -> Arc<Node> {
        let object = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": made},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": address},
            ]},
        });
        Arc::new(serde_json::from_value(object).expect("a node"))
    }

    #[test]
    fn whose_pods_are_where() {
        let own = Own {
            name: "a".to_owned(),
            ranges: "10.42.0.0/24".parse().expect("a range"),
            clusters: "10.42.0.0/16".parse().expect("a range"),
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let mut none = Node::clone(&node("new", old, "10.42.9.0/24", "192.0.2.9"));
        none.status = None;
        let nodes = [
            node("a", old, "10.42.0.0/24", "192.0.2.1"),
            // Claims what another one has had for longer.
            node("thief", new, "10.42.1.0/24", "192.0.2.3"),
            node("b", old, "10.42.1.0/24", "192.0.2.2"),
            node("mine", new, "10.42.0.128/25", "192.0.2.4"),
            node("far", new, "10.9.0.0/24", "192.0.2.5"),
            node("all", new, "10.42.0.0/16", "192.0.2.6"),
            node("loop", new, "10.42.7.0/24", "127.0.0.1"),
            Arc::new(none),
        ];
        let peers = plan(&nodes, &own);
        let found: Vec<String> = peers
            .by_range
            .iter()
            .map(|(range, peer)| format!("{range} {} {}", peer.node, peer.address))
            .collect();
        assert_eq!(found, ["10.42.1.0/24 b 192.0.2.2"]);
        let refused: Vec<&str> = peers.refused.keys().map(String::as_str).collect();
        assert_eq!(refused, ["all", "far", "mine", "thief"]);
        assert!(peers.refused["thief"].contains("overlaps 10.42.1.0/24 of the node b"));
    }
}
