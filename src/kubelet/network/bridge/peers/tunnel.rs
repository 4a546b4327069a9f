//! The tunnel to machines behind routers: one VXLAN link for all of them that are reached over the same family
//! of addresses. It carries the packets of pods of both. Blocking.
//!
//! Everything about a peer's end follows from its Node: its hardware address from the name, its address
//! inside from the range, of IPv6 from the hardware address. So nobody has to publish anything.
//! Always true: what arrives in the tunnel comes from a peer's machine, and no pod sends anything there; a
//! packet inside could bear any pod's address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use netns::{
    Error,
    monitor::Changes,
    nft::{
        self, BaseChain, Batch, ChainKind, Element, Hook, Policy, Reg, Rule, Set, SetKind, Table,
        Type, Value, Verdict,
    },
    route::{Change, Link, Mac, Prefix, Socket, Vxlan},
};

use super::{
    super::{
        masquerade::of_packets,
        mtu::{LEAST_IPV4, LEAST_IPV6},
        wiring,
    },
    absent_is_fine,
};
use crate::{
    addresses::family::{Family, OfFamily, PerFamily},
    repair::programmer::Programmer,
};

const UDP: u8 = 17;
const PEERS: &str = "peers";

/// What the headers take of a packet: Ethernet, IP, UDP, VXLAN.
pub fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The names and numbers of the tunnel.
#[derive(Clone, Debug)]
pub struct Config {
    /// At most 14 bytes: the one over the cluster's secondary family has one more.
    pub link: String,
    /// Over IPv4; another one's `local` is the machine's.
    pub vxlan: Vxlan,
    /// The nf_tables table that says who may send there.
    pub table: String,
    /// The link that all packets of pods come by.
    pub bridge: String,
}

/// Pods in a range that are reached by the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub node: String,
    pub machine: IpAddr,
}

pub struct Tunnel {
    outer: Family,
    config: Config,
    guard: Programmer,
    /// Where the table lets packets come from.
    admitted: BTreeSet<IpAddr>,
    /// As the link had them when it was looked at last: by the address inside,
    neighbours: BTreeMap<IpAddr, Mac>,
    /// and by that.
    machines: BTreeMap<Mac, IpAddr>,
    index: Option<u32>,
}

impl Tunnel {
    /// Of a cluster with pods of these families, over one of them.
    pub fn new(mut config: Config, families: impl Iterator<Item = Family>, outer: Family) -> Self {
        if families.into_iter().next() != Some(outer) {
            config.link.push('2');
        }
        Self {
            outer,
            guard: Programmer::new(table(&config, outer)),
            config,
            admitted: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            machines: BTreeMap::new(),
            index: None,
        }
    }

    /// The family of machines' addresses.
    pub fn outer(&self) -> Family {
        self.outer
    }

    pub fn notice(&mut self, changes: &Changes) -> bool {
        let guard = self.guard.notice(changes);
        let link = changes.links.get(&self.config.link);
        let is_there = |link: &Option<Link>| {
            let link = link.as_ref();
            link.is_some_and(|link| Some(link.index) == self.index && link.up)
        };
        guard || self.index.is_some() && link.is_some_and(|link| !is_there(link))
    }

    /// The address by which the pods in the range of a node are reached inside of the tunnel. Of IPv6 a
    /// link-local one: the range's first is every router's there.
    pub fn inside(range: &IpNet, node: &str) -> IpAddr {
        match range {
            IpNet::V4(range) => range.network().into(),
            IpNet::V6(_) => link_local(mac(node)).into(),
        }
    }

    /// Brings link, entries and table there for these peers of the node `own`, which has these ranges; the
    /// link's index. `mtu`: of packets inside.
    pub fn settle(
        &mut self,
        socket: &mut Socket,
        tables: &mut nft::Socket,
        own: (&str, &PerFamily<IpNet>, Option<Ipv6Addr>),
        peers: &BTreeMap<IpNet, End>,
        mtu: u32,
    ) -> Result<u32, Error> {
        // First who may send: else anybody could in between.
        let machines: BTreeSet<IpAddr> = peers.values().map(|peer| peer.machine).collect();
        self.guard.verify(tables)?;
        if self.guard.doubt().is_some() || machines != self.admitted {
            let whole = whole(&self.config, self.outer, &machines);
            self.guard.replace(tables, whole)?;
            self.admitted = machines;
        }
        let (name, ranges, local) = own;
        let least = match ranges.of(Family::V6) {
            Some(_) => LEAST_IPV6,
            None => LEAST_IPV4,
        };
        let link = self.link(socket, mac(name), local, mtu.max(least))?;
        if self.index != Some(link) {
            self.neighbours.clear();
            self.machines.clear();
        }
        self.index = Some(link);
        let mut changes = Vec::new();
        if let Some(range) = ranges.of(Family::V4) {
            let inside = Prefix::host(Self::inside(range, name));
            changes.push(Change::add_address(link, inside));
        }
        if ranges.of(Family::V6).is_some() {
            wiring::set_ipv6(&self.config.link)?;
        }
        changes.push(Change::set_up(link));
        let (mut neighbours, mut entries) = (BTreeMap::new(), BTreeMap::new());
        for (range, peer) in peers {
            let mac = mac(&peer.node);
            neighbours.insert(Self::inside(range, &peer.node), mac);
            entries.insert(mac, peer.machine);
        }
        let add_neighbour =
            |(inside, mac): (&IpAddr, &Mac)| Change::add_neighbour(link, *inside, *mac);
        changes.extend(neighbours.iter().map(add_neighbour));
        let add_entry =
            |(mac, machine): (&Mac, &IpAddr)| Change::add_tunnel_entry(link, *mac, *machine);
        changes.extend(entries.iter().map(add_entry));
        socket.apply(changes)?;
        let gone = self
            .machines
            .keys()
            .filter(|mac| !entries.contains_key(*mac));
        let gone = gone.map(|mac| Change::delete_tunnel_entry(link, *mac));
        let left = self.neighbours.keys();
        let left = left.filter(|inside| !neighbours.contains_key(*inside));
        let left = left.map(|inside| Change::delete_neighbour(link, *inside));
        for change in gone.chain(left) {
            absent_is_fine(socket.apply(vec![change]))?;
        }
        (self.neighbours, self.machines) = (neighbours, entries);
        Ok(link)
    }

