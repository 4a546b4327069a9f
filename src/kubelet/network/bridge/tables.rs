//! The nf_tables tables of the pod network: what they shall hold, and the kernel brought there.
//!
//! Masquerade follows from the configuration, the guard from the pods that are wired, the ports of the
//! node from what pods ask for. There is one guard; of the others each address family has its own. Each change goes into the desired state first and to the kernel then;
//! what fails is carried out by the next change, or by the repair that the owner starts. Blocking.
//! Always true: the ports' table that an earlier daemon has left stays as it is until all pods that
//! run are known; then it is replaced in one transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netns::{
    monitor::Changes,
    nft::{self, Batch, Socket, Table},
};

use super::{
    Config, guard, masquerade,
    ports::{self, Forward, Wanted},
};
use crate::{
    addresses::family::{Family, PerFamily},
    repair::{
        flows::{self, Front, Served},
        programmer::{Outcome, Programmer},
    },
};

const UDP: u8 = 17;

#[derive(Debug)]
pub struct Tables {
    config: Config,
    socket: Socket,
    guard: Programmer,
    masquerade: Vec<(Family, Programmer)>,
    ports: Vec<(Family, Programmer)>,
    /// Pods' ends of their wires, by pod.
    admitted: BTreeMap<String, guard::Port>,
    /// The port of `::1` that passes on what programs of the node ask there.
    loopback: Option<u16>,
    /// Ports of the node by pod.
    forwards: BTreeMap<String, Wanted>,
    /// All pods that run are in `forwards`, as far as they ask for ports.
    adopted: bool,
    /// Fronts whose tracked flows may be older than the rules.
    stale: BTreeSet<Front>,
    /// Flows may have begun while nothing was masqueraded.
    unmasqueraded: bool,
}

impl Tables {
    /// Knows the pods that are wired already; nothing is written yet.
    pub fn new(
        config: Config,
        admitted: BTreeMap<String, guard::Port>,
        loopback: Option<u16>,
    ) -> Result<Self, netns::Error> {
        let per_family = |name: &str| {
            let families = config.pod_cidrs.families();
            let table = |family| Table::new(masquerade::of_packets(family), name);
            families
                .map(|family| (family, Programmer::new(table(family))))
                .collect()
        };
        let guard = Table::new(nft::Family::Bridge, config.table.as_str());
        Ok(Self {
            socket: Socket::open()?,
            guard: Programmer::new(guard),
            masquerade: per_family(&config.table),
            ports: per_family(&ports_table(&config)),
            admitted,
            loopback,
            forwards: BTreeMap::new(),
            adopted: false,
            stale: BTreeSet::new(),
            unmasqueraded: false,
            config,
        })
    }

    /// The port of the socket by which the tables are written.
    pub fn own_port(&self) -> Result<u32, netns::Error> {
        self.socket.port()
    }

    pub fn write_masquerade(&mut self) -> Result<(), netns::Error> {
        for at in 0..self.masquerade.len() {
            self.write_masquerade_of(at)?;
        }
        Ok(())
    }

    fn write_masquerade_of(&mut self, at: usize) -> Result<Outcome, netns::Error> {
        let (family, programmer) = &mut self.masquerade[at];
        let outcome = programmer.commit(&mut self.socket, Batch::new, || {
            let Config {
                table,
                bridge,
                pod_cidrs,
                cluster_cidrs,
                ..
            } = &self.config;
            match (pod_cidrs.of(*family), cluster_cidrs.of(*family)) {
                (Some(pods), Some(cluster)) => masquerade::whole(table, bridge, pods, cluster),
                _ => Batch::new(),
            }
        })?;
        self.unmasqueraded |= outcome.is_restored();
        Ok(outcome)
    }

    pub fn write_guard(&mut self) -> Result<Outcome, netns::Error> {
        self.change_guard(Batch::new)
    }

