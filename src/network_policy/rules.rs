//! A NetworkPolicy taken apart once: selectors that can be asked, blocks as ranges. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::{Selector, SelectorExt};

use super::{
    model::{Direction, PortRange, Protocol},
    ranges::{Ranges, is_v6},
};

/// A policy as the plan asks it.
#[derive(Debug)]
pub struct Rules {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pods: Labels,
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

/// What one rule of a policy lets through.
#[derive(Debug)]
pub struct Rule {
    /// Empty: from or to everywhere.
    pub peers: Vec<Peer>,
    /// Empty: every port.
    pub ports: Vec<Port>,
}

#[derive(Debug)]
pub enum Peer {
    Block { ipv6: bool, ranges: Ranges },
    Pods(PodSelector),
}

/// Pods of this namespace or of those that are selected.
#[derive(Debug)]
pub struct PodSelector {
    pub namespaces: Option<Labels>,
    pub pods: Labels,
}

#[derive(Debug)]
pub enum Port {
    Numbers(PortRange),
    Named(Protocol, String),
}

/// A selector, and its text, by which equal ones are known.
#[derive(Debug)]
pub struct Labels {
    pub text: String,
    /// `None`: one that says nothing that makes sense, and thereby selects nothing.
    selector: Option<Selector>,
}

impl Labels {
    fn of(selector: &LabelSelector) -> Self {
        Self {
            text: serde_json::to_string(selector).unwrap_or_default(),
            selector: Selector::try_from(selector.clone()).ok(),
        }
    }

    pub fn select(&self, labels: &BTreeMap<String, String>) -> bool {
        let selector = self.selector.as_ref();
        selector.is_some_and(|selector| selector.selects_all() || selector.matches(labels))
    }
}

impl Rules {
    pub fn of(policy: &NetworkPolicy) -> Self {
        let spec = policy.spec.clone().unwrap_or_default();
        let types = spec.policy_types.unwrap_or_default();
        let is_of = |direction: &str| types.iter().any(|name| name == direction);
        let (ingress, egress) = match types.is_empty() {
            // The API fills them in; this is what it does.
            true => (true, spec.egress.is_some()),
            false => (is_of("Ingress"), is_of("Egress")),
        };
        let incoming = spec.ingress.unwrap_or_default();
        let incoming = incoming.into_iter().map(|rule| {
            Rule::of(
                rule.from.unwrap_or_default(),
                rule.ports.unwrap_or_default(),
            )
        });
        let outgoing = spec.egress.unwrap_or_default();
        let outgoing = outgoing
            .into_iter()
            .map(|rule| Rule::of(rule.to.unwrap_or_default(), rule.ports.unwrap_or_default()));
        let metadata = &policy.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            pods: Labels::of(&spec.pod_selector.unwrap_or_default()),
            ingress: ingress.then(|| incoming.flatten().collect()),
            egress: egress.then(|| outgoing.flatten().collect()),
        }
    }

    pub fn select(&self, labels: &BTreeMap<String, String>) -> bool {
        self.pods.select(labels)
    }

    /// `None`: the policy does not isolate in that direction.
    pub fn of_direction(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl Rule {
    /// `None` if nothing of what is listed makes sense: that lets nothing through, rather than everything.
    fn of(peers: Vec<NetworkPolicyPeer>, ports: Vec<NetworkPolicyPort>) -> Option<Self> {
        let (peers_asked, ports_asked) = (!peers.is_empty(), !ports.is_empty());
        let rule = Self {
            peers: peers.iter().filter_map(Peer::of).collect(),
            ports: ports.iter().filter_map(Port::of).collect(),
        };
        let is_whole =
            (!peers_asked || !rule.peers.is_empty()) && (!ports_asked || !rule.ports.is_empty());
        is_whole.then_some(rule)
    }
}

impl Peer {
    fn of(peer: &NetworkPolicyPeer) -> Option<Self> {
        if let Some(block) = &peer.ip_block {
            return Self::block(block);
        }
        if peer.namespace_selector.is_none() && peer.pod_selector.is_none() {
            return None;
        }
        Some(Self::Pods(PodSelector {
            namespaces: peer.namespace_selector.as_ref().map(Labels::of),
            pods: Labels::of(&peer.pod_selector.clone().unwrap_or_default()),
        }))
    }

    fn block(block: &IPBlock) -> Option<Self> {
        let cidr = network(&block.cidr)?;
        let except = block.except.iter().flatten();
        // An exception that nobody can read must not let anybody in.
        let except: Option<Vec<IpNet>> = except.map(|text| network(text)).collect();
        Some(Self::Block {
            ipv6: is_v6(cidr.addr()),
            ranges: Ranges::of(cidr, &except?),
        })
    }
}

impl Port {
    fn of(port: &NetworkPolicyPort) -> Option<Self> {
        let protocol = Protocol::of(port.protocol.as_deref())?;
        let range = |first, last| {
            Self::Numbers(PortRange {
                protocol,
                first,
                last,
            })
        };
        match &port.port {
            None => Some(range(0, u16::MAX)),
            Some(IntOrString::String(name)) => Some(Self::Named(protocol, name.clone())),
            Some(IntOrString::Int(first)) => {
                let first = u16::try_from(*first).ok()?;
                let last = match port.end_port {
                    Some(last) => u16::try_from(last).ok()?,
                    None => first,
                };
                (first <= last).then(|| range(first, last))
            }
        }
    }
}

/// A block, or an address alone.
fn network(text: &str) -> Option<IpNet> {
    let block = text.parse::<IpNet>();
    block
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
