//! Which ranges of pod addresses are on which other node, and how each is reached. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netns::wireguard::PublicKey;

use crate::addresses::{
    family::{Family, OfFamily, PerFamily},
    ranges::overlap,
};

/// The annotation of a Node that tells the public key of its encrypted tunnel, as `wg` writes keys.
pub const PUBLIC_KEY: &str = "vetch.io/wireguard-public-key";

/// Where the pods of a range are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: String,
    pub key: NodeKey,
    /// By which its machine is reached: the first that it tells of each family that this machine has too.
    pub addresses: BTreeMap<Family, IpAddr>,
}

/// The key that a Node tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKey {
    Known(PublicKey),
    /// It tells none, or something that is none.
    Missing,
    /// This node, which is older or the one where this runs, tells the same one.
    Of(String),
}

/// What is known of the other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    pub by_range: BTreeMap<IpNet, Peer>,
    /// All that other nodes have of the cluster's ranges, reached or not, without overlaps.
    pub others: BTreeSet<IpNet>,
    /// Nodes whose pods are not reached, and why.
    pub refused: BTreeMap<String, String>,
}

/// What this node is.
#[derive(Clone, Debug)]
pub struct Own {
    pub name: String,
    /// Of this machine, by which other nodes reach it.
    pub addresses: PerFamily<IpAddr>,
    pub ranges: PerFamily<IpNet>,
    /// Of all nodes' ranges.
    pub clusters: PerFamily<IpNet>,
}

impl Own {
    /// The families that a tunnel can run over, the first one rather.
    pub fn outer(&self) -> impl Iterator<Item = Family> {
        let families = self.clusters.families();
        families.filter(|family| self.addresses.of(*family).is_some())
    }
}

/// How an address of another machine is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is on that link,
    Link(u32),
    /// or behind a router on that link.
    Router(u32),
    /// It is not.
    None(String),
}

/// How packets for a range of pods get to their machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the machine's address, which is on that link.
    Direct {
        link: u32,
        via: IpAddr,
    },
    /// Inside of packets to the machine's address, which leave by that link.
    Tunnel {
        link: u32,
        machine: IpAddr,
    },
    None(String),
}

/// The other nodes with their ranges of this node's families. Of two that have the same the older one counts,
/// and nobody has one of this node's or one that is not the cluster's.
pub fn plan(nodes: &[Arc<Node>], own: &Own) -> Peers {
    let is_own = |node: &Node| node.name_any() == own.name;
    let mut nodes: Vec<&Arc<Node>> = nodes.iter().collect();
    nodes.sort_by_key(|node| (!is_own(node), node.creation_timestamp(), node.uid()));
    let mut keys = BTreeMap::new();
    let mut others = Vec::new();
    let mut peers = Peers::default();
    for node in nodes {
        let name = node.name_any();
        let key = key(node, &mut keys);
        if is_own(node) {
            continue;
        }
        others.extend(ranges(node).filter(|range| is_others(range, own)));
        let addresses = addresses(node, own);
        if addresses.is_empty() {
            continue; // it has not told yet
        }
        for range in ranges(node) {
            let family = range.family();
            let (Some(own_range), Some(cluster)) = (own.ranges.of(family), own.clusters.of(family))
            else {
                continue; // no pod of this node could send there
            };
            let taken = peers
                .by_range
                .iter()
                .find(|(other, _)| overlap(other, &range));
            let why = match taken {
                _ if overlap(own_range, &range) => Some(format!(
                    "its pod range {range} overlaps this node's, {own_range}"
                )),
                Some((other, peer)) => Some(format!(
                    "its pod range {range} overlaps {other} of the node {}",
                    peer.node
                )),
                None if !cluster.contains(&range) => Some(format!(
                    "its pod range {range} is not inside of the cluster's, {cluster}"
                )),
                None => None,
            };
            match why {
                Some(why) => {
                    peers.refused.insert(name.clone(), why);
                }
                None => {
                    let peer = Peer {
                        node: name.clone(),
                        key: key.clone(),
                        addresses: addresses.clone(),
                    };
                    peers.by_range.insert(range, peer);
                }
            }
        }
    }
    peers.others = IpNet::aggregate(&others).into_iter().collect();
    peers
}

