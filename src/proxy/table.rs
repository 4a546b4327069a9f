//! The fixed part of one family's table: sets, chains and rules that no Service changes. Pure.
//!
//! A new connection passes `services`, which looks its destination up for the number of the chain that
//! deals to that many backends, and then that number for the chain. What nobody serves is refused after that, unless
//! another table has led it elsewhere. Packets of connections that are known pass no rule of these.
//!
//! Only the map of chains has verdicts: whenever one is added to a map, the kernel follows all that are in it.
//! Numbers go from one rule to the next in the packet's priority, which does not leave the node with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netns::nft::{
    self, BaseChain, Batch, ChainKind, Element, Hook, Policy, Reg, Reject, Rule, Set, SetKind,
    Table, Type, Value, Verdict,
};

use super::{
    Config,
    chains::{Chain, DROPPED, Dealer, Gate},
    elements::{CHAINS, COMMON, Door, PLACES, SetName, octets},
    step::Delta,
};
use crate::{
    addresses::family::{Family, OfFamily},
    own_ports::OwnPorts,
};

/// Clients remembered for session affinity, per map.
const AFFINITY_LIMIT: u32 = 1 << 20;
/// The map from numbers of chains to the chains.
const LEADS: &str = "leads-to";
const TCP: u8 = 6;
/// Where destinations are rewritten, and senders.
const DNAT: i32 = -100;
const SNAT: i32 = 100;
/// Before everybody's, host ports of pods included: what is for an address of the pool is for nobody else.
const POOLED: i32 = -102;
/// After everybody's DNAT: a connection that has got another destination does not come so far.
const REFUSE: i32 = -90;

/// Only this host, or what is on its links: node ports do not answer there. The host's own loopback addresses
/// cannot be led away from it, and who has a link's address alone gets no answer from elsewhere.
const NEAR_V4: [(IpAddr, u8); 1] = [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)];
const NEAR_V6: [(IpAddr, u8); 2] = [
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
];

/// The table of one family, of which Services change elements and chains.
#[derive(Clone, Debug)]
pub struct ServiceTable {
    table: Table,
    family: Family,
    /// Clients inside.
    pods: IpNet,
    mark: u32,
    own_ports: OwnPorts,
    /// Where node ports on the loopback address are led to.
    loopback: Option<u16>,
}

