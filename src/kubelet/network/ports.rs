//! Ports of the node that lead to pods (`hostPort`): which rules that takes.
//!
//! Always true: the table holds exactly the forwards of the pods that have an address, and is not
//! there without any; a packet for a port of the daemon's own is never led to a pod, whatever pods
//! ask for. IPv4 only, like the pod network.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::api::core::v1::Pod;
use netns::nft::{BaseChain, Batch, ChainKind, Family, Hook, Policy, Reg, Rule, Table, Verdict};

use crate::addresses::family;
use crate::{addresses::canonical, own_ports::OwnPorts};

/// Services have their rules at -100: who may have a port of the node keeps it from them.
const BEFORE_SERVICES: i32 = -101;
const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);

/// One port of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// `None`: on every address of the node.
    pub address: Option<Ipv4Addr>,
    /// The number in the IP header.
    pub protocol: u8,
    pub port: u16,
    pub to: u16,
}

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
                address: host_address(port.host_ip.as_deref().unwrap_or_default())?,
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

/// What `hostIP` means: every address, or one. `None` for what is no IPv4 address in any spelling:
/// nothing is led from there.
pub fn host_address(text: &str) -> Option<Option<Ipv4Addr>> {
    if text.is_empty() {
        return Some(None);
    }
    match canonical(text.parse().ok()?) {
        IpAddr::V4(address) => Some((!address.is_unspecified()).then_some(address)),
        IpAddr::V6(_) => None,
    }
}

/// Replaces the whole table: packets see all of the old one or all of the new one.
pub fn batch(
    table: &str,
    bridge: &str,
    own: &OwnPorts,
    forwards: &BTreeMap<String, (Ipv4Addr, Vec<Forward>)>,
) -> Batch {
    let table = Table::new(Family::Ip, table);
    let mut batch = Batch::new();
    batch.remove_table(&table);
    if forwards.is_empty() {
        return batch;
    }
    batch.add_table(&table).add_chain(&table, "ports");
    let base = |kind, hook, priority| BaseChain {
        kind,
        hook,
        priority,
        policy: Policy::Accept,
    };
    for rule in own.spare(family::Family::V4) {
        batch.add_rule(&table, "ports", rule);
    }
    for (pod, forwards) in forwards.values() {
        for forward in forwards {
            batch.add_rule(&table, "ports", lead(*pod, forward));
        }
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
    batch
        .add_base_chain(
            &table,
            "postrouting",
            base(ChainKind::Nat, Hook::Postrouting, 100),
        )
        .add_rule(
            &table,
            "postrouting",
            Rule::new()
                .source_in(LOOPBACK.0, LOOPBACK.1, true)
                .output_link(bridge)
                .masquerade(),
        );
    for (pod, _) in forwards.values() {
        let rule = Rule::new()
            .source_in((*pod).into(), 32, true)
            .destination_in((*pod).into(), 32, true)
            .masquerade();
        batch.add_rule(&table, "postrouting", rule);
    }
    batch
}

fn lead(pod: Ipv4Addr, forward: &Forward) -> Rule {
    let rule = match forward.address {
        Some(address) => Rule::new().destination_in(address.into(), 32, true),
        None => Rule::new(),
    };
    rule.protocol(Reg(0))
        .equal(Reg(0), &[forward.protocol])
        .destination_port(Reg(0))
        .equal(Reg(0), &forward.port.to_be_bytes())
        .immediate(Reg(1), &pod.octets())
        .immediate(Reg(2), &forward.to.to_be_bytes())
        .destination_nat(false, Reg(1), Reg(2))
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
        ]}]);
        let found = forwards(&pod(json!({"containers": containers})));
        let line = |f: &Forward| format!("{:?} {} {} {}", f.address, f.protocol, f.port, f.to);
        let lines: Vec<String> = found.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "None 6 8080 80",
                "Some(127.0.0.1) 17 53 53",
                "Some(127.0.0.1) 6 82 82",
                "None 6 83 83"
            ]
        );
        let host = json!({"hostNetwork": true, "containers": containers});
        assert!(forwards(&pod(host)).is_empty());
    }
}
