//! Ports of the node that lead to pods (`hostPort`): which rules that takes.
//!
//! A table per address family.
//! Always true: a table holds exactly the forwards of the pods that have an address of its family, and is not
//! there without any; a packet for a port of the daemon's own is never led to a pod, whatever pods
//! ask for. What the node itself asks from `::1` is passed on by the daemon, over TCP: the kernel routes nothing from
//! there to another link.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::api::core::v1::Pod;
use netns::nft::{BaseChain, Batch, ChainKind, Hook, Policy, Reg, Rule, Table, Verdict};

use super::masquerade::of_packets;
use crate::{
    addresses::{
        canonical,
        family::{Family, OfFamily, PerFamily},
    },
    own_ports::OwnPorts,
};

/// Services have their rules at -100: who may have a port of the node keeps it from them.
const BEFORE_SERVICES: i32 = -101;
const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);
const LOOPBACK_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const TCP: u8 = 6;

/// One port of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub address: HostAddress,
    /// The number in the IP header.
    pub protocol: u8,
    pub port: u16,
    pub to: u16,
}

/// Which addresses of the node a port is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// Of both families, as far as the pod has them.
    Every,
    EveryIpv6,
    One(IpAddr),
}

impl HostAddress {
    /// The one address, if it is one.
    pub fn one(self) -> Option<IpAddr> {
        match self {
            Self::Every | Self::EveryIpv6 => None,
            Self::One(address) => Some(address),
        }
    }

    fn is_of(self, family: Family) -> bool {
        match self {
            Self::Every => true,
            Self::EveryIpv6 => family == Family::V6,
            Self::One(address) => address.family() == family,
        }
    }
}

/// Why nothing is led from a `hostIP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHostAddress {
    #[error("is no IP address")]
    Syntax,
}

/// Addresses of a pod, with what it asks for.
pub type Wanted = (PerFamily<IpAddr>, Vec<Forward>);

/// What the pod's containers ask for; init containers that end before have no say.
pub fn forwards(pod: &Pod) -> Vec<Forward> {
    let Some(spec) = pod
        .spec
        .as_ref()
        .filter(|spec| spec.host_network != Some(true))
    else {
        return Vec::new();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(Forward {
                address: host_address(port.host_ip.as_deref().unwrap_or_default()).ok()?,
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => 17,
                    Some("SCTP") => 132,
                    _ => 6,
                },
                port: u16::try_from(port.host_port?)
                    .ok()
                    .filter(|port| *port > 0)?,
                to: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect()
}

/// What `hostIP` means, in any spelling.
pub fn host_address(text: &str) -> Result<HostAddress, NoHostAddress> {
    if text.is_empty() {
        return Ok(HostAddress::Every);
    }
    let address = canonical(text.parse().map_err(|_| NoHostAddress::Syntax)?);
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => Ok(HostAddress::Every),
        IpAddr::V6(v6) if v6.is_unspecified() => Ok(HostAddress::EveryIpv6),
        address => Ok(HostAddress::One(address)),
    }
}

/// Replaces the whole table of the family: packets see all of the old one or all of the new one. `loopback`: the
/// port of `::1` that passes on what is asked from there.
pub fn batch(
    family: Family,
    table: &str,
    bridge: &str,
    own: &OwnPorts,
    loopback: Option<u16>,
    forwards: &BTreeMap<String, Wanted>,
) -> Batch {
    let table = Table::new(of_packets(family), table);
    let mut batch = Batch::new();
    batch.remove_table(&table);
    let leads: Vec<(IpAddr, &Forward)> = forwards
        .values()
        .filter_map(|(pod, forwards)| Some((*pod.of(family)?, forwards)))
        .flat_map(|(pod, forwards)| forwards.iter().map(move |forward| (pod, forward)))
        .filter(|(_, forward)| forward.address.is_of(family))
        .collect();
    if leads.is_empty() {
        return batch;
    }
    batch.add_table(&table).add_chain(&table, "ports");
    let base = |kind, hook, priority| BaseChain {
        kind,
        hook,
        priority,
        policy: Policy::Accept,
    };
    for rule in own.spare(family) {
        batch.add_rule(&table, "ports", rule);
    }
    for (pod, forward) in &leads {
        let passed_on = loopback.filter(|_| family == Family::V6);
        if let Some(rule) = passed_on.and_then(|port| pass_on(forward, port)) {
            batch.add_rule(&table, "ports", rule);
        }
        batch.add_rule(&table, "ports", lead(*pod, forward));
    }
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        batch
            .add_base_chain(&table, name, base(ChainKind::Nat, hook, BEFORE_SERVICES))
            .add_rule(
                &table,
                name,
                Rule::new()
                    .destination_local()
                    .verdict(&Verdict::Jump("ports".into())),
            );
    }
    // Replies must come back this way from what the node asks by its loopback address, and from a
    // pod that asks itself.
    batch.add_base_chain(
        &table,
        "postrouting",
        base(ChainKind::Nat, Hook::Postrouting, 100),
    );
    if family == Family::V4 {
        let by_loopback = Rule::new()
            .source_in(LOOPBACK.0, LOOPBACK.1, true)
            .output_link(bridge);
        batch.add_rule(&table, "postrouting", by_loopback.masquerade());
    }
    let pods: BTreeSet<IpAddr> = leads.iter().map(|(pod, _)| *pod).collect();
    for pod in pods {
        let rule = Rule::new()
            .source_in(pod, family.bits(), true)
            .destination_in(pod, family.bits(), true)
            .masquerade();
        batch.add_rule(&table, "postrouting", rule);
    }
    batch
}

