//! Packets of pods that would go between machines as they are, where encryption is requested. Pure.
//!
//! A table for each family of pods' addresses drops them: what this node's pods send to the cluster's other ranges and
//! what comes for them from there by any other link than the tunnel's, as soon as encryption is known to be requested;
//! and whatever has an address of another node's range, as soon as there is a Node with one. So nothing is sent in plain
//! to a node that has no key, nor by a route of somebody else's, nor before all nodes are known; and no machine passes
//! itself off as a pod without the key of that pod's node.
//! The tunnel's own packets are WireGuard's to judge: they are taken from everywhere. Of pods none is forwarded to its
//! port, so that they make no peer work.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netns::nft::{
    BaseChain, Batch, ChainKind, Element, Hook, Policy, Reg, Rule, Set, SetKind, Table, Type,
    Value, Verdict,
};

use super::{super::super::masquerade::of_packets, Config};
use crate::addresses::family::{Family, OfFamily};

const UDP: u8 = 17;
/// Ranges of other nodes.
const OTHERS: &str = "others";
/// Before connection tracking.
const FIRST: i32 = -300;

pub fn table(config: &Config, family: Family) -> Table {
    Table::new(of_packets(family), config.table.as_str())
}

/// Loads an address of the packet.
type Load = fn(Rule) -> Rule;

/// The table of the family of `own` and `cluster` anew.
pub fn whole(config: &Config, own: &IpNet, cluster: &IpNet, others: &BTreeSet<IpNet>) -> Batch {
    let family = own.family();
    let table = &table(config, family);
    let base = |hook, priority| BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority,
        policy: Policy::Accept,
    };
    let (kind, source, destination): (_, Load, Load) = match family {
        Family::V4 => (
            Type::Ipv4,
            |rule| rule.source_v4(Reg(0)),
            |rule| rule.destination_v4(Reg(0)),
        ),
        Family::V6 => (
            Type::Ipv6,
            |rule| rule.source_v6(Reg(0)),
            |rule| rule.destination_v6(Reg(0)),
        ),
    };
    let (link, bridge) = (config.link.as_str(), config.bridge.as_str());
    let (network, length) = (cluster.network(), cluster.prefix_len());
    let others = others.iter().filter(|range| range.family() == family);
    let from_others = source(Rule::new().not_input_link(link)).in_set(OTHERS, Reg(0));
    let to_others = destination(Rule::new().not_output_link(link)).in_set(OTHERS, Reg(0));
    let sent = Rule::new()
        .input_link(bridge)
        .not_output_link(bridge)
        .not_output_link(link)
        .destination_in(network, length, true);
    let received = Rule::new()
        .output_link(bridge)
        .not_input_link(bridge)
        .not_input_link(link)
        .source_in(network, length, true);
    let to_port = Rule::new()
        .input_link(bridge)
        .protocol(Reg(0))
        .equal(Reg(0), &[UDP])
        .destination_port(Reg(0))
        .equal(Reg(0), &config.port.to_be_bytes());
    let mut batch = Batch::new();
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &Set::new(OTHERS, &[kind], SetKind::Set).of_ranges())
        .add_elements(table, OTHERS, others.flat_map(elements))
        .add_base_chain(table, "prerouting", base(Hook::Prerouting, FIRST))
        .add_rule(table, "prerouting", from_others.verdict(&Verdict::Drop))
        .add_base_chain(table, "forward", base(Hook::Forward, 0));
    for rule in [sent, received, to_port] {
        batch.add_rule(table, "forward", rule.verdict(&Verdict::Drop));
    }
    batch
        .add_base_chain(table, "postrouting", base(Hook::Postrouting, 0))
        .add_rule(table, "postrouting", to_others.verdict(&Verdict::Drop));
    batch
}

/// Its first address, and the one after its last.
fn elements(range: &IpNet) -> Vec<Element> {
    let element = |address: IpAddr, value| Element {
        key: match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        },
        value,
    };
    let after: Option<IpAddr> = match range.broadcast() {
        IpAddr::V4(last) => u32::from(last)
            .checked_add(1)
            .map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(last) => u128::from(last)
            .checked_add(1)
            .map(|next| IpAddr::V6(next.into())),
    };
    let mut all = vec![element(range.network(), Value::None)];
    all.extend(after.map(|after| element(after, Value::RangeEnd)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_an_end() {
        for (range, want) in [
            ("10.42.2.0/23", &[&[10, 42, 2, 0][..], &[10, 42, 4, 0]][..]),
            // There is nothing after it.
            ("255.255.255.0/24", &[&[255, 255, 255, 0]]),
        ] {
            let range: IpNet = range.parse().unwrap();
            let found: Vec<Vec<u8>> = elements(&range).into_iter().map(|one| one.key).collect();
            assert_eq!(found, want);
        }
    }
}
