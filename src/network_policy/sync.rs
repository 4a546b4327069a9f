//! The kernel brought to the plan, and back when others change it; connections that are not allowed any more
//! forgotten. Blocking.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::OnceLock,
};

use netns::{
    conntrack::{self, Entry},
    monitor::Changes,
    nft::Socket,
    route,
};

use super::{
    model::Desired,
    ranges::is_v6,
    table::{self, PolicyTable},
};
use crate::{
    addresses::family::Family,
    repair::programmer::{Outcome, Programmer},
};

/// More chains that nobody needs than this, and than there are others, are taken away.
const FEW_CHAINS: usize = 64;

/// The tables of all families of the cluster, by one socket.
#[derive(Debug)]
pub struct Writer {
    socket: Socket,
    tables: Vec<OfFamily>,
}

/// The table of one family and the picture of it.
#[derive(Debug)]
struct OfFamily {
    programmer: Programmer,
    table: PolicyTable,
    ipv6: bool,
    desired: Desired,
    /// Chains that are still there, with sets that are out of date.
    left_over: BTreeSet<String>,
    /// There may be connections that are not allowed any more.
    stale: bool,
}

impl Writer {
    /// Writes nothing yet: what a daemon before this one has left stays until the first [`Writer::apply`].
    pub fn open(
        name: &str,
        families: impl IntoIterator<Item = Family>,
    ) -> Result<Self, netns::Error> {
        Ok(Self {
            socket: Socket::open()?,
            tables: families
                .into_iter()
                .map(|family| OfFamily::new(name, family == Family::V6))
                .collect(),
        })
    }

    /// The port of the socket by which the tables are written.
    pub fn own_port(&self) -> Result<u32, netns::Error> {
        self.socket.port()
    }

    /// Takes the new state over, which `desired` makes for IPv6 or not, and brings the kernel there; whether
    /// something is forbidden now that was not before. What fails is for [`Writer::settle`].
    pub fn apply(&mut self, desired: impl Fn(bool) -> Desired) -> Result<bool, netns::Error> {
        let socket = &mut self.socket;
        // One that fails does not keep the other from it.
        let applied = self.tables.iter_mut().map(|table| {
            let desired = desired(table.ipv6);
            table.apply(socket, desired)
        });
        let applied: Vec<Result<bool, netns::Error>> = applied.collect();
        applied
            .into_iter()
            .try_fold(false, |any, stricter| Ok(any | stricter?))
    }

    /// Compares what there is with the picture and restores what differs. Returns what others had undone.
    pub fn settle(&mut self) -> Result<Vec<String>, netns::Error> {
        let mut restored = Vec::new();
        for table in &mut self.tables {
            restored.extend(table.settle(&mut self.socket)?);
        }
        Ok(restored)
    }

    /// Takes in what has changed on this host; whether that may have undone something of ours.
    pub fn notice(&mut self, changes: &Changes) -> bool {
        let noticed = self.tables.iter_mut();
        noticed.fold(false, |any, table| table.programmer.notice(changes) | any)
    }

    /// Forgets connections that are not allowed any more, whether or not there is a reason: a packet that met the
    /// rules of before may have been on its way.
    pub fn sweep(&mut self) -> Result<(), netns::Error> {
        self.tables.iter().try_for_each(OfFamily::sweep)
    }

    /// Takes the tables away.
    pub fn remove(&mut self) -> Result<(), netns::Error> {
        for table in &mut self.tables {
            table.desired = Desired::default();
            table.rebuild(&mut self.socket)?;
        }
        Ok(())
    }
}

impl OfFamily {
    fn new(name: &str, ipv6: bool) -> Self {
        let table = PolicyTable::new(name, ipv6);
        Self {
            programmer: Programmer::new(table.table().clone()),
            table,
            ipv6,
            desired: Desired::default(),
            left_over: BTreeSet::new(),
            stale: true,
        }
    }

    fn apply(&mut self, socket: &mut Socket, desired: Desired) -> Result<bool, netns::Error> {
        let before = std::mem::replace(&mut self.desired, desired);
        if before == self.desired && self.programmer.doubt().is_none() {
            return Ok(false);
        }
        let is_stricter = self.desired.may_be_stricter_than(&before);
        self.stale |= is_stricter;
        let returned = |name: &String| self.left_over.contains(name);
        let is_back = self.desired.chains.keys().any(returned);
        let gone = before.chains.keys();
        let gone = gone.filter(|name| !self.desired.chains.contains_key(*name));
        self.left_over.extend(gone.cloned());
        let many = self.left_over.len() > FEW_CHAINS.max(self.desired.chains.len());
        if is_back || many || before.is_empty() || self.desired.is_empty() {
            self.rebuild(socket)?;
        } else {
            let change = || self.table.change(&before, &self.desired);
            let whole = || self.table.whole(&self.desired, can_log());
            let done = self.programmer.commit(socket, change, whole)?;
            if done != Outcome::Changed {
                self.left_over.clear();
            }
        }
        self.forget_connections()?;
        Ok(is_stricter)
    }

    fn rebuild(&mut self, socket: &mut Socket) -> Result<bool, netns::Error> {
        // Where there is nothing to be written, nobody needs to know.
        let logs = !self.desired.is_empty() && can_log();
        let whole = self.table.whole(&self.desired, logs);
        let outcome = self.programmer.replace(socket, whole)?;
        self.left_over.clear();
        self.stale |= outcome.is_restored();
        Ok(outcome.is_restored())
    }

    fn settle(&mut self, socket: &mut Socket) -> Result<Option<String>, netns::Error> {
        self.programmer.verify(socket)?;
        let is_restored = self.programmer.doubt().is_some() && self.rebuild(socket)?;
        self.forget_connections()?;
        Ok(is_restored.then(|| format!("the nf_tables table {}", self.table.table())))
    }

    /// Forgets what began before the rules of now and would not be allowed any more.
    fn forget_connections(&mut self) -> Result<(), netns::Error> {
        if self.stale {
            self.sweep()?;
            self.stale = false;
        }
        Ok(())
    }

    fn sweep(&self) -> Result<(), netns::Error> {
        if self.desired.is_empty() {
            return Ok(());
        }
        let mut entries = conntrack::list(self.ipv6)?;
        if entries.is_empty() {
            return Ok(());
        }
        let own = own_addresses()?;
        entries.retain(|entry| !is_allowed(entry, &self.desired, &own));
        conntrack::delete(&entries)
    }
}

/// Whether this kernel can log packets; tried out once, in a namespace that goes with the try.
fn can_log() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    let try_out = || Socket::open()?.commit(table::probe());
    *CAN.get_or_init(|| {
        netns::Namespace::create()
            .and_then(|namespace| namespace.run(try_out)?)
            .is_ok()
    })
}

fn own_addresses() -> Result<HashSet<IpAddr>, netns::Error> {
    let addresses = route::Socket::open()?.addresses()?;
    Ok(addresses
        .into_iter()
        .map(|(_, prefix)| prefix.address)
        .collect())
}

/// The client as it is, the server as it is: after the destination was rewritten, before the source was.
fn is_allowed(entry: &Entry, desired: &Desired, own: &HashSet<IpAddr>) -> bool {
    let client = entry.original.source.0;
    let (server, port) = entry.reply.source;
    debug_assert_eq!(is_v6(client), is_v6(server));
    let protocol = entry.original.protocol;
    // The node itself may do everything.
    own.contains(&client) || desired.allows(client, server, protocol, port)
}
