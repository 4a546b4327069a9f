//! The encrypted tunnel to other nodes: one WireGuard link for all of them, and for both families of addresses.
//! Blocking.
//!
//! Every node has a key, of which it keeps the private part (`key.rs`) and its Node tells the public one. What goes to a
//! peer, and what its packets may come from, are the ranges of its pods, which no node can choose. `plan.rs` says what
//! of the link must change, `plain.rs` what is dropped beside it.
//! Always true: the tables of `plain.rs` are there before the link is, and go after it.

mod key;
mod plain;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use ipnet::IpNet;
use netns::{
    Error,
    monitor::Changes,
    nft::{self, Batch},
    route::{self, Change, Link, Prefix},
    wireguard::{Device, PrivateKey, PublicKey, Socket},
};

pub use self::plan::Peer;
use self::plan::{Wanted, steps, undone};
use super::{
    super::{
        mtu::{LEAST_IPV4, LEAST_IPV6},
        wiring,
    },
    Tunnel, absent_is_fine,
};
use crate::{
    addresses::family::{Family, PerFamily},
    repair::programmer::Programmer,
};

const KIND: &str = "wireguard";

/// What the headers take of a packet: IP, UDP, WireGuard's own and its authentication.
pub fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 60,
        Family::V6 => 80,
    }
}

/// The names and numbers of the tunnel.
#[derive(Clone, Debug)]
pub struct Config {
    pub link: String,
    /// Where every node's link listens.
    pub port: u16,
    /// The nf_tables tables that keep packets from going beside it.
    pub table: String,
    /// The link that all packets of pods come by.
    pub bridge: String,
    /// Where the private key is kept.
    pub folder: PathBuf,
}

pub struct WireGuard {
    config: Config,
    ranges: PerFamily<IpNet>,
    clusters: PerFamily<IpNet>,
    guards: Vec<Programmer>,
    /// What the tables were made with.
    others: BTreeSet<IpNet>,
    private_key: Option<PrivateKey>,
    /// The link, and that has told its public key; `None` as long as there is none of ours.
    link: Option<(u32, PublicKey)>,
    /// As they were set last.
    set: BTreeMap<PublicKey, Peer>,
    /// All of it was taken away, and nothing made since.
    is_removed: bool,
}

/// A link that is as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub link: u32,
    pub public_key: PublicKey,
    /// What others had undone, in words.
    pub undone: Vec<String>,
}

impl WireGuard {
    /// Of a node with these ranges in those of all nodes.
    pub fn new(config: Config, ranges: PerFamily<IpNet>, clusters: PerFamily<IpNet>) -> Self {
        let table = |family| Programmer::new(plain::table(&config, family));
        Self {
            guards: ranges.families().map(table).collect(),
            config,
            ranges,
            clusters,
            others: BTreeSet::new(),
            private_key: None,
            link: None,
            set: BTreeMap::new(),
            is_removed: false,
        }
    }

    pub fn notice(&mut self, changes: &Changes) -> bool {
        let guards = self.guards.iter_mut().map(|one| one.notice(changes));
        let guard = guards.fold(false, |noticed, one| noticed | one);
        let link = changes.links.get(&self.config.link);
        let is_there = |link: &Option<Link>| {
            let link = link.as_ref();
            link.is_some_and(|link| Some(link.index) == self.index() && link.up)
        };
        guard || self.link.is_some() && link.is_some_and(|link| !is_there(link))
    }

    fn index(&self) -> Option<u32> {
        self.link.map(|(index, _)| index)
    }

    /// Whether there is something of which the kernel tells nobody when it changes.
    pub fn is_there(&self) -> bool {
        self.link.is_some()
    }

    /// Whether key, port or peers are not as they were set.
    pub fn has_drifted(&self) -> bool {
        let Some(wanted) = self.wanted(&self.set).filter(|_| self.is_there()) else {
            return false;
        };
        let found = Socket::open().and_then(|mut socket| socket.device(&self.config.link));
        found.is_ok_and(|found| !steps(&found, &wanted, &self.set).is_empty())
    }

    fn wanted<'a>(&'a self, peers: &'a BTreeMap<PublicKey, Peer>) -> Option<Wanted<'a>> {
        Some(Wanted {
            private_key: self.private_key.as_ref()?,
            port: self.config.port,
            peers,
        })
    }

    /// From now on nothing of pods goes beside the tunnel. `others`: the ranges of the nodes that are known.
    pub fn guard(
        &mut self,
        socket: &mut nft::Socket,
        others: &BTreeSet<IpNet>,
    ) -> Result<(), Error> {
        self.is_removed = false;
        let is_other = *others != self.others;
        let ranges = self.ranges.iter().zip(self.clusters.iter());
        for (guard, (own, cluster)) in self.guards.iter_mut().zip(ranges) {
            guard.verify(socket)?;
            if guard.doubt().is_some() || is_other {
                let whole = plain::whole(&self.config, own, cluster, others);
                guard.replace(socket, whole)?;
            }
        }
        self.others.clone_from(others);
        Ok(())
    }

