//! The table: a new connection is looked up by its client's address, then by its server's; each lookup leads
//! to the pod's chain or nowhere. Pure.
//!
//! Packets of known connections pass one rule. What a chain does not return from is dropped there. Connections
//! have their real destination by then, and their real source still.

use std::{collections::BTreeSet, net::IpAddr};

use netns::nft::{
    BaseChain, Batch, ChainKind, Element, Family, Hook, Policy, Reg, Rule, Set, SetKind, Table,
    Tracked, Type, Value, Verdict,
};

use super::model::{Chain, Desired, Direction, Peers, PortRange, Ports};

/// Pods that are isolated in a direction.
const ISOLATED: &str = "isolated";
/// Each of them twice: connections to oneself.
const ITSELF: &str = "itself";
const NEW: &str = "new";
const STRANGE: &str = "strange";
const DENIED: &str = "denied";
/// What the kernel's log says before the packet's addresses.
const DENIED_PREFIX: &str = "vetch network policy denied: ";
/// Lines of the log for all pods together: a pod must not fill it.
const LINES_PER_SECOND: u64 = 5;
const LINES_AT_ONCE: u32 = 20;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// Solicitation and advertisement.
const NEIGHBOUR_DISCOVERY: [u8; 2] = [135, 136];
const FILTER: i32 = 0;

/// The table of one family of addresses.
#[derive(Clone, Debug)]
pub struct PolicyTable {
    table: Table,
    ipv6: bool,
}