    /// The link as it must be; what is there by its name and is not, goes.
    fn link(
        &self,
        socket: &mut Socket,
        mac: Mac,
        local: Option<Ipv6Addr>,
        mtu: u32,
    ) -> Result<u32, Error> {
        let name = &self.config.link;
        let vxlan = Vxlan {
            local,
            ..self.config.vxlan
        };
        match socket.link(name) {
            Ok(link) if link.vxlan == Some(vxlan) && link.mac == Some(mac) => {
                if link.mtu != mtu {
                    socket.apply(vec![Change::set_mtu(link.index, mtu)])?;
                }
                return Ok(link.index);
            }
            Ok(_) => socket.apply(vec![Change::delete_link(name)])?,
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
        socket.apply(vec![Change::add_vxlan(name, vxlan, mac, mtu)])?;
        socket.link(name).map(|link| link.index)
    }

    /// Takes link and table away, also those of an earlier daemon.
    pub fn remove(&mut self, socket: &mut Socket, tables: &mut nft::Socket) -> Result<(), Error> {
        if self.index.is_none() && self.guard.doubt().is_none() {
            return Ok(());
        }
        absent_is_fine(socket.apply(vec![Change::delete_link(&self.config.link)]))?;
        let mut batch = Batch::new();
        batch.remove_table(self.guard.table());
        self.guard.replace(tables, batch)?;
        self.neighbours.clear();
        self.machines.clear();
        self.admitted.clear();
        self.index = None;
        Ok(())
    }
}

/// The hardware address of a node's end.
fn mac(node: &str) -> Mac {
    wiring::mac(&format!("tunnel {node}"))
}

/// The address that a link with this hardware address would give itself (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        (a ^ 2) << 8 | b,
        c << 8 | 0xff,
        0xfe00 | d,
        e << 8 | f,
    )
}

fn table(config: &Config, outer: Family) -> Table {
    Table::new(of_packets(outer), config.table.as_str())
}

/// Packets of the tunnel are taken from peers alone, and never sent on for a pod: its packets leave with this
/// machine's address, which peers trust.
fn whole(config: &Config, outer: Family, peers: &BTreeSet<IpAddr>) -> Batch {
    let table = &table(config, outer);
    let base = |hook| BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority: 0,
        policy: Policy::Accept,
    };
    let tunnelled = |rule: Rule| {
        rule.protocol(Reg(0))
            .equal(Reg(0), &[UDP])
            .destination_port(Reg(0))
            .equal(Reg(0), &config.vxlan.port.to_be_bytes())
    };
    let peers = peers.iter().filter(|peer| peer.family() == outer);
    let elements = peers.map(|address| Element {
        key: match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        },
        value: Value::None,
    });
    let (kind, from) = match outer {
        Family::V4 => (Type::Ipv4, tunnelled(Rule::new()).source_v4(Reg(0))),
        Family::V6 => (Type::Ipv6, tunnelled(Rule::new()).source_v6(Reg(0))),
    };
    let mut batch = Batch::new();
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &Set::new(PEERS, &[kind], SetKind::Set))
        .add_elements(table, PEERS, elements)
        .add_base_chain(table, "input", base(Hook::Input))
        .add_rule(
            table,
            "input",
            from.not_in_set(PEERS, Reg(0)).verdict(&Verdict::Drop),
        )
        .add_base_chain(table, "forward", base(Hook::Forward))
        .add_rule(
            table,
            "forward",
            tunnelled(Rule::new().input_link(&config.bridge)).verdict(&Verdict::Drop),
        );
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_follow_from_the_node() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        let inside = Tunnel::inside(&range("10.42.1.0/24"), "b");
        assert_eq!(inside.to_string(), "10.42.1.0");
        let inside = Tunnel::inside(&range("fd42:0:0:1::/64"), "b");
        assert_eq!(inside, IpAddr::from(link_local(mac("b"))));
        let known = link_local([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]);
        assert_eq!(known.to_string(), "fe80::42:acff:fe11:2");
    }
}
