//! What a pod may send: packets with its own addresses, to its gateway. Everything else is dropped
//! where it enters the host.
//!
//! The table is of the family `bridge`, which sees frames before the bridge looks at them. Pure:
//! `tables.rs` writes it whenever a pod is wired or unwired.
//! Always true:
//! - A frame from a pod goes on only if link, both hardware addresses, what it carries and the packet's
//!   source belong together in the set of the packet's family. So no ARP, no neighbour discovery, no router
//!   advertisements, no tags, no IP options and nobody else's addresses come through, nor IPv6 link-local ones:
//!   pods need none of them, since both sides know each other's hardware address for good. All of it is for
//!   the gateway itself: there is no broadcast, no multicast and no switching between pods.
//! - A family that the pods have no addresses of does not come through at all.
//! - Frames by links that are not pods' are let through: other bridges of the host are not ours.
//!
//! One packet costs one lookup of what belongs together, with one pod or a hundred, and others in sets so small that
//! the kernel keeps them as bits. Few and short rules: each costs as much as it takes longer to send 64 KB.

use std::net::IpAddr;

use netns::{
    nft::{
        self, BaseChain, Batch, ChainKind, Element, Hook, Policy, Reg, Rule, Set, SetKind, Table,
        Type, Value, Verdict,
    },
    route::Mac,
};

use crate::addresses::family::{Family, PerFamily};

/// Links of pods.
const PORTS: &str = "ports";
/// What belongs together: link, gateway and pod as hardware addresses, IPv4 without options, address.
const PODS: &str = "pods";
/// The same of IPv6: the first byte after the frame's head is not the same in all packets.
const PODS_IPV6: &str = "pods-ipv6";
/// First bytes of addresses that no packet may be sent to.
const UNROUTED: &str = "unrouted";
/// The first two of IPv6 ones.
const UNROUTED_IPV6: &str = "unrouted-ipv6";
/// What no packet of IPv6 may begin with after its header.
const REFUSED: &str = "refused-ipv6";
/// What most packets of IPv6 have there, and nothing more is to be asked about.
const TRANSPORTS: &str = "transports-ipv6";
/// Before anything else has a say, connection tracking and br_netfilter among them.
const PRIORITY: i32 = -300;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Version 4 and five words of header: no options, of which source routes are some.
const PLAIN_HEADER: u8 = 0x45;
/// Also where the bridge may route loopback addresses, for the sake of host ports.
const LOOPBACK: u8 = 127;
/// The first byte of multicast addresses; reserved ones and broadcast come after them.
const NOT_UNICAST: u8 = 0xe0;
/// The same of IPv6, where link-local and reserved ones are among those after it.
const NOT_ROUTED: u16 = 0xfe00;
/// The first two bytes of `::`, `::1`, and IPv4 addresses written as IPv6 ones.
const NOT_IPV6: u16 = 0;
/// Hop-by-hop options, routing headers and destination options: what IPv4 has options for.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// TCP, UDP, SCTP.
const PLAIN: [u8; 3] = [6, 17, 132];
const ICMPV6: u8 = 58;
/// Types of neighbour discovery: router and neighbour solicitations and advertisements, redirects.
const DISCOVERY: (u8, u8) = (133, 137);

/// A pod's end of its wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host's link.
    pub link: String,
    /// The pod's own hardware address.
    pub mac: Mac,
    /// The gateway's, which is where all frames go.
    pub gateway: Mac,
    pub addresses: PerFamily<IpAddr>,
}

/// Lets the pod send.
pub fn admit(table: &str, port: &Port) -> Batch {
    let mut batch = Batch::new();
    add(&mut batch, &bridge(table), [port].into_iter());
    batch
}

/// Lets the pod send no more.
pub fn forget(table: &str, port: &Port) -> Batch {
    let table = bridge(table);
    let mut batch = Batch::new();
    for (set, element) in pods(port) {
        batch.delete_elements(&table, set, [element]);
    }
    batch.delete_elements(&table, PORTS, [link(port)]);
    batch
}

fn bridge(table: &str) -> Table {
    Table::new(nft::Family::Bridge, table)
}

/// The table anew, for these pods of at most `most`, with addresses of these families; the one that is there
/// goes in the same moment.
pub fn whole<'a>(
    table: &str,
    families: impl Iterator<Item = Family>,
    most: u32,
    ports: impl Iterator<Item = &'a Port> + Clone,
) -> Batch {
    let table = &bridge(table);
    let mut batch = Batch::new();
    let links = Set::new(PORTS, &[Type::Link], SetKind::Set);
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Prerouting,
        priority: PRIORITY,
        policy: Policy::Accept,
    };
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &links.at_most(most))
        .add_base_chain(table, "prerouting", base);
    for family in families {
        match family {
            Family::V4 => ipv4(&mut batch, table, most),
            Family::V6 => ipv6(&mut batch, table, most),
        }
    }
    let of_pod = Rule::new().load_input_link(Reg(0)).in_set(PORTS, Reg(0));
    batch.add_rule(table, "prerouting", of_pod.verdict(&Verdict::Drop));
    add(&mut batch, table, ports);
    batch
}