/// `families`: that a tunnel can run over. Packets go straight to a machine that is on a link by an address of
/// their own family, else by a tunnel over the first family in which it is reached.
pub fn way(of: Family, peer: &Peer, families: &[Family], reach: &BTreeMap<IpAddr, Reach>) -> Way {
    let reached = |family: Family| {
        let address = peer.addresses.get(&family)?;
        Some((*address, reach.get(address)?))
    };
    if let Some((via, Reach::Link(link))) = reached(of) {
        return Way::Direct { link: *link, via };
    }
    tunnelled(peer, families, reach)
}

/// By a tunnel over the first of the families in which the machine is reached, on a link or not.
pub fn tunnelled(peer: &Peer, families: &[Family], reach: &BTreeMap<IpAddr, Reach>) -> Way {
    let reached = |family: Family| {
        let address = peer.addresses.get(&family)?;
        Some((*address, reach.get(address)?))
    };
    let mut why = None;
    for (machine, reach) in families.iter().filter_map(|family| reached(*family)) {
        match reach {
            Reach::Link(link) | Reach::Router(link) => {
                return Way::Tunnel {
                    link: *link,
                    machine,
                };
            }
            Reach::None(reason) => {
                why.get_or_insert(reason);
            }
        }
    }
    Way::None(why.cloned().unwrap_or_else(|| {
        let told: Vec<String> = peer.addresses.values().map(IpAddr::to_string).collect();
        format!("no tunnel can lead to its addresses {}", told.join(", "))
    }))
}

/// Every address of these machines, once.
pub fn machines(peers: &Peers) -> BTreeSet<IpAddr> {
    let peers = peers.by_range.values();
    peers
        .flat_map(|peer| peer.addresses.values().copied())
        .collect()
}

/// As annotations tell it.
pub fn written(key: &PublicKey) -> String {
    BASE64_STANDARD.encode(key.0)
}

fn parsed(text: &str) -> Option<PublicKey> {
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    bytes.try_into().ok().map(PublicKey)
}

/// `keys`: of nodes before this one.
fn key(node: &Node, keys: &mut BTreeMap<PublicKey, String>) -> NodeKey {
    let told = node.annotations().get(PUBLIC_KEY);
    let Some(key) = told.and_then(|text| parsed(text)) else {
        return NodeKey::Missing;
    };
    match keys.get(&key) {
        Some(other) => NodeKey::Of(other.clone()),
        None => {
            keys.insert(key, node.name_any());
            NodeKey::Known(key)
        }
    }
}

/// Whether packets of the range can only be another node's.
fn is_others(range: &IpNet, own: &Own) -> bool {
    let family = range.family();
    let (own_range, cluster) = (own.ranges.of(family), own.clusters.of(family));
    cluster.is_some_and(|cluster| cluster.contains(range))
        && own_range.is_none_or(|own_range| !overlap(own_range, range))
}

fn ranges(node: &Node) -> impl Iterator<Item = IpNet> {
    let spec = node.spec.as_ref();
    let ranges = spec.and_then(|spec| spec.pod_cidrs.as_deref());
    let ranges = ranges.unwrap_or_default().iter();
    ranges.filter_map(|range| Some(range.parse::<IpNet>().ok()?.trunc()))
}