impl ServiceTable {
    /// For clients and backends in the family of `pods`. Node ports on the loopback address are led to this port
    /// of it.
    pub fn new(config: &Config, pods: IpNet, loopback: Option<u16>) -> Self {
        let family = pods.family();
        Self {
            table: table(&config.table, family),
            family,
            pods,
            mark: config.mark,
            own_ports: config.own_ports.clone(),
            loopback,
        }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The whole table anew, with everything in `whole`; the one that is there goes in the same moment.
    pub fn rebuild(&self, whole: Delta) -> Batch {
        let table = &self.table;
        let mut batch = Batch::new();
        batch.remove_table(table).add_table(table);
        self.sets(&mut batch);
        for chain in ["services", "node", "unserved", "turn-away", "pooled"] {
            batch.add_chain(table, chain);
        }
        for (name, hook, priority, target) in [
            ("pooled-prerouting", Hook::Prerouting, POOLED, "pooled"),
            ("pooled-output", Hook::Output, POOLED, "pooled"),
            ("prerouting", Hook::Prerouting, DNAT, "services"),
            ("output", Hook::Output, DNAT, "services"),
            ("refuse-prerouting", Hook::Prerouting, REFUSE, "unserved"),
            ("refuse-output", Hook::Output, REFUSE, "unserved"),
        ] {
            let jump = Rule::new().verdict(&Verdict::Jump(target.into()));
            batch
                .add_base_chain(table, name, base(hook, priority))
                .add_rule(table, name, jump);
        }
        batch.add_base_chain(table, "postrouting", base(Hook::Postrouting, SNAT));
        for (chain, rules) in [
            ("services", self.service_rules()),
            ("node", self.node_rules()),
            ("pooled", self.pooled_rules()),
            ("unserved", self.unserved_rules()),
            ("turn-away", self.refusals()),
            ("postrouting", self.masquerades()),
        ] {
            for rule in rules {
                batch.add_rule(table, chain, rule);
            }
        }
        batch.add_elements(table, LEADS, [leads(DROPPED, Verdict::Drop)]);
        self.append(&mut batch, whole);
        batch
    }

    /// Only what changed.
    pub fn change(&self, delta: Delta) -> Batch {
        let mut batch = Batch::new();
        self.append(&mut batch, delta);
        batch
    }

    fn append(&self, batch: &mut Batch, delta: Delta) {
        let table = &self.table;
        for (set, elements) in delta.delete {
            batch.delete_elements(table, &set.name(), elements);
        }
        for (chain, number) in delta.chains {
            let name = chain.name();
            batch.add_chain(table, &name);
            let rules = match chain {
                Chain::Dealer(dealer) => self.dealer_rules(dealer),
                Chain::Gate(gate) => gate_rules(&gate),
            };
            for rule in rules {
                batch.add_rule(table, &name, rule);
            }
            batch.add_elements(table, LEADS, [leads(number, Verdict::Goto(name))]);
        }
        for (set, elements) in delta.add {
            batch.add_elements(table, &set.name(), elements);
        }
    }

    fn sets(&self, batch: &mut Batch) {
        use Type::{Class, Port, Protocol};
        let (table, at) = (&self.table, self.address());
        let backend = SetKind::Map(&[at, Port]);
        let number = SetKind::Map(&[Class]);
        batch.add_set(table, &Set::new(LEADS, &[Class], SetKind::VerdictMap));
        for door in Door::ALL {
            let (front, slot, client): (&[_], &[_], &[_]) = match door.by_address() {
                true => (
                    &[at, Protocol, Port],
                    &[at, Protocol, Port, Class],
                    &[at, at, Protocol, Port],
                ),
                false => (
                    &[Protocol, Port],
                    &[Protocol, Port, Class],
                    &[at, Protocol, Port],
                ),
            };
            batch
                .add_set(table, &Set::new(door.name(), front, number))
                .add_set(
                    table,
                    &Set::new(&SetName::Backs(door).name(), slot, backend),
                )
                .add_set(
                    table,
                    &Set::new(&affinity(door), client, number).dynamic(AFFINITY_LIMIT),
                );
        }
        let address = [at, Protocol, Port];
        for (set, key) in [
            (SetName::ClusterIps, &[at][..]),
            (SetName::MasqueradedAddresses, &address),
            (SetName::MasqueradedPorts, &[Protocol, Port]),
            (SetName::RefusedAddresses, &address),
            (SetName::RefusedPorts, &[Protocol, Port]),
            (SetName::Hairpin, &[at, at]),
            (SetName::Balanced, &[at]),
            (SetName::Pooled, &[at]),
            (SetName::LoopbackPorts, &[Protocol, Port]),
        ] {
            batch.add_set(table, &Set::new(&set.name(), key, SetKind::Set));
        }
    }

    /// The daemon's own ports are nobody else's. An address of the node is the node's, whoever names it
    /// as external; only what a load balancer's controller has given may be on a link of the node.
    fn service_rules(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = self.own_ports.spare(self.family).collect();
        let to_node = Verdict::Goto("node".into());
        rules.extend([
            self.destination(Rule::new(), Reg(0))
                .not_in_set(&SetName::Balanced.name(), Reg(0))
                .destination_local()
                .verdict(&to_node),
            self.door(self.outside(), Door::OutsideAddresses),
            self.mark(
                self.destination(self.outside(), Reg(0))
                    .in_set(&SetName::ClusterIps.name(), Reg(0)),
            ),
            self.marked(Door::Addresses, SetName::MasqueradedAddresses),
            self.door(Rule::new(), Door::Addresses),
            // A balanced address may be the node's too, with node ports.
            Rule::new().destination_local().verdict(&to_node),
        ]);
        rules
    }

    /// An address of the pool is on a link of the node that announces it, and leads to Services all the same,
    /// whatever else the node has there: the daemon's own ports, host ports of pods, node ports, programs that
    /// listen.
    fn pooled_rules(&self) -> Vec<Rule> {
        let destination = self.destination(Rule::new(), Reg(0));
        vec![
            destination
                .not_in_set(&SetName::Pooled.name(), Reg(0))
                .verdict(&Verdict::Return),
            self.door(self.outside(), Door::OutsideAddresses),
            self.marked(Door::Addresses, SetName::MasqueradedAddresses),
            self.door(Rule::new(), Door::Addresses),
            // What this node, which has the address, is refused with itself.
            Rule::new()
                .protocol(Reg(0))
                .equal(Reg(0), &[TCP])
                .no_first_segment()
                .source_local(true)
                .verdict(&Verdict::Return),
            Rule::new().verdict(&Verdict::Goto("turn-away".into())),
        ]
    }

    /// Node ports.
    fn node_rules(&self) -> Vec<Rule> {
        let ports = [
            self.door(self.outside(), Door::OutsidePorts),
            self.marked(Door::Ports, SetName::MasqueradedPorts),
            self.door(Rule::new(), Door::Ports),
        ];
        let loopback = self.loopback.map(|port| self.loopback_rule(port));
        let loopback = loopback.into_iter().chain(self.near());
        loopback.chain(ports).collect()
    }

    /// Leads connections to node ports of the loopback address to one port of it (`crate::loopback`).
    fn loopback_rule(&self, port: u16) -> Rule {
        let host = self.family.loopback();
        let (address, to) = (Reg(0), Reg(self.registers()));
        let rule = Rule::new().destination_in(host, self.family.bits(), true);
        // The set holds ports of TCP alone; `nft` takes its own listing back only where the rule says so.
        let rule = rule.protocol(Reg(0)).equal(Reg(0), &[TCP]);
        let (rule, _) = self.load(rule, Door::Ports, 0);
        rule.in_set(&SetName::LoopbackPorts.name(), Reg(0))
            .immediate(address, &octets(host))
            .immediate(to, &port.to_be_bytes())
            .destination_nat(self.family == Family::V6, address, to)
    }

    /// Returns with what is for addresses without node ports.
    fn near(&self) -> impl Iterator<Item = Rule> {
        let near: &[(IpAddr, u8)] = match self.family {
            Family::V4 => &NEAR_V4,
            Family::V6 => &NEAR_V6,
        };
        near.iter().map(|(network, length)| {
            let rule = Rule::new().destination_in(*network, *length, true);
            rule.verdict(&Verdict::Return)
        })
    }

    fn unserved_rules(&self) -> Vec<Rule> {
        let away = Verdict::Goto("turn-away".into());
        let refused = |rule: Rule, door: Door, set: SetName| {
            let (rule, _) = self.load(rule, door, 0);
            rule.in_set(&set.name(), Reg(0)).verdict(&away)
        };
        let destination = self.destination(Rule::new(), Reg(0));
        let local = Rule::new().destination_local();
        let by_address = [
            // A served port's destination is a backend by now, so this is a port without service.
            destination
                .in_set(&SetName::ClusterIps.name(), Reg(0))
                .verdict(&away),
            refused(Rule::new(), Door::Addresses, SetName::RefusedAddresses),
        ];
        let by_port = refused(local, Door::Ports, SetName::RefusedPorts);
        by_address
            .into_iter()
            .chain(self.near())
            .chain([by_port])
            .collect()
    }

    fn refusals(&self) -> Vec<Rule> {
        let port = match self.family {
            Family::V4 => Reject::IcmpPort,
            Family::V6 => Reject::Icmpv6Port,
        };
        let tcp = Rule::new().protocol(Reg(0)).equal(Reg(0), &[TCP]);
        vec![tcp.reject(Reject::TcpReset), Rule::new().reject(port)]
    }

    /// A backend that is its own client, and what is marked. Before that, what is left of the numbers: queues and
    /// other programs must not take them for a priority.
    fn masquerades(&self) -> Vec<Rule> {
        let (common, ours) = (COMMON.to_ne_bytes(), CHAINS.to_ne_bytes());
        let numbered = Rule::new().load_priority(Reg(0));
        let numbered = numbered.bitwise(Reg(0), &common, &[0; 4]);
        let both = self.destination(self.source(Rule::new(), Reg(0)), Reg(self.registers()));
        let hairpin = both.in_set(&SetName::Hairpin.name(), Reg(0));
        vec![
            numbered
                .equal(Reg(0), &ours)
                .immediate(Reg(0), &[0; 4])
                .set_priority(Reg(0)),
            hairpin.status_dnat().masquerade(),
            masquerade_marked(self.mark),
        ]
    }

    /// A place is drawn and its backend looked up. With affinity: a client's place is drawn once, kept in a map and
    /// renewed with each connection. A place that is no more falls through to the last rules.
    fn dealer_rules(&self, dealer: Dealer) -> Vec<Rule> {
        let draw = |rule: Rule, to: Reg| rule.random(to, dealer.places, PLACES);
        let drawn = || draw(Rule::new(), Reg(0)).set_priority(Reg(0));
        let led = || {
            let (rule, slot) = self.load(Rule::new(), dealer.door, 0);
            let (address, port) = (Reg(slot + 1), Reg(slot + 1 + self.registers()));
            rule.load_priority(Reg(slot))
                .look_up(&SetName::Backs(dealer.door).name(), Reg(0), address)
                .destination_nat(self.family == Family::V6, address, port)
        };
        let Some(seconds) = dealer.affinity else {
            return vec![drawn(), led()];
        };
        let client = || {
            let source = self.source(Rule::new(), Reg(0));
            self.load(source, dealer.door, self.registers())
        };
        let map = affinity(dealer.door);
        let (renewed, slot) = client();
        let slot = Reg(slot);
        let for_ms = u64::from(seconds) * 1000;
        vec![
            draw(renewed, slot).remember(&map, Reg(0), slot, for_ms),
            client().0.look_up(&map, Reg(0), slot).set_priority(slot),
            led(),
            drawn(),
            led(),
        ]
    }

    /// Clients that are neither pods nor this node.
    fn outside(&self) -> Rule {
        let (network, length) = (self.pods.network(), self.pods.prefix_len());
        let rule = Rule::new().source_in(network, length, false);
        rule.source_local(false)
    }

    /// Goes on only if the door does not have the destination. The number is set and read again because `nft`
    /// before 1.1 cannot list a rule in which the value of one map is the key of the other.
    fn door(&self, rule: Rule, door: Door) -> Rule {
        let (rule, number) = self.load(rule, door, 0);
        let number = Reg(number);
        rule.look_up(door.name(), Reg(0), number)
            .set_priority(number)
            .load_priority(Reg(0))
            .verdict_of(LEADS, Reg(0))
    }

    fn mark(&self, rule: Rule) -> Rule {
        let (others, own) = ((!self.mark).to_ne_bytes(), self.mark.to_ne_bytes());
        let rule = rule.load_mark(Reg(0)).bitwise(Reg(0), &others, &own);
        rule.set_mark(Reg(0))
    }

    fn marked(&self, at: Door, set: SetName) -> Rule {
        let (rule, _) = self.load(Rule::new(), at, 0);
        self.mark(rule.in_set(&set.name(), Reg(0)))
    }

    /// Loads a door's key from this register on: address, protocol, port, or without the address. Also the
    /// register after it.
    fn load(&self, rule: Rule, door: Door, from: u8) -> (Rule, u8) {
        let (rule, at) = match door.by_address() {
            true => (self.destination(rule, Reg(from)), from + self.registers()),
            false => (rule, from),
        };
        (rule.protocol(Reg(at)).destination_port(Reg(at + 1)), at + 2)
    }

    fn source(&self, rule: Rule, to: Reg) -> Rule {
        match self.family {
            Family::V4 => rule.source_v4(to),
            Family::V6 => rule.source_v6(to),
        }
    }

    fn destination(&self, rule: Rule, to: Reg) -> Rule {
        match self.family {
            Family::V4 => rule.destination_v4(to),
            Family::V6 => rule.destination_v6(to),
        }
    }

    fn address(&self) -> Type {
        match self.family {
            Family::V4 => Type::Ipv4,
            Family::V6 => Type::Ipv6,
        }
    }

    /// What an address takes.
    fn registers(&self) -> u8 {
        match self.family {
            Family::V4 => 1,
            Family::V6 => 4,
        }
    }
}

/// The table of this name and family.
pub fn table(name: &str, family: Family) -> Table {
    let family = match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    };
    Table::new(family, name)
}