fn ipv4(batch: &mut Batch, table: &Table, most: u32) {
    let together = [Type::Link, Type::FrameHead, Type::Ipv4];
    let set = Set::new(PODS, &together, SetKind::Set).at_most(most);
    let unrouted = (NOT_UNICAST..=u8::MAX).chain([LOOPBACK]);
    batch
        .add_set(table, &set)
        .add_set(table, &Set::new(UNROUTED, &[Type::Protocol], SetKind::Set))
        .add_elements(table, UNROUTED, unrouted.map(|first| element(&[first])));
    let known = Rule::new()
        .network(Reg(0), 16, 1)
        .not_in_set(UNROUTED, Reg(0))
        .load_input_link(Reg(0))
        .frame_head(Reg(4))
        .source_v4(Reg(8))
        .in_set(PODS, Reg(0));
    batch.add_rule(table, "prerouting", known.verdict(&Verdict::Accept));
}

fn ipv6(batch: &mut Batch, table: &Table, most: u32) {
    let together = [Type::Link, Type::FrameEnds, Type::Ipv6];
    let set = Set::new(PODS_IPV6, &together, SetKind::Set).at_most(most);
    let unrouted = (NOT_ROUTED..=u16::MAX).chain([NOT_IPV6]);
    let unrouted = unrouted.map(|first| element(&first.to_be_bytes()));
    batch
        .add_set(table, &set)
        .add_set(table, &Set::new(UNROUTED_IPV6, &[Type::Port], SetKind::Set))
        .add_elements(table, UNROUTED_IPV6, unrouted)
        .add_chain(table, "own-ipv6");
    for (name, headers) in [(REFUSED, EXTENSIONS), (TRANSPORTS, PLAIN)] {
        batch
            .add_set(table, &Set::new(name, &[Type::Protocol], SetKind::Set))
            .add_elements(table, name, headers.map(|header| element(&[header])));
    }
    for rule in [
        Rule::new().network(Reg(0), 6, 1).in_set(REFUSED, Reg(0)),
        Rule::new()
            .protocol(Reg(0))
            .equal(Reg(0), &[ICMPV6])
            .icmp_type(Reg(0))
            .at_least(Reg(0), &[DISCOVERY.0])
            .at_most(Reg(0), &[DISCOVERY.1]),
    ] {
        batch.add_rule(table, "own-ipv6", rule.verdict(&Verdict::Drop));
    }
    batch.add_rule(table, "own-ipv6", Rule::new().verdict(&Verdict::Accept));
    let routed = |rule: Rule| {
        rule.network(Reg(0), 24, 2)
            .not_in_set(UNROUTED_IPV6, Reg(0))
            .load_input_link(Reg(0))
            .frame_ends(Reg(4))
            .source_v6(Reg(8))
            .in_set(PODS_IPV6, Reg(0))
    };
    let plain = Rule::new().network(Reg(0), 6, 1).in_set(TRANSPORTS, Reg(0));
    for (rule, verdict) in [
        (plain, Verdict::Accept),
        (Rule::new(), Verdict::Goto("own-ipv6".into())),
    ] {
        batch.add_rule(table, "prerouting", routed(rule).verdict(&verdict));
    }
}

fn element(key: &[u8]) -> Element {
    Element {
        key: key.to_vec(),
        value: Value::None,
    }
}

fn add<'a>(batch: &mut Batch, table: &Table, ports: impl Iterator<Item = &'a Port> + Clone) {
    batch.add_elements(table, PORTS, ports.clone().map(link));
    for set in [PODS, PODS_IPV6] {
        let elements = ports.clone().flat_map(pods);
        let of_set = elements.filter(|(name, _)| *name == set);
        batch.add_elements(table, set, of_set.map(|(_, element)| element));
    }
}

fn link(port: &Port) -> Element {
    element(&name(port))
}

/// What belongs together of the pod, with the sets that it is in.
fn pods(port: &Port) -> impl Iterator<Item = (&'static str, Element)> {
    let ends = [&name(port)[..], &port.gateway, &port.mac].concat();
    let addresses = port.addresses;
    let list: Vec<IpAddr> = addresses.iter().copied().collect();
    list.into_iter().map(move |address| {
        let (set, rest) = match address {
            IpAddr::V4(address) => {
                let rest = [&IPV4[..], &[PLAIN_HEADER], &[0], &address.octets()];
                (PODS, rest.concat())
            }
            IpAddr::V6(address) => {
                let rest = [&IPV6[..], &[0, 0], &address.octets()];
                (PODS_IPV6, rest.concat())
            }
        };
        (set, element(&[&ends[..], &rest].concat()))
    })
}

fn name(port: &Port) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = port.link.len().min(15);
    padded[..length].copy_from_slice(&port.link.as_bytes()[..length]);
    padded
}
