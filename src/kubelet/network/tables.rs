//! The three nf_tables tables of the pod network: what they shall hold, and the kernel brought there.
//!
//! Masquerade follows from the configuration, the guard from the pods that are wired, the ports of the
//! node from what pods ask for. Each change goes into the desired state first and to the kernel then;
//! what fails is carried out by the next change, or by the repair that the owner starts. Blocking.
//! Always true: the ports' table that an earlier daemon has left stays as it is until all pods that
//! run are known; then it is replaced in one transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use netns::{
    monitor::Changes,
    nft::{Batch, Family, Socket, Table},
};

use super::{Config, guard, ports, ports::Forward, wiring};
use crate::{
    addresses::family::PerFamily,
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
    masquerade: Programmer,
    guard: Programmer,
    ports: Programmer,
    /// Pods' ends of their wires, by pod.
    admitted: BTreeMap<String, guard::Port>,
    /// Ports of the node by pod.
    forwards: BTreeMap<String, (Ipv4Addr, Vec<Forward>)>,
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
    ) -> Result<Self, netns::Error> {
        let table = |family, name: &str| Programmer::new(Table::new(family, name));
        Ok(Self {
            socket: Socket::open()?,
            masquerade: table(Family::Ip, &config.table),
            guard: table(Family::Bridge, &config.table),
            ports: table(Family::Ip, &ports_table(&config)),
            admitted,
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

    pub fn write_masquerade(&mut self) -> Result<Outcome, netns::Error> {
        let outcome = self.masquerade.commit(&mut self.socket, Batch::new, || {
            let Config {
                table,
                bridge,
                pod_cidrs,
                cluster_cidrs,
                ..
            } = &self.config;
            wiring::masquerade(
                table,
                bridge,
                *pod_cidrs.primary(),
                *cluster_cidrs.primary(),
            )
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
            let most = addresses(*self.config.pod_cidrs.primary());
            guard::whole(&self.config.table, most, self.admitted.values())
        })
    }

    /// Leads ports of the node to the pod.
    pub fn forward(
        &mut self,
        uid: &str,
        address: Ipv4Addr,
        forwards: Vec<Forward>,
    ) -> Result<(), netns::Error> {
        let wanted = (address, forwards);
        let before = self.forwards.insert(uid.to_owned(), wanted.clone());
        if before.as_ref() == Some(&wanted) {
            return self.settle_ports().map(drop);
        }
        self.doubt(before.iter().chain([&wanted]));
        self.write_ports().map(drop)
    }

    /// Leads no port to the pod any more, as far as this daemon has written them.
    pub fn close(&mut self, uid: &str) -> Result<(), netns::Error> {
        match self.forwards.remove(uid) {
            None => self.settle_ports().map(drop),
            Some(before) => {
                self.doubt([&before]);
                self.write_ports().map(drop)
            }
        }
    }

    /// These pods run, and no others: from now on the table is this daemon's.
    pub fn adopt(
        &mut self,
        forwards: BTreeMap<String, (Ipv4Addr, Vec<Forward>)>,
    ) -> Result<(), netns::Error> {
        let before = std::mem::replace(&mut self.forwards, forwards);
        let now = self.forwards.clone();
        self.doubt(before.values().chain(now.values()));
        self.adopted = true;
        self.write_ports().map(drop)
    }

    pub fn has_ports(&self) -> bool {
        !self.forwards.is_empty()
    }

    /// The pods' links by name.
    pub fn links(&self) -> impl Iterator<Item = (&String, &guard::Port)> {
        self.admitted.iter()
    }

    fn doubt<'a>(&mut self, changed: impl IntoIterator<Item = &'a (Ipv4Addr, Vec<Forward>)>) {
        self.stale.extend(changed.into_iter().flat_map(fronts));
    }

    /// Writes the ports' table if it is not known to be as wanted.
    fn settle_ports(&mut self) -> Result<Option<Outcome>, netns::Error> {
        match self.ports.doubt() {
            Some(_) => self.write_ports(),
            None => Ok(None),
        }
    }

    /// `None` as long as the table is still the earlier daemon's.
    fn write_ports(&mut self) -> Result<Option<Outcome>, netns::Error> {
        if !self.adopted {
            return Ok(None);
        }
        let batch = ports::batch(
            &ports_table(&self.config),
            &self.config.bridge,
            &self.config.own_ports,
            &self.forwards,
        );
        // It is small, and few pods have any: always all of it.
        let outcome = self.ports.replace(&mut self.socket, batch)?;
        if outcome.is_restored() {
            let all: Vec<Front> = self.forwards.values().flat_map(fronts).collect();
            self.stale.extend(all);
        }
        Ok(Some(outcome))
    }

    /// Forgets flows that the rules of today would lead elsewhere. What fails is tried again next time.
    pub fn forget_flows(&mut self) -> Result<(), netns::Error> {
        if self.ports.doubt().is_none() && !self.stale.is_empty() {
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
                if let Some(backends) =
                    served.get_mut(&(forward.address.map(IpAddr::from), forward.port))
                {
                    backends.insert(((*pod).into(), forward.to));
                }
            }
        }
        served
    }

    /// Takes in what others have changed; whether a table of ours is in doubt.
    pub fn notice(&mut self, changes: &Changes) -> bool {
        let all = [&mut self.masquerade, &mut self.guard, &mut self.ports];
        let noticed = all.map(|table| table.notice(changes));
        noticed.contains(&true)
    }

    /// Makes anew whatever is not known to be as wanted. Returns what others had undone.
    pub fn settle(&mut self) -> Result<Vec<String>, netns::Error> {
        for table in [&mut self.masquerade, &mut self.guard, &mut self.ports] {
            table.verify(&mut self.socket)?;
        }
        let mut restored = Vec::new();
        let mut tell = |table: &Table, outcome: Option<Outcome>| {
            if outcome.is_some_and(Outcome::is_restored) {
                restored.push(format!("the nf_tables table {table}"));
            }
        };
        // Rather no packets of pods than those of others in their names: the guard first.
        if self.guard.doubt().is_some() {
            let outcome = self.write_guard()?;
            tell(self.guard.table(), Some(outcome));
        }
        if self.masquerade.doubt().is_some() {
            let outcome = self.write_masquerade()?;
            tell(self.masquerade.table(), Some(outcome));
        }
        let outcome = self.settle_ports()?;
        tell(self.ports.table(), outcome);
        self.forget_flows()?;
        Ok(restored)
    }

    /// Takes all three away.
    pub fn remove(&mut self) -> Result<(), netns::Error> {
        let mut batch = Batch::new();
        for table in [&self.ports, &self.masquerade, &self.guard] {
            batch.remove_table(table.table());
        }
        self.socket.commit(batch)
    }
}

/// As many as there can be pods: each has one for itself. The kernel takes memory for all of them at once,
/// and no machine runs more than the most of these.
fn addresses(range: IpNet) -> u32 {
    const MOST: u8 = 16;
    let bits = range.max_prefix_len() - range.prefix_len();
    1 << bits.min(MOST)
}

fn ports_table(config: &Config) -> String {
    format!("{}-ports", config.table)
}

fn fronts((_, forwards): &(Ipv4Addr, Vec<Forward>)) -> impl Iterator<Item = Front> {
    let udp = forwards.iter().filter(|forward| forward.protocol == UDP);
    udp.map(|forward| (forward.address.map(IpAddr::from), forward.port))
}
