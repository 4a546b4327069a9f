//! What a pod may send: packets with its own addresses, to its gateway. Everything else is dropped
//! where it enters the host.
//!
//! The table is of the family `bridge`, which sees frames before the bridge looks at them. Pure:
//! `tables.rs` writes it whenever a pod is wired or unwired.
//! Always true:
//! - A frame from a pod goes on only if link, both hardware addresses, what it carries and the packet's
//!   source belong together in the set `pods`. So no ARP, no IPv6, no tags, no IP options and nobody else's
//!   addresses come through: pods need none of them, since both sides know each other's hardware
//!   address for good. All of it is for the gateway itself: there is no broadcast, no multicast and no
//!   switching between pods.
//! - Frames by links that are not pods' are let through: other bridges of the host are not ours.
//!
//! One packet costs one lookup, with one pod or a hundred.

use std::net::Ipv4Addr;

use netns::{
    nft::{
        BaseChain, Batch, ChainKind, Element, Family, Hook, Policy, Reg, Rule, Set, SetKind, Table,
        Type, Value, Verdict,
    },
    route::Mac,
};

/// Links of pods.
const PORTS: &str = "ports";
/// What belongs together: link, gateway and pod as hardware addresses, IPv4 without options, address.
const PODS: &str = "pods";
/// Before anything else has a say, connection tracking and br_netfilter among them.
const PRIORITY: i32 = -300;
const IPV4: [u8; 2] = [0x08, 0x00];
/// Version 4 and five words of header: no options, of which source routes are some.
const PLAIN_HEADER: u8 = 0x45;
const LOOPBACK: u8 = 127;
/// The first byte of multicast addresses; reserved ones and broadcast come after them.
const NOT_UNICAST: u8 = 0xe0;

/// A pod's end of its wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host's link.
    pub link: String,
    /// The pod's own hardware address.
    pub mac: Mac,
    /// The gateway's, which is where all frames go.
    pub gateway: Mac,
    pub address: Ipv4Addr,
}

/// Lets the pod send.
pub fn admit(table: &str, port: &Port) -> Batch {
    let mut batch = Batch::new();
    add(&mut batch, &bridge(table), [port]);
    batch
}

/// Lets the pod send no more.
pub fn forget(table: &str, port: &Port) -> Batch {
    let table = bridge(table);
    let mut batch = Batch::new();
    batch
        .delete_elements(&table, PODS, [pod(port)])
        .delete_elements(&table, PORTS, [link(port)]);
    batch
}

fn bridge(table: &str) -> Table {
    Table::new(Family::Bridge, table)
}

/// The table anew, for these pods of at most `most`; the one that is there goes in the same moment.
pub fn whole<'a>(table: &str, most: u32, ports: impl Iterator<Item = &'a Port> + Clone) -> Batch {
    let table = &bridge(table);
    let mut batch = Batch::new();
    let together = [Type::Link, Type::FrameHead, Type::Ipv4];
    let set = |name, key| Set::new(name, key, SetKind::Set).at_most(most);
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &set(PORTS, &[Type::Link]))
        .add_set(table, &set(PODS, &together))
        .add_chain(table, "own");
    for rule in [
        // Also where the bridge may route loopback addresses, for the sake of host ports.
        Rule::new()
            .network(Reg(0), 16, 1)
            .equal(Reg(0), &[LOOPBACK]),
        Rule::new()
            .network(Reg(0), 16, 1)
            .at_least(Reg(0), &[NOT_UNICAST]),
    ] {
        batch.add_rule(table, "own", rule.verdict(&Verdict::Drop));
    }
    batch.add_rule(table, "own", Rule::new().verdict(&Verdict::Accept));
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Prerouting,
        priority: PRIORITY,
        policy: Policy::Accept,
    };
    batch
        .add_base_chain(table, "prerouting", base)
        .add_rule(
            table,
            "prerouting",
            Rule::new()
                .load_input_link(Reg(0))
                .frame_head(Reg(4))
                .source_v4(Reg(8))
                .in_set(PODS, Reg(0))
                .verdict(&Verdict::Goto("own".into())),
        )
        .add_rule(
            table,
            "prerouting",
            Rule::new()
                .load_input_link(Reg(0))
                .in_set(PORTS, Reg(0))
                .verdict(&Verdict::Drop),
        );
    add(&mut batch, table, ports);
    batch
}

fn add<'a>(
    batch: &mut Batch,
    table: &Table,
    ports: impl IntoIterator<Item = &'a Port, IntoIter: Clone>,
) {
    let ports = ports.into_iter();
    batch
        .add_elements(table, PORTS, ports.clone().map(link))
        .add_elements(table, PODS, ports.map(pod));
}

fn link(port: &Port) -> Element {
    Element {
        key: name(port).to_vec(),
        value: Value::None,
    }
}

fn pod(port: &Port) -> Element {
    let key = [
        &name(port)[..],
        &port.gateway,
        &port.mac,
        &IPV4,
        &[PLAIN_HEADER],
        &[0],
        &port.address.octets(),
    ];
    Element {
        key: key.concat(),
        value: Value::None,
    }
}

fn name(port: &Port) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = port.link.len().min(15);
    padded[..length].copy_from_slice(&port.link.as_bytes()[..length]);
    padded
}
