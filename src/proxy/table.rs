//! The table's fixed part: sets, chains and rules that no Service changes.
//!
//! A new connection passes `services`, which looks its destination up and goes to the chain that
//! deals to that many backends. What nobody serves is refused after that, unless another table has led it
//! elsewhere. Packets of connections that are known pass no rule of these.

use crate::addresses::family;
use netns::nft::{
    BaseChain, Batch, ChainKind, Family, Hook, Policy, Reg, Reject, Rule, Set, SetKind, Table,
    Type, Verdict,
};

use super::{
    Config,
    render::{Dealer, Door, Gate, SetName, Step},
};

/// Clients remembered for session affinity, per map.
const AFFINITY_LIMIT: u32 = 1 << 20;
const TCP: u8 = 6;
/// Where destinations are rewritten, and senders.
const DNAT: i32 = -100;
const SNAT: i32 = 100;
/// Before everybody's, host ports of pods included: what is for an address of the pool is for nobody else.
const POOLED: i32 = -102;
/// After everybody's DNAT: a connection that has got another destination does not come so far.
const REFUSE: i32 = -90;

pub fn table(config: &Config) -> Table {
    Table::new(Family::Ip, config.table.clone())
}

/// The whole table anew, with everything in `step`; the one that is there goes in the same moment.
pub fn rebuild(config: &Config, step: Step) -> Batch {
    let table = table(config);
    let mut batch = Batch::new();
    batch.remove_table(&table).add_table(&table);
    sets(&mut batch, &table);
    for chain in ["services", "node", "unserved", "turn-away", "pooled"] {
        batch.add_chain(&table, chain);
    }
    for (name, hook, priority, target) in [
        ("pooled-prerouting", Hook::Prerouting, POOLED, "pooled"),
        ("pooled-output", Hook::Output, POOLED, "pooled"),
        ("prerouting", Hook::Prerouting, DNAT, "services"),
        ("output", Hook::Output, DNAT, "services"),
        ("refuse-prerouting", Hook::Prerouting, REFUSE, "unserved"),
        ("refuse-output", Hook::Output, REFUSE, "unserved"),
    ] {
        batch
            .add_base_chain(&table, name, base(hook, priority))
            .add_rule(
                &table,
                name,
                Rule::new().verdict(&Verdict::Jump(target.into())),
            );
    }
    for rule in service_rules(config) {
        batch.add_rule(&table, "services", rule);
    }
    for rule in node_rules(config) {
        batch.add_rule(&table, "node", rule);
    }
    for rule in pooled_rules(config) {
        batch.add_rule(&table, "pooled", rule);
    }
    for rule in unserved_rules() {
        batch.add_rule(&table, "unserved", rule);
    }
    batch
        .add_rule(
            &table,
            "turn-away",
            Rule::new()
                .protocol(Reg(0))
                .equal(Reg(0), &[TCP])
                .reject(Reject::TcpReset),
        )
        .add_rule(&table, "turn-away", Rule::new().reject(Reject::IcmpPort))
        .add_base_chain(&table, "postrouting", base(Hook::Postrouting, SNAT))
        .add_rule(
            &table,
            "postrouting",
            Rule::new()
                .source_v4(Reg(0))
                .destination_v4(Reg(1))
                .in_set(&SetName::Hairpin.name(), Reg(0))
                .status_dnat()
                .masquerade(),
        )
        .add_rule(&table, "postrouting", masquerade_marked(config.mark));
    append(&mut batch, &table, step);
    batch
}

/// Only what changed.
pub fn change(config: &Config, step: Step) -> Batch {
    let mut batch = Batch::new();
    append(&mut batch, &table(config), step);
    batch
}

fn append(batch: &mut Batch, table: &Table, step: Step) {
    for (set, elements) in by_set(step.delete) {
        batch.delete_elements(table, &set.name(), elements);
    }
    for dealer in step.chains.dealers {
        let chain = dealer.name();
        batch.add_chain(table, &chain);
        for rule in dealer_rules(dealer) {
            batch.add_rule(table, &chain, rule);
        }
    }
    for gate in step.chains.gates {
        let chain = gate.name();
        batch.add_chain(table, &chain);
        for rule in gate_rules(&gate) {
            batch.add_rule(table, &chain, rule);
        }
    }
    for (set, elements) in by_set(step.add) {
        batch.add_elements(table, &set.name(), elements);
    }
}