/// The first address of the node's machine in each family that this one has.
fn addresses(node: &Node, own: &Own) -> BTreeMap<Family, IpAddr> {
    let status = node.status.as_ref();
    let told = status.and_then(|status| status.addresses.as_deref());
    let internal = told
        .unwrap_or_default()
        .iter()
        .filter(|told| told.type_ == "InternalIP");
    let mut found = BTreeMap::new();
    for address in internal.filter_map(|told| told.address.parse::<IpAddr>().ok()) {
        let family = address.family();
        if own.addresses.of(family).is_some() && crate::addresses::may_be_proxied_to(address) {
            found.entry(family).or_insert(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, made: &str, ranges: &str, addresses: &str) -> Arc<Node> {
        let ranges: Vec<&str> = ranges.split(',').collect();
        let internal = addresses.split(',');
        let mut told = vec![json!({"type": "Hostname", "address": name})];
        told.extend(internal.map(|one| json!({"type": "InternalIP", "address": one})));
        let object = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": made},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": told},
        });
        Arc::new(serde_json::from_value(object).expect("a node"))
    }

    fn own(addresses: &str, ranges: &str, clusters: &str) -> Own {
        Own {
            name: "a".to_owned(),
            addresses: addresses.parse().expect("addresses"),
            ranges: ranges.parse().expect("ranges"),
            clusters: clusters.parse().expect("ranges"),
        }
    }

    fn found(peers: &Peers) -> Vec<String> {
        let line = |(range, peer): (&IpNet, &Peer)| {
            let told: Vec<String> = peer.addresses.values().map(IpAddr::to_string).collect();
            format!("{range} {} {}", peer.node, told.join(","))
        };
        peers.by_range.iter().map(line).collect()
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-02-01T00:00:00Z";

    #[test]
    fn whose_pods_are_where() {
        let own = own("192.0.2.1", "10.42.0.0/24", "10.42.0.0/16");
        let mut none = Node::clone(&node("new", OLD, "10.42.9.0/24", "192.0.2.9"));
        none.status = None;
        let nodes = [
            node("a", OLD, "10.42.0.0/24", "192.0.2.1"),
            // Claims what another one has had for longer.
            node("thief", NEW, "10.42.1.0/24", "192.0.2.3"),
            node("b", OLD, "10.42.1.0/24", "192.0.2.2"),
            node("mine", NEW, "10.42.0.128/25", "192.0.2.4"),
            node("far", NEW, "10.9.0.0/24", "192.0.2.5"),
            node("all", NEW, "10.42.0.0/16", "192.0.2.6"),
            node("loop", NEW, "10.42.7.0/24", "127.0.0.1"),
            // Only what this node has too.
            node(
                "dual",
                NEW,
                "10.42.8.0/24,fd42:0:0:8::/64",
                "fd00::8,192.0.2.8",
            ),
            Arc::new(none),
        ];
        let peers = plan(&nodes, &own);
        let want = ["10.42.1.0/24 b 192.0.2.2", "10.42.8.0/24 dual 192.0.2.8"];
        assert_eq!(found(&peers), want);
        let refused: Vec<&str> = peers.refused.keys().map(String::as_str).collect();
        assert_eq!(refused, ["all", "far", "mine", "thief"]);
        assert!(peers.refused["thief"].contains("overlaps 10.42.1.0/24 of the node b"));
    }

    #[test]
    fn each_family_is_judged_by_itself() {
        let own = own(
            "192.0.2.1,fd00::1",
            "10.42.0.0/24,fd42::/64",
            "10.42.0.0/16,fd42::/56",
        );
        let nodes = [
            node(
                "b",
                OLD,
                "10.42.1.0/24,fd42:0:0:1::/64",
                "192.0.2.2,fd00::2",
            ),
            node("half", NEW, "10.42.2.0/24,fd42::/80", "192.0.2.3,fe80::3"),
            node("only6", NEW, "fd42:0:0:3::/64", "fd00::4"),
            node("out", NEW, "fd43::/64", "fd00::5"),
        ];
        let peers = plan(&nodes, &own);
        let want = [
            "10.42.1.0/24 b 192.0.2.2,fd00::2",
            "10.42.2.0/24 half 192.0.2.3",
            "fd42:0:0:1::/64 b 192.0.2.2,fd00::2",
            "fd42:0:0:3::/64 only6 fd00::4",
        ];
        assert_eq!(found(&peers), want);
        let refused: Vec<&str> = peers.refused.keys().map(String::as_str).collect();
        assert_eq!(refused, ["half", "out"]);
    }

    #[test]
    fn how_a_machine_is_reached() {
        let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 2].into(), "fd00::2".parse().unwrap());
        let on = Reach::Link(1);
        let far = || Reach::Router(2);
        let none = || Reach::None("there is no route".to_owned());
        let direct = |via| Way::Direct { link: 1, via };
        let tunnel = |link, machine| Way::Tunnel { link, machine };
        let (four, six) = (Family::V4, Family::V6);
        for (of, addresses, reach4, reach6, primary, want) in [
            (four, vec![v4], on.clone(), none(), four, direct(v4)),
            (four, vec![v4], far(), none(), four, tunnel(2, v4)),
            (
                four,
                vec![v4],
                none(),
                none(),
                four,
                Way::None("there is no route".into()),
            ),
            (six, vec![v4, v6], on.clone(), on.clone(), four, direct(v6)),
            // Behind routers the primary family carries both.
            (six, vec![v4, v6], far(), far(), four, tunnel(2, v4)),
            (four, vec![v4, v6], far(), far(), six, tunnel(2, v6)),
            (six, vec![v4, v6], on.clone(), far(), four, tunnel(1, v4)),
            // With one family's address alone that one carries both, also on a link.
            (six, vec![v4], on.clone(), none(), four, tunnel(1, v4)),
            (four, vec![v6], none(), on.clone(), four, tunnel(1, v6)),
            (four, vec![v6], none(), far(), four, tunnel(2, v6)),
            (six, vec![v4, v6], none(), far(), four, tunnel(2, v6)),
        ] {
            let peer = Peer {
                node: "b".to_owned(),
                key: NodeKey::Missing,
                addresses: addresses.iter().map(|one| (one.family(), *one)).collect(),
            };
            let reach = [(v4, reach4), (v6, reach6)].into();
            let mut families = Family::ALL;
            families.sort_by_key(|family| *family != primary);
            assert_eq!(way(of, &peer, &families, &reach), want, "{of} {peer:?}");
            // An encrypted tunnel leads to machines on a link, too, over the first family.
            let sealed = tunnelled(&peer, &families, &reach);
            match want {
                Way::Direct { link, via } if peer.addresses.len() == 1 => {
                    let machine = via;
                    assert_eq!(sealed, Way::Tunnel { link, machine });
                }
                Way::Direct { .. } => assert_eq!(sealed, tunnel(1, v4)),
                want => assert_eq!(sealed, want),
            }
        }
    }

    fn with_key(node: Arc<Node>, key: &str) -> Arc<Node> {
        let mut node = Node::clone(&node);
        let annotations = node.metadata.annotations.get_or_insert_default();
        annotations.insert(PUBLIC_KEY.to_owned(), key.to_owned());
        Arc::new(node)
    }

    #[test]
    fn whose_a_key_is() {
        let own = own("192.0.2.1", "10.42.0.0/24", "10.42.0.0/16");
        let keys = [1, 2, 3].map(|byte| PublicKey([byte; 32]));
        let texts = keys.map(|key| written(&key));
        let at = |name: &str, made: &str, number: u8, key: &str| {
            let range = format!("10.42.{number}.0/24");
            with_key(node(name, made, &range, &format!("192.0.2.{number}")), key)
        };
        let nodes = [
            at("thief", NEW, 4, &texts[1]),
            at("a", NEW, 0, &texts[0]),
            at("b", OLD, 2, &texts[1]),
            // What this node itself tells is nobody else's.
            at("mirror", OLD, 3, &texts[0]),
            at("short", OLD, 5, "AAAA"),
            at("c", OLD, 6, &texts[2]),
            node("silent", OLD, "10.42.7.0/24", "192.0.2.7"),
        ];
        let peers = plan(&nodes, &own);
        let found: Vec<(&str, &NodeKey)> = peers
            .by_range
            .values()
            .map(|peer| (peer.node.as_str(), &peer.key))
            .collect();
        let of = |name: &str| NodeKey::Of(name.to_owned());
        assert_eq!(
            found,
            [
                ("b", &NodeKey::Known(keys[1])),
                ("mirror", &of("a")),
                ("thief", &of("b")),
                ("short", &NodeKey::Missing),
                ("c", &NodeKey::Known(keys[2])),
                ("silent", &NodeKey::Missing),
            ]
        );
        // As `wg` writes them.
        assert_eq!(texts[0], "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    }

    #[test]
    fn what_is_others() {
        let own = own("192.0.2.1", "10.42.0.0/24", "10.42.0.0/16");
        let nodes = [
            node("a", OLD, "10.42.0.0/24", "192.0.2.1"),
            node("b", OLD, "10.42.2.0/24", "192.0.2.2"),
            // They tell no address, or have what another one has had for longer.
            node("silent", OLD, "10.42.3.0/24", "127.0.0.1"),
            node("thief", NEW, "10.42.2.128/25", "192.0.2.3"),
            // Never what is this node's, or not the cluster's.
            node("mine", NEW, "10.42.0.128/25", "192.0.2.4"),
            node("all", NEW, "10.42.0.0/16", "192.0.2.6"),
            node("far", NEW, "10.9.0.0/24,fd42::/64", "192.0.2.5"),
        ];
        let others = plan(&nodes, &own).others;
        let others: Vec<String> = others.iter().map(IpNet::to_string).collect();
        assert_eq!(others, ["10.42.2.0/23"]);
    }
}