    /// Lets the pod send.
    pub fn admit(&mut self, uid: &str, port: &guard::Port) -> Result<(), netns::Error> {
        let batch = guard::admit(&self.config.table, port);
        if self.admitted.insert(uid.to_owned(), port.clone()).as_ref() == Some(port) {
            return self.write_guard().map(drop);
        }
        self.change_guard(|| batch).map(drop)
    }

    /// Lets the pod send no more; one that is not known is fine.
    pub fn forget(&mut self, uid: &str) -> Result<(), netns::Error> {
        let batch = match self.admitted.remove(uid) {
            Some(port) => guard::forget(&self.config.table, &port),
            None => Batch::new(),
        };
        self.change_guard(|| batch).map(drop)
    }

    fn change_guard(&mut self, change: impl FnOnce() -> Batch) -> Result<Outcome, netns::Error> {
        self.guard.commit(&mut self.socket, change, || {
            let ranges = &self.config.pod_cidrs;
            let most = ranges.iter().map(addresses).min().unwrap_or(1);
            let ports = self.admitted.values();
            guard::whole(&self.config.table, ranges.families(), most, ports)
        })
    }

    /// Leads ports of the node to the pod.
    pub fn forward(
        &mut self,
        uid: &str,
        addresses: PerFamily<IpAddr>,
        forwards: Vec<Forward>,
    ) -> Result<(), netns::Error> {
        let wanted = (addresses, forwards);
        let before = self.forwards.insert(uid.to_owned(), wanted.clone());
        if before.as_ref() == Some(&wanted) {
            return self.settle_ports().map(drop);
        }
        self.doubt(before.iter().chain([&wanted]));
        self.write_ports()
    }

    /// Leads no port to the pod any more, as far as this daemon has written them.
    pub fn close(&mut self, uid: &str) -> Result<(), netns::Error> {
        match self.forwards.remove(uid) {
            None => self.settle_ports().map(drop),
            Some(before) => {
                self.doubt([&before]);
                self.write_ports()
            }
        }
    }

    /// These pods run, and no others: from now on the table is this daemon's.
    pub fn adopt(&mut self, forwards: BTreeMap<String, Wanted>) -> Result<(), netns::Error> {
        let before = std::mem::replace(&mut self.forwards, forwards);
        let now = self.forwards.clone();
        self.doubt(before.values().chain(now.values()));
        self.adopted = true;
        self.write_ports()
    }

    pub fn has_ports(&self) -> bool {
        !self.forwards.is_empty()
    }

    /// The pods' links by name.
    pub fn links(&self) -> impl Iterator<Item = (&String, &guard::Port)> {
        self.admitted.iter()
    }