fn by_set<T>(items: Vec<(SetName, T)>) -> std::collections::BTreeMap<SetName, Vec<T>> {
    let mut sets = std::collections::BTreeMap::<_, Vec<T>>::new();
    for (set, item) in items {
        sets.entry(set).or_default().push(item);
    }
    sets
}

fn sets(batch: &mut Batch, table: &Table) {
    use Type::{Ipv4, Mark, Port, Protocol};
    let backend = SetKind::Map(&[Ipv4, Port]);
    for door in Door::ALL {
        let (front, slot, client): (&[_], &[_], &[_]) = match door.by_address() {
            true => (
                &[Ipv4, Protocol, Port],
                &[Ipv4, Protocol, Port, Mark],
                &[Ipv4, Ipv4, Protocol, Port],
            ),
            false => (
                &[Protocol, Port],
                &[Protocol, Port, Mark],
                &[Ipv4, Protocol, Port],
            ),
        };
        batch
            .add_set(table, &Set::new(door.name(), front, SetKind::VerdictMap))
            .add_set(
                table,
                &Set::new(&SetName::Backs(door).name(), slot, backend),
            )
            .add_set(
                table,
                &Set::new(&affinity(door), client, SetKind::Map(&[Mark])).dynamic(AFFINITY_LIMIT),
            );
    }
    let address = [Ipv4, Protocol, Port];
    for (set, key) in [
        (SetName::ClusterIps, &[Ipv4][..]),
        (SetName::MasqueradedAddresses, &address),
        (SetName::MasqueradedPorts, &[Protocol, Port]),
        (SetName::RefusedAddresses, &address),
        (SetName::RefusedPorts, &[Protocol, Port]),
        (SetName::Hairpin, &[Ipv4, Ipv4]),
        (SetName::Balanced, &[Ipv4]),
        (SetName::Pooled, &[Ipv4]),
    ] {
        batch.add_set(table, &Set::new(&set.name(), key, SetKind::Set));
    }
}

fn affinity(door: Door) -> String {
    format!("{}-affinity", door.name())
}

/// Loads a door's key from register 1 on: address, protocol, port, or without the address.
fn load(rule: Rule, door: Door) -> (Rule, u8) {
    let (rule, at) = match door.by_address() {
        true => (rule.destination_v4(Reg(1)), 2),
        false => (rule, 1),
    };
    (rule.protocol(Reg(at)).destination_port(Reg(at + 1)), at + 2)
}

/// Clients that are neither pods nor this node.
fn outside(config: &Config) -> Rule {
    let pods = config.cluster_cidrs.primary();
    Rule::new()
        .source_in(pods.network(), pods.prefix_len(), false)
        .source_local(false)
}

fn door(rule: Rule, door: Door) -> Rule {
    load(rule, door).0.verdict_of(door.name(), Reg(1))
}

fn mark(config: &Config, rule: Rule) -> Rule {
    rule.load_mark(Reg(0))
        .bitwise(
            Reg(0),
            &(!config.mark).to_ne_bytes(),
            &config.mark.to_ne_bytes(),
        )
        .set_mark(Reg(0))
}

fn marked(config: &Config, at: Door, set: SetName) -> Rule {
    let rule = load(Rule::new(), at).0;
    mark(config, rule.in_set(&set.name(), Reg(1)))
}