    /// Brings the link there for these peers; `None` where the kernel has no WireGuard. `mtu`: of packets inside.
    pub fn settle(
        &mut self,
        socket: &mut route::Socket,
        mut peers: BTreeMap<PublicKey, Peer>,
        mtu: u32,
    ) -> Result<Option<Settled>, Error> {
        self.is_removed = false;
        let mut generic = match Socket::open() {
            Err(error) if error.is_absent() => return Ok(None),
            opened => opened?,
        };
        if self.private_key.is_none() {
            self.private_key = Some(key::load_or_make(&self.config.folder)?);
        }
        let least = match self.ranges.of(Family::V6) {
            Some(_) => LEAST_IPV6,
            None => LEAST_IPV4,
        };
        let name = self.config.link.clone();
        let Some(link) = ensure_link(socket, &name, mtu.max(least))? else {
            return Ok(None);
        };
        let mut restored = Vec::new();
        if self.index() != Some(link) {
            if self.link.take().is_some() {
                restored.push("the WireGuard link".to_owned());
            }
            self.set.clear();
        }
        let mut found = generic.device(&name)?;
        // The kernel takes no peer with the link's own key, and says nothing.
        peers.retain(|key, _| found.public_key != Some(*key));
        let Some(wanted) = self.wanted(&peers) else {
            return Ok(None); // (there is a key by now)
        };
        let steps = steps(&found, &wanted, &self.set);
        if self.is_there() {
            restored.extend(undone(&steps, &self.set, &wanted));
        }
        if !steps.is_empty() {
            let applied = generic.apply(&name, &steps);
            applied.map_err(|error| self.about_port(error))?;
            found = generic.device(&name)?;
        }
        self.set = peers;
        let mut changes = Vec::new();
        // By it the kernel chooses this machine's address for packets of its own to pods elsewhere; with IPv6 it
        // finds the gateway's, which is the nearest.
        if let Some(range) = self.ranges.of(Family::V4) {
            let own = Prefix::host(Tunnel::inside(range, ""));
            changes.push(Change::add_address(link, own));
        }
        if self.ranges.of(Family::V6).is_some() {
            wiring::set_ipv6(&name)?;
        }
        changes.push(Change::set_up(link));
        let up = socket.apply(changes);
        up.map_err(|error| self.about_port(error))?;
        let Device {
            public_key: Some(public_key),
            ..
        } = found
        else {
            let what = format!("read the public key of the WireGuard link {name}");
            return Err(Error::Malformed { what });
        };
        self.link = Some((link, public_key));
        Ok(Some(Settled {
            link,
            public_key,
            undone: restored,
        }))
    }

    /// The port may be somebody else's, and then the kernel names the link alone.
    fn about_port(&self, error: Error) -> Error {
        match error {
            Error::Kernel { what, source, .. }
                if source.raw_os_error() == Some(libc::EADDRINUSE) =>
            {
                let port = self.config.port;
                let hint = format!(
                    "another program or cluster on this machine uses UDP port {port}, which encrypted packets of pods \
                     need"
                );
                Error::Kernel {
                    what,
                    hint: Some(hint),
                    source,
                }
            }
            error => error,
        }
    }

    /// Takes link, tables and key away, also those of an earlier daemon.
    pub fn remove(
        &mut self,
        socket: &mut route::Socket,
        tables: &mut nft::Socket,
    ) -> Result<(), Error> {
        let is_gone = |guard: &Programmer| guard.doubt().is_none();
        if self.is_removed && self.guards.iter().all(is_gone) {
            return Ok(());
        }
        absent_is_fine(socket.apply(vec![Change::delete_link(&self.config.link)]))?;
        (self.link, self.private_key) = (None, None);
        self.set.clear();
        for guard in &mut self.guards {
            let mut batch = Batch::new();
            batch.remove_table(guard.table());
            guard.replace(tables, batch)?;
        }
        self.others.clear();
        key::forget(&self.config.folder)?;
        self.is_removed = true;
        Ok(())
    }
}

/// The link's index; what is there by its name and is another kind of link, goes. `None`: the kernel has no WireGuard.
fn ensure_link(socket: &mut route::Socket, name: &str, mtu: u32) -> Result<Option<u32>, Error> {
    match socket.link(name) {
        Ok(link) if link.kind.as_deref() == Some(KIND) => {
            if link.mtu != mtu {
                socket.apply(vec![Change::set_mtu(link.index, mtu)])?;
            }
            return Ok(Some(link.index));
        }
        Ok(_) => socket.apply(vec![Change::delete_link(name)])?,
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error),
    }
    match socket.apply(vec![Change::add_wireguard(name, mtu)]) {
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => return Ok(None),
        added => added?,
    }
    socket.link(name).map(|link| Some(link.index))
}
