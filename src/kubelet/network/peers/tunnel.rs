//! The tunnel to machines behind routers: one VXLAN link for all of them. Blocking.
//!
//! Everything about a peer's end follows from its Node: its hardware address from the name, its address
//! inside from the range. So nobody has to publish anything.
//! Always true: what arrives in the tunnel comes from a peer's machine, and no pod sends anything there; a
//! packet inside could bear any pod's address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use netns::{
    Error,
    monitor::Changes,
    nft::{
        self, BaseChain, Batch, ChainKind, Element, Family, Hook, Policy, Reg, Rule, Set, SetKind,
        Table, Type, Value, Verdict,
    },
    route::{Change, Link, Mac, Prefix, Socket, Vxlan},
};

use super::{super::wiring, plan::Peer};
use crate::repair::programmer::Programmer;

/// What the headers take of a packet: Ethernet, IPv4, UDP, VXLAN.
const OVERHEAD: u32 = 50;
/// Less than this no machine on a path may refuse.
const LEAST_MTU: u32 = 576;
const UDP: u8 = 17;
const PEERS: &str = "peers";

/// The names and numbers of the tunnel.
#[derive(Clone, Debug)]
pub struct Config {
    /// At most 15 bytes.
    pub link: String,
    pub vxlan: Vxlan,
    /// The nf_tables table that says who may send there.
    pub table: String,
    /// The link that all packets of pods come by.
    pub bridge: String,
}

pub struct Tunnel {
    config: Config,
    socket: nft::Socket,
    guard: Programmer,
    /// Where the table lets packets come from.
    admitted: BTreeSet<Ipv4Addr>,
    /// By the address inside, as the link had them when it was looked at last.
    entries: BTreeMap<Ipv4Addr, (Mac, Ipv4Addr)>,
    index: Option<u32>,
}

impl Tunnel {
    pub fn open(config: Config) -> Result<Self, Error> {
        Ok(Self {
            guard: Programmer::new(table(&config)),
            socket: nft::Socket::open()?,
            config,
            admitted: BTreeSet::new(),
            entries: BTreeMap::new(),
            index: None,
        })
    }

    /// The port of the socket by which the table is written.
    pub fn own_port(&self) -> Result<u32, Error> {
        self.socket.port()
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

    /// The address by which the pods in the range are reached inside of the tunnel.
    pub fn inside(range: Ipv4Net) -> Ipv4Addr {
        range.network()
    }

    /// Brings link, entries and table there for these peers of the node `own`; the link's index. `mtu`: of the
    /// links that lead to the peers' machines.
    pub fn settle(
        &mut self,
        socket: &mut Socket,
        own: (&str, Ipv4Net),
        peers: &BTreeMap<Ipv4Net, Peer>,
        mtu: u32,
    ) -> Result<u32, Error> {
        // First who may send: else anybody could in between.
        let machines: BTreeSet<Ipv4Addr> = peers.values().map(|peer| peer.address).collect();
        self.guard.verify(&mut self.socket)?;
        if self.guard.doubt().is_some() || machines != self.admitted {
            self.guard
                .replace(&mut self.socket, whole(&self.config, &machines))?;
            self.admitted = machines;
        }
        let (name, range) = own;
        let link = self.link(socket, mac(name), (mtu - OVERHEAD.min(mtu)).max(LEAST_MTU))?;
        if self.index != Some(link) {
            self.entries.clear();
        }
        self.index = Some(link);
        let inside = Prefix::host(Self::inside(range).into());
        let mut changes = vec![Change::add_address(link, inside), Change::set_up(link)];
        let wanted: BTreeMap<Ipv4Addr, (Mac, Ipv4Addr)> = peers
            .iter()
            .map(|(range, peer)| (Self::inside(*range), (mac(&peer.node), peer.address)))
            .collect();
        for (inside, (mac, machine)) in &wanted {
            changes.push(Change::add_neighbour(link, IpAddr::V4(*inside), *mac));
            changes.push(Change::add_tunnel_entry(link, *mac, IpAddr::V4(*machine)));
        }
        socket.apply(changes)?;
        for (inside, (mac, _)) in &self.entries {
            let kept = wanted.get(inside).is_some_and(|(now, _)| now == mac);
            if !kept {
                let gone = [
                    Change::delete_tunnel_entry(link, *mac),
                    Change::delete_neighbour(link, IpAddr::V4(*inside)),
                ];
                let end = if wanted.contains_key(inside) { 1 } else { 2 };
                absent_is_fine(socket.apply(gone.into_iter().take(end).collect()))?;
            }
        }
        self.entries = wanted;
        Ok(link)
    }

    /// The link as it must be; what is there by its name and is not, goes.
    fn link(&self, socket: &mut Socket, mac: Mac, mtu: u32) -> Result<u32, Error> {
        let Config {
            link: name, vxlan, ..
        } = &self.config;
        match socket.link(name) {
            Ok(link) if link.vxlan == Some(*vxlan) && link.mac == Some(mac) => {
                if link.mtu != mtu {
                    socket.apply(vec![Change::set_mtu(link.index, mtu)])?;
                }
                return Ok(link.index);
            }
            Ok(_) => socket.apply(vec![Change::delete_link(name)])?,
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
        socket.apply(vec![Change::add_vxlan(name, *vxlan, mac, mtu)])?;
        socket.link(name).map(|link| link.index)
    }

    /// Takes link and table away, also those of an earlier daemon.
    pub fn remove(&mut self, socket: &mut Socket) -> Result<(), Error> {
        if self.index.is_none() && self.guard.doubt().is_none() {
            return Ok(());
        }
        absent_is_fine(socket.apply(vec![Change::delete_link(&self.config.link)]))?;
        let mut batch = Batch::new();
        batch.remove_table(self.guard.table());
        self.guard.replace(&mut self.socket, batch)?;
        self.entries.clear();
        self.admitted.clear();
        self.index = None;
        Ok(())
    }
}

fn absent_is_fine(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// The hardware address of a node's end.
fn mac(node: &str) -> Mac {
    wiring::mac(&format!("tunnel {node}"))
}

fn table(config: &Config) -> Table {
    Table::new(Family::Ip, config.table.as_str())
}

/// Packets of the tunnel are taken from peers alone, and never sent on for a pod: its packets leave with this
/// machine's address, which peers trust.
fn whole(config: &Config, peers: &BTreeSet<Ipv4Addr>) -> Batch {
    let table = &table(config);
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
    let elements = peers.iter().map(|address| Element {
        key: address.octets().to_vec(),
        value: Value::None,
    });
    let mut batch = Batch::new();
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &Set::new(PEERS, &[Type::Ipv4], SetKind::Set))
        .add_elements(table, PEERS, elements)
        .add_base_chain(table, "input", base(Hook::Input))
        .add_rule(
            table,
            "input",
            tunnelled(Rule::new())
                .source_v4(Reg(0))
                .not_in_set(PEERS, Reg(0))
                .verdict(&Verdict::Drop),
        )
        .add_base_chain(table, "forward", base(Hook::Forward))
        .add_rule(
            table,
            "forward",
            tunnelled(Rule::new().input_link(&config.bridge)).verdict(&Verdict::Drop),
        );
    batch
}