/// The daemon's own ports are nobody else's. An address of the node is the node's, whoever names it
/// as external; only what a load balancer's controller has given may be on a link of the node.
fn service_rules(config: &Config) -> Vec<Rule> {
    let mut rules: Vec<Rule> = config.own_ports.spare(family::Family::V4).collect();
    rules.extend([
        Rule::new()
            .destination_v4(Reg(0))
            .not_in_set(&SetName::Balanced.name(), Reg(0))
            .destination_local()
            .verdict(&Verdict::Goto("node".into())),
        door(outside(config), Door::OutsideAddresses),
        mark(
            config,
            outside(config)
                .destination_v4(Reg(0))
                .in_set(&SetName::ClusterIps.name(), Reg(0)),
        ),
        marked(config, Door::Addresses, SetName::MasqueradedAddresses),
        door(Rule::new(), Door::Addresses),
        // A balanced address may be the node's too, with node ports.
        Rule::new()
            .destination_local()
            .verdict(&Verdict::Goto("node".into())),
    ]);
    rules
}

/// An address of the pool is on a link of the node that announces it, and leads to Services all the same, whatever
/// else the node has there: the daemon's own ports, host ports of pods, node ports, programs that listen.
fn pooled_rules(config: &Config) -> [Rule; 6] {
    [
        Rule::new()
            .destination_v4(Reg(0))
            .not_in_set(&SetName::Pooled.name(), Reg(0))
            .verdict(&Verdict::Return),
        door(outside(config), Door::OutsideAddresses),
        marked(config, Door::Addresses, SetName::MasqueradedAddresses),
        door(Rule::new(), Door::Addresses),
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

/// Node ports. The node's own loopback addresses cannot be led away from it.
fn node_rules(config: &Config) -> [Rule; 4] {
    [
        Rule::new()
            .destination_in([127, 0, 0, 0].into(), 8, true)
            .verdict(&Verdict::Return),
        door(outside(config), Door::OutsidePorts),
        marked(config, Door::Ports, SetName::MasqueradedPorts),
        door(Rule::new(), Door::Ports),
    ]
}

fn unserved_rules() -> [Rule; 3] {
    let away = Verdict::Goto("turn-away".into());
    [
        // A served port's destination is a backend by now, so this is a port without service.
        Rule::new()
            .destination_v4(Reg(0))
            .in_set(&SetName::ClusterIps.name(), Reg(0))
            .verdict(&away),
        load(Rule::new(), Door::Addresses)
            .0
            .in_set(&SetName::RefusedAddresses.name(), Reg(1))
            .verdict(&away),
        load(Rule::new().destination_local(), Door::Ports)
            .0
            .in_set(&SetName::RefusedPorts.name(), Reg(1))
            .verdict(&away),
    ]
}

/// Lets these clients through to the dealer, and nobody else.
fn gate_rules(gate: &Gate) -> Vec<Rule> {
    let through = Verdict::Goto(gate.dealer.name());
    gate.sources
        .iter()
        .map(|range| {
            Rule::new()
                .source_in(range.network().into(), range.prefix_len(), true)
                .verdict(&through)
        })
        .chain([Rule::new().verdict(&Verdict::Drop)])
        .collect()
}

/// With affinity: a client's place is drawn once, kept in the map and renewed with each connection;
/// it travels to the next rule in the packet's priority. A place that is no more falls through to
/// the last rule.
fn dealer_rules(dealer: Dealer) -> Vec<Rule> {
    let backs = SetName::Backs(dealer.door).name();
    let deal = |draw: &dyn Fn(Rule, Reg) -> Rule| {
        let (rule, slot) = load(Rule::new(), dealer.door);
        draw(rule, Reg(slot))
            .look_up(&backs, Reg(1), Reg(slot + 1))
            .destination_nat(false, Reg(slot + 1), Reg(slot + 2))
    };
    let random = deal(&|rule, slot| rule.random(slot, dealer.places));
    let Some(seconds) = dealer.affinity else {
        return vec![random];
    };
    let client = || load(Rule::new().source_v4(Reg(0)), dealer.door);
    let map = affinity(dealer.door);
    let (renew, slot) = client();
    vec![
        renew.random(Reg(slot), dealer.places).remember(
            &map,
            Reg(0),
            Reg(slot),
            u64::from(seconds) * 1000,
        ),
        client()
            .0
            .look_up(&map, Reg(0), Reg(slot))
            .set_priority(Reg(slot)),
        deal(&|rule, slot| rule.load_priority(slot)),
        random,
    ]
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