    fn doubt<'a>(&mut self, changed: impl IntoIterator<Item = &'a Wanted>) {
        self.stale.extend(changed.into_iter().flat_map(fronts));
    }

    /// Writes the ports' tables that are not known to be as wanted; those that others had undone.
    fn settle_ports(&mut self) -> Result<Vec<String>, netns::Error> {
        let doubted = (0..self.ports.len()).filter(|at| self.ports[*at].1.doubt().is_some());
        let doubted: Vec<usize> = doubted.collect();
        self.write_ports_of(doubted)
    }

    fn write_ports(&mut self) -> Result<(), netns::Error> {
        self.write_ports_of((0..self.ports.len()).collect())
            .map(drop)
    }

    /// Nothing as long as the tables are still the earlier daemon's.
    fn write_ports_of(&mut self, list: Vec<usize>) -> Result<Vec<String>, netns::Error> {
        let mut restored = Vec::new();
        for at in list.into_iter().filter(|_| self.adopted) {
            let (family, programmer) = &mut self.ports[at];
            let batch = ports::batch(
                *family,
                &ports_table(&self.config),
                &self.config.bridge,
                &self.config.own_ports,
                self.loopback,
                &self.forwards,
            );
            // It is small, and few pods have any: always all of it.
            let outcome = programmer.replace(&mut self.socket, batch)?;
            if outcome.is_restored() {
                restored.push(programmer.table().to_string());
                self.stale.extend(self.forwards.values().flat_map(fronts));
            }
        }
        Ok(restored)
    }

    /// Forgets flows that the rules of today would lead elsewhere. What fails is tried again next time.
    pub fn forget_flows(&mut self) -> Result<(), netns::Error> {
        let is_known = self.ports.iter().all(|(_, ports)| ports.doubt().is_none());
        if is_known && !self.stale.is_empty() {
            flows::forget_stale(&self.served())?;
            self.stale.clear();
        }
        if self.unmasqueraded {
            let list = |ranges: PerFamily<IpNet>| ranges.iter().copied().collect::<Vec<_>>();
            let Config {
                pod_cidrs,
                cluster_cidrs,
                ..
            } = &self.config;
            flows::forget_unmasqueraded(&list(*pod_cidrs), &list(*cluster_cidrs))?;
            self.unmasqueraded = false;
        }
        Ok(())
    }

    /// Where UDP for the fronts in doubt shall arrive.
    fn served(&self) -> Served {
        let mut served: Served = self
            .stale
            .iter()
            .map(|front| (*front, BTreeSet::new()))
            .collect();
        for (pod, forwards) in self.forwards.values() {
            for forward in forwards {
                if let Some(backends) = served.get_mut(&(forward.address.one(), forward.port)) {
                    backends.extend(pod.iter().map(|pod| (*pod, forward.to)));
                }
            }
        }
        served
    }

    /// Takes in what others have changed; whether a table of ours is in doubt.
    pub fn notice(&mut self, changes: &Changes) -> bool {
        let all = self.all().map(|table| table.notice(changes));
        all.fold(false, |noticed, one| noticed | one)
    }

    /// The guard first.
    fn all(&mut self) -> impl Iterator<Item = &mut Programmer> {
        let others = self.masquerade.iter_mut().chain(&mut self.ports);
        [&mut self.guard]
            .into_iter()
            .chain(others.map(|(_, table)| table))
    }

    /// Makes anew whatever is not known to be as wanted. Returns what others had undone.
    pub fn settle(&mut self) -> Result<Vec<String>, netns::Error> {
        let others = self.masquerade.iter_mut().chain(&mut self.ports);
        for table in [&mut self.guard]
            .into_iter()
            .chain(others.map(|(_, table)| table))
        {
            table.verify(&mut self.socket)?;
        }
        let mut restored = Vec::new();
        // Rather no packets of pods than those of others in their names: the guard first.
        if self.guard.doubt().is_some() && self.write_guard()?.is_restored() {
            restored.push(self.guard.table().to_string());
        }
        for at in 0..self.masquerade.len() {
            let is_doubted = self.masquerade[at].1.doubt().is_some();
            if is_doubted && self.write_masquerade_of(at)?.is_restored() {
                restored.push(self.masquerade[at].1.table().to_string());
            }
        }
        restored.extend(self.settle_ports()?);
        self.forget_flows()?;
        let named = |table: String| format!("the nf_tables table {table}");
        Ok(restored.into_iter().map(named).collect())
    }

    /// Takes all of them away.
    pub fn remove(&mut self) -> Result<(), netns::Error> {
        let mut batch = Batch::new();
        for table in self.all() {
            batch.remove_table(table.table());
        }
        self.socket.commit(batch)
    }
}

/// As many as there can be pods: each has one for itself. The kernel takes memory for all of them at once,
/// and no machine runs more than the most of these.
fn addresses(range: &IpNet) -> u32 {
    let most = match range {
        IpNet::V4(_) => 16,
        // Any range has as many as one likes.
        IpNet::V6(_) => 12,
    };
    let bits = range.max_prefix_len() - range.prefix_len();
    1 << bits.min(most)
}

fn ports_table(config: &Config) -> String {
    format!("{}-ports", config.table)
}

fn fronts((_, forwards): &Wanted) -> impl Iterator<Item = Front> {
    let udp = forwards.iter().filter(|forward| forward.protocol == UDP);
    udp.map(|forward| (forward.address.one(), forward.port))
}