/// The element by which a number leads there.
fn leads(number: u32, to: Verdict) -> Element {
    Element {
        key: (CHAINS + number).to_ne_bytes().to_vec(),
        value: Value::Verdict(to),
    }
}

fn affinity(door: Door) -> String {
    format!("{}-affinity", door.name())
}

/// Lets these clients through to the dealer, and nobody else.
fn gate_rules(gate: &Gate) -> Vec<Rule> {
    let through = Verdict::Goto(gate.dealer.name());
    gate.sources
        .iter()
        .map(|range| {
            Rule::new()
                .source_in(range.network(), range.prefix_len(), true)
                .verdict(&through)
        })
        .chain([Rule::new().verdict(&Verdict::Drop)])
        .collect()
}

fn masquerade_marked(mark: u32) -> Rule {
    let bits = mark.to_ne_bytes();
    Rule::new()
        .load_mark(Reg(0))
        .bitwise(Reg(0), &bits, &[0; 4])
        .equal(Reg(0), &bits)
        .load_mark(Reg(0))
        .bitwise(Reg(0), &[0xff; 4], &bits)
        .set_mark(Reg(0))
        .masquerade()
}

/// All chains are for addresses: the kernel shows them the first packet of a connection, and no other.
fn base(hook: Hook, priority: i32) -> BaseChain {
    BaseChain {
        kind: ChainKind::Nat,
        hook,
        priority,
        policy: Policy::Accept,
    }
}