fn lead(pod: IpAddr, forward: &Forward) -> Rule {
    let rule = match forward.address.one() {
        Some(address) => Rule::new().destination_in(address, address.family().bits(), true),
        None => Rule::new(),
    };
    let rule = match pod.family() {
        Family::V4 => rule,
        Family::V6 => rule.source_in(LOOPBACK_IPV6, Family::V6.bits(), false),
    };
    redirect(rule, forward, pod, forward.to)
}

/// What a program asks from `::1` there.
fn pass_on(forward: &Forward, port: u16) -> Option<Rule> {
    let is_there = forward.address.one().is_none_or(|one| one == LOOPBACK_IPV6);
    (is_there && forward.protocol == TCP).then(|| {
        let bits = Family::V6.bits();
        let rule = Rule::new().source_in(LOOPBACK_IPV6, bits, true);
        let rule = rule.destination_in(LOOPBACK_IPV6, bits, true);
        redirect(rule, forward, LOOPBACK_IPV6, port)
    })
}

/// Packets for the forward's port, to another address and port.
fn redirect(rule: Rule, forward: &Forward, to: IpAddr, to_port: u16) -> Rule {
    let address = match to {
        IpAddr::V4(to) => to.octets().to_vec(),
        IpAddr::V6(to) => to.octets().to_vec(),
    };
    // An IPv6 address takes the registers 1 to 4.
    let port = Reg(5);
    rule.protocol(Reg(0))
        .equal(Reg(0), &[forward.protocol])
        .destination_port(Reg(0))
        .equal(Reg(0), &forward.port.to_be_bytes())
        .immediate(Reg(1), &address)
        .immediate(port, &to_port.to_be_bytes())
        .destination_nat(to.is_ipv6(), Reg(1), port)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_ports_lead_to_a_pod() {
        let pod =
            |spec| serde_json::from_value::<Pod>(json!({"metadata": {}, "spec": spec})).unwrap();
        let containers = json!([{"name": "a", "ports": [
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
            {"containerPort": 81},
            {"containerPort": 82, "hostPort": 82, "hostIP": "::ffff:127.0.0.1"},
            {"containerPort": 83, "hostPort": 83, "hostIP": "0.0.0.0"},
            {"containerPort": 84, "hostPort": 84, "hostIP": "::1"},
            {"containerPort": 85, "hostPort": 85, "hostIP": "::"},
            {"containerPort": 86, "hostPort": 86, "hostIP": "2001:db8::1"},
            {"containerPort": 87, "hostPort": 87, "hostIP": "host"},
        ]}]);
        let found = forwards(&pod(json!({"containers": containers})));
        let line = |f: &Forward| format!("{:?} {} {} {}", f.address, f.protocol, f.port, f.to);
        let lines: Vec<String> = found.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "Every 6 8080 80",
                "One(127.0.0.1) 17 53 53",
                "One(127.0.0.1) 6 82 82",
                "Every 6 83 83",
                "One(::1) 6 84 84",
                "EveryIpv6 6 85 85",
                "One(2001:db8::1) 6 86 86",
            ]
        );
        for (address, ipv4, ipv6) in [
            ("", true, true),
            ("0.0.0.0", true, true),
            ("::", false, true),
            ("127.0.0.1", true, false),
            ("::ffff:192.0.2.1", true, false),
            ("2001:db8::1", false, true),
        ] {
            let address = host_address(address).unwrap();
            let found = (address.is_of(Family::V4), address.is_of(Family::V6));
            assert_eq!(found, (ipv4, ipv6), "{address:?}");
        }
        assert_eq!(host_address("host"), Err(NoHostAddress::Syntax));
        let host = json!({"hostNetwork": true, "containers": containers});
        assert!(forwards(&pod(host)).is_empty());
    }
}