impl PolicyTable {
    pub fn new(name: &str, ipv6: bool) -> Self {
        let family = match ipv6 {
            true => Family::Ip6,
            false => Family::Ip,
        };
        Self {
            table: Table::new(family, name),
            ipv6,
        }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The whole table anew; the one that is there goes in the same moment. Nothing where nobody is isolated.
    /// `logs`: the kernel can write lines about packets.
    pub fn whole(&self, desired: &Desired, logs: bool) -> Batch {
        let table = &self.table;
        let mut batch = Batch::new();
        batch.remove_table(table);
        if desired.is_empty() {
            return batch;
        }
        let address = self.address();
        batch.add_table(table);
        for direction in [Direction::Ingress, Direction::Egress] {
            let map = Set::new(map(direction), &address, SetKind::VerdictMap);
            batch.add_set(table, &map);
        }
        let pair = [address[0], address[0]];
        batch
            .add_set(table, &Set::new(ISOLATED, &address, SetKind::Set))
            .add_set(table, &Set::new(ITSELF, &pair, SetKind::Set))
            .add_chain(table, DENIED)
            .add_chain(table, STRANGE)
            .add_chain(table, NEW);
        self.fixed_rules(&mut batch, logs);
        for (name, hook) in [("forward", Hook::Forward), ("input", Hook::Input)] {
            let base = BaseChain {
                kind: ChainKind::Filter,
                hook,
                priority: FILTER,
                policy: Policy::Accept,
            };
            let known = Rule::new().connection_in(&[Tracked::Established, Tracked::Related]);
            batch.add_base_chain(table, name, base).add_rule(
                table,
                name,
                known.verdict(&Verdict::Accept),
            );
            if self.ipv6 && hook == Hook::Input {
                // How neighbours find each other is nobody's connection.
                for kind in NEIGHBOUR_DISCOVERY {
                    let rule = Rule::new().protocol(Reg(0)).equal(Reg(0), &[ICMPV6]);
                    let rule = rule.icmp_type(Reg(0)).equal(Reg(0), &[kind]);
                    batch.add_rule(table, name, rule.verdict(&Verdict::Accept));
                }
            }
            batch.add_rule(table, name, Rule::new().verdict(&Verdict::Jump(NEW.into())));
        }
        self.additions(&mut batch, &Desired::default(), desired);
        batch
    }

    fn fixed_rules(&self, batch: &mut Batch, logs: bool) {
        let table = &self.table;
        let strange = || Verdict::Jump(STRANGE.into());
        let (source, destination) = (Reg(0), Reg(self.registers()));
        let both = self.destination(self.source(Rule::new(), source), destination);
        for rule in [
            Rule::new()
                .connection_in(&[Tracked::Invalid, Tracked::Untracked])
                .verdict(&strange()),
            // In the middle of a connection that was forgotten because it is not allowed any more.
            Rule::new()
                .protocol(Reg(0))
                .equal(Reg(0), &[TCP])
                .no_first_segment()
                .verdict(&strange()),
            both.in_set(ITSELF, Reg(0)).verdict(&Verdict::Accept),
            self.source(Rule::new(), Reg(0))
                .verdict_of(map(Direction::Egress), Reg(0)),
            self.destination(Rule::new(), Reg(0))
                .verdict_of(map(Direction::Ingress), Reg(0)),
        ] {
            batch.add_rule(table, NEW, rule);
        }
        for rule in [
            self.source(Rule::new(), Reg(0)),
            self.destination(Rule::new(), Reg(0)),
        ] {
            let dropped = rule.in_set(ISOLATED, Reg(0));
            batch.add_rule(table, STRANGE, dropped.verdict(&denied()));
        }
        if logs {
            let few = Rule::new().at_most_per_second(LINES_PER_SECOND, LINES_AT_ONCE);
            batch.add_rule(table, DENIED, few.log(DENIED_PREFIX));
        }
        let dropped = Rule::new().counter().verdict(&Verdict::Drop);
        batch.add_rule(table, DENIED, dropped);
    }

    /// From one desired state to another, in place. Chains that nobody needs any more stay; see [`Self::whole`].
    pub fn change(&self, before: &Desired, after: &Desired) -> Batch {
        let mut batch = Batch::new();
        self.removals(&mut batch, before, after);
        self.additions(&mut batch, before, after);
        batch
    }

    fn removals(&self, batch: &mut Batch, before: &Desired, after: &Desired) {
        let table = &self.table;
        for direction in [Direction::Ingress, Direction::Egress] {
            let after = after.of(direction);
            let gone = before.of(direction).iter();
            let gone = gone.filter(|(address, chain)| after.get(address) != Some(chain));
            let gone = gone.map(|(address, _)| element(key(*address)));
            batch.delete_elements(table, map(direction), gone);
        }
        let (was, is) = (before.isolated(), after.isolated());
        let gone = || was.difference(&is);
        batch
            .delete_elements(table, ISOLATED, gone().map(|one| element(key(*one))))
            .delete_elements(table, ITSELF, gone().map(|one| element(twice(*one))));
        for (name, chain) in &before.chains {
            let Some(now) = after.chains.get(name) else {
                continue;
            };
            let both = chain.allowed.values().zip(now.allowed.values());
            for (at, (was, is)) in both.enumerate() {
                let gone = was.pods.difference(&is.pods);
                let gone = gone.map(|address| element(key(*address)));
                batch.delete_elements(table, &pods(name, at), gone);
            }
        }
    }

    fn additions(&self, batch: &mut Batch, before: &Desired, after: &Desired) {
        let table = &self.table;
        let none = BTreeSet::new();
        for (name, chain) in &after.chains {
            let known = before.chains.get(name);
            if known.is_none() {
                self.add_chain(batch, name, chain);
            }
            for (at, peers) in chain.allowed.values().enumerate() {
                let had = known.and_then(|known| known.allowed.values().nth(at));
                let had = had.map_or(&none, |peers| &peers.pods);
                let new = peers.pods.difference(had);
                let new = new.map(|address| element(key(*address)));
                batch.add_elements(table, &pods(name, at), new);
            }
        }
        let (was, is) = (before.isolated(), after.isolated());
        let new = || is.difference(&was);
        batch
            .add_elements(table, ISOLATED, new().map(|one| element(key(*one))))
            .add_elements(table, ITSELF, new().map(|one| element(twice(*one))));
        for direction in [Direction::Ingress, Direction::Egress] {
            let before = before.of(direction);
            let new = after.of(direction).iter();
            let new = new.filter(|(address, chain)| before.get(address) != Some(chain));
            let new = new.map(|(address, chain)| Element {
                key: key(*address),
                value: Value::Verdict(Verdict::Jump(chain.clone())),
            });
            batch.add_elements(table, map(direction), new);
        }
    }

    /// A chain with its sets, whose pods are still missing.
    fn add_chain(&self, batch: &mut Batch, name: &str, chain: &Chain) {
        let table = &self.table;
        batch.add_chain(table, name);
        for (at, (ports, peers)) in chain.allowed.iter().enumerate() {
            self.add_sets(batch, name, at, peers);
            for rule in self.rules(chain.direction, name, at, ports, peers) {
                batch.add_rule(table, name, rule.verdict(&Verdict::Return));
            }
        }
        batch.add_rule(table, name, Rule::new().verdict(&denied()));
    }

    fn add_sets(&self, batch: &mut Batch, name: &str, at: usize, peers: &Peers) {
        let (table, address) = (&self.table, self.address());
        if peers.everyone {
            return;
        }
        if peers.selects_pods {
            batch.add_set(table, &Set::new(&pods(name, at), &address, SetKind::Set));
        }
        if !peers.networks.is_empty() {
            let name = networks(name, at);
            let set = Set::new(&name, &address, SetKind::Set).of_ranges();
            let elements = peers.networks.iter(self.ipv6).flat_map(|(first, last)| {
                let start = Some(element(key(first)));
                let end = next(last).map(|after| Element {
                    key: key(after),
                    value: Value::RangeEnd,
                });
                start.into_iter().chain(end)
            });
            batch
                .add_set(table, &set)
                .add_elements(table, &name, elements);
        }
    }

    /// One for each way to match the ports, by each set of peers.
    fn rules(
        &self,
        direction: Direction,
        name: &str,
        at: usize,
        ports: &Ports,
        peers: &Peers,
    ) -> Vec<Rule> {
        let by_port: Vec<Rule> = match ports {
            Ports::All => vec![Rule::new()],
            Ports::Some(ranges) => ranges.iter().map(to_ports).collect(),
        };
        let peer = |rule: Rule| match direction {
            Direction::Ingress => self.source(rule, Reg(0)),
            Direction::Egress => self.destination(rule, Reg(0)),
        };
        let mut rules = Vec::new();
        for rule in by_port {
            if peers.everyone {
                rules.push(rule);
                continue;
            }
            if peers.selects_pods {
                rules.push(peer(rule.clone()).in_set(&pods(name, at), Reg(0)));
            }
            if !peers.networks.is_empty() {
                rules.push(peer(rule).in_set(&networks(name, at), Reg(0)));
            }
        }
        rules
    }

    fn address(&self) -> [Type; 1] {
        match self.ipv6 {
            true => [Type::Ipv6],
            false => [Type::Ipv4],
        }
    }

    fn registers(&self) -> u8 {
        match self.ipv6 {
            true => 4,
            false => 1,
        }
    }

    fn source(&self, rule: Rule, to: Reg) -> Rule {
        match self.ipv6 {
            true => rule.source_v6(to),
            false => rule.source_v4(to),
        }
    }

    fn destination(&self, rule: Rule, to: Reg) -> Rule {
        match self.ipv6 {
            true => rule.destination_v6(to),
            false => rule.destination_v4(to),
        }
    }
}

fn to_ports(range: &PortRange) -> Rule {
    let rule = Rule::new()
        .protocol(Reg(0))
        .equal(Reg(0), &[range.protocol.number()]);
    let (first, last) = (range.first.to_be_bytes(), range.last.to_be_bytes());
    match (range.first, range.last) {
        (0, u16::MAX) => rule,
        (one, other) if one == other => rule.destination_port(Reg(0)).equal(Reg(0), &first),
        _ => rule
            .destination_port(Reg(0))
            .at_least(Reg(0), &first)
            .at_most(Reg(0), &last),
    }
}

/// A table that only a kernel takes that can log packets.
pub fn probe() -> Batch {
    let table = Table::new(Family::Ip, "probe");
    let mut batch = Batch::new();
    batch.add_table(&table).add_chain(&table, DENIED);
    let few = Rule::new().at_most_per_second(LINES_PER_SECOND, LINES_AT_ONCE);
    batch.add_rule(&table, DENIED, few.log(DENIED_PREFIX));
    batch
}

fn denied() -> Verdict {
    Verdict::Goto(DENIED.into())
}

fn map(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn pods(chain: &str, at: usize) -> String {
    format!("{chain}-{at}-pods")
}

fn networks(chain: &str, at: usize) -> String {
    format!("{chain}-{at}-networks")
}

fn key(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn twice(address: IpAddr) -> Vec<u8> {
    [key(address), key(address)].concat()
}

fn element(key: Vec<u8>) -> Element {
    Element {
        key,
        value: Value::None,
    }
}

/// The address after this one; `None` after the last.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(u32::from(address).checked_add(1)?.into())),
        IpAddr::V6(address) => Some(IpAddr::V6(u128::from(address).checked_add(1)?.into())),
    }
}
