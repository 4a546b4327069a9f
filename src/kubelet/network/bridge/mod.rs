//! The pods' network by a bridge of the node's own: veth pair, addresses, masquerade, and what a pod may send; over
//! IPv4, IPv6, or both.
//!
//! Owns the node's bridge, the address records in the state folder and the nf_tables tables for
//! masquerade, for ports of the node and for the guard of the pods' links. Called by the kubelet when
//! a pod's namespace is made and when it goes; [`BridgeNetwork::keep`] restores what others undo.
//! Always true: an address belongs to one pod at a time, across restarts; a failed attach leaves
//! nothing; a pod's link carries packets with the pod's own addresses to the gateway, and no other;
//! a change of a table that failed is made again until it works.

mod guard;
mod masquerade;
mod mtu;
pub mod peers;
mod pool;
pub mod ports;
mod records;
mod repairs;
mod settings;
mod tables;
#[cfg(test)]
mod tests;
mod wiring;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::AtomicBool,
    },
};

use ipnet::IpNet;
use netns::{
    route::{self, Link, Prefix},
    sysctl,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use self::mtu::ToPeers;
use self::{
    pool::Pools,
    ports::Forward,
    records::Records,
    settings::{FORWARD, FORWARD_IPV6, REDIRECTS, keep_advertised, set},
    tables::Tables,
};
use super::Bandwidth;
use crate::{
    addresses::{
        family::{Family, PerFamily},
        ranges,
    },
    format,
    loopback::{Forwarder, Way},
    own_ports::OwnPorts,
    repair::{self, Told},
    runtime::Runtime,
    supervision::{
        hooks,
        steps::{Step, reached},
    },
};

const GUARD: &str = "set up the check of what pods send (it needs a kernel with \
                     CONFIG_NF_TABLES_BRIDGE; see `vetch check`)";

/// Names are made from `cluster`, so that several nodes can share one network namespace's host.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    /// This node's.
    pub pod_cidrs: PerFamily<IpNet>,
    /// At most 15 bytes, e.g. `vetch0`.
    pub bridge: String,
    /// The nf_tables table for masquerade, e.g. `vetch`.
    pub table: String,
    /// Traffic inside these is not masqueraded (the cluster's pod ranges).
    pub cluster_cidrs: PerFamily<IpNet>,
    /// Never led to a pod.
    pub own_ports: OwnPorts,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct BridgeNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    gateways: PerFamily<IpAddr>,
    /// Links that go on doing what routers advertise though this host forwards: the settings.
    advertised: Vec<String>,
    size: Mutex<Size>,
    to_peers: ToPeers,
    /// As it was made last; a repair makes another.
    bridge: Mutex<Link>,
    records: Records,
    /// Guards the records too: a record is written while its address is taken.
    pool: Mutex<Pools>,
    /// Held while the kernel is written to. Taken before `pool`.
    tables: Mutex<Tables>,
    /// Of `::1`: from other loopback addresses the kernel leads to pods.
    loopback: Option<Forwarder>,
    /// Pods whose wires shall be there, and the right to change wires: many pods' at once, or all of
    /// them for a repair. Taken before everything else.
    wires: RwLock<()>,
    wired: Mutex<BTreeMap<String, guard::Port>>,
    /// Pods with limits, for when their wires are made again.
    shaped: Mutex<BTreeMap<String, Bandwidth>>,
    /// The bridge was restored, and knows no longer where pods are.
    neighbours_lost: AtomicBool,
    /// Whether all pods that run are known.
    adopted: watch::Sender<bool>,
    /// A change has failed and shall be carried out again.
    again: Notify,
}

/// How large pods' packets may be, as it was looked up last.
#[derive(Debug)]
struct Size {
    uplinks: mtu::Uplinks,
    plan: mtu::Plan,
}

impl BridgeNetwork {
    /// Makes or takes over bridge, forwarding and masquerade.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let loopback = config.pod_cidrs.of(Family::V6).and_then(forwarder);
        blocking(move || Shared::open(config, loopback))
            .await
            .map(|shared| Self {
                shared: Arc::new(shared),
            })
    }

    /// The bridge's addresses: the node as pods see it.
    pub fn gateways(&self) -> PerFamily<IpAddr> {
        self.shared.gateways
    }

    /// Whether ports of the node are passed on from `::1`, over TCP.
    pub fn serves_ipv6_loopback(&self) -> bool {
        self.shared.loopback.is_some()
    }

    /// What knows how other nodes' pods are reached tells it there.
    pub fn to_peers(&self) -> ToPeers {
        self.shared.to_peers.clone()
    }

    /// Gives the namespace `eth0`, its addresses and default routes. A pod that already has its
    /// addresses keeps them; one that runs gets no further one where the node has a family more than before.
    pub async fn attach(
        &self,
        pod_uid: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<PerFamily<IpAddr>, Error> {
        let netns = kept_open(netns)?;
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.attach(&uid, netns.as_fd())).await
    }

    /// Leads ports of the node to the pod, which has its address, until it is detached. Waits for
    /// [`BridgeNetwork::adopt`].
    pub async fn forward(&self, pod_uid: &str, forwards: Vec<Forward>) -> Result<(), Error> {
        // The sender lives as long as `self`.
        let _ = self
            .shared
            .adopted
            .subscribe()
            .wait_for(|adopted| *adopted)
            .await;
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.forward(&uid, forwards)).await
    }

    /// Limits what the pod, which has its address, may receive and send.
    pub async fn shape(
        &self,
        pod_uid: &str,
        netns: BorrowedFd<'_>,
        bandwidth: Bandwidth,
    ) -> Result<(), Error> {
        let netns = kept_open(netns)?;
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.shape(&uid, netns.as_fd(), bandwidth)).await
    }

    /// Removes the pod's link and gives its address back. A pod that was never attached is fine.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), Error> {
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.detach(&uid)).await
    }

    /// The pods that have addresses.
    pub fn owners(&self) -> Vec<String> {
        self.shared.pool().owners()
    }

    /// The pod's addresses, if it has any.
    pub async fn addresses(&self, pod_uid: &str) -> Option<PerFamily<IpAddr>> {
        self.shared.pool().of(pod_uid)
    }

    /// Takes over from an earlier daemon: the pods in `live` go on, with the ports that they ask for.
    /// Addresses, links and ports of all others are given back.
    pub async fn adopt(
        &self,
        live: &[String],
        forwards: BTreeMap<String, Vec<Forward>>,
    ) -> Result<(), Error> {
        let (shared, live) = (self.shared.clone(), live.to_vec());
        let ports = blocking(move || shared.adopt_ports(forwards)).await;
        // A table that could not be written is tried again by `keep`; new pods need not wait for it.
        self.shared.adopted.send_replace(true);
        let shared = self.shared.clone();
        let rest = blocking(move || {
            let owners = shared.pool().owners();
            let gone = owners.iter().filter(|owner| !live.contains(owner));
            gone.map(|owner| shared.detach(owner))
                .fold(Ok(()), Result::and)
        });
        ports.and(rest.await)
    }

    /// Keeps the network as it is wanted, whoever changes it, until `shutdown`.
    pub async fn keep(
        &self,
        runtime: Runtime,
        tell: impl Fn(Told<'_, Error>),
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let own = self.shared.tables().own_port();
        let own = own.map_err(during("watch the pod network".into()))?;
        let kept = repairs::Kept::new(self.clone(), runtime);
        let again = &self.shared.again;
        let follow = async {
            loop {
                self.shared.to_peers.changed().await;
                again.notify_one();
            }
        };
        let pass_on = async {
            match &self.shared.loopback {
                Some(forwarder) => forwarder.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = repair::keep(Arc::new(kept), own, again, tell, shutdown) => {}
            () = follow => {}
            () = pass_on => {}
        }
        Ok(())
    }

    /// As [`BridgeNetwork::open`], without whatever is recorded of pods, for when none shall be left.
    pub async fn open_to_remove(config: Config) -> Result<Self, Error> {
        Records::forget(&config.state_dir)?;
        Self::open(config).await
    }

    /// Takes bridge and table away again (for `reset`).
    pub async fn remove(&self) -> Result<(), Error> {
        let shared = self.shared.clone();
        blocking(move || shared.remove()).await
    }
}

/// Who passes on what programs of the node ask from `::1`; where that is impossible, host ports do without.
fn forwarder(pods: &IpNet) -> Option<Forwarder> {
    let gateway = ranges::nth(pods, 1)?;
    let listening = Forwarder::listen(Way::From(gateway));
    let failed = |error: &std::io::Error| {
        tracing::warn!(%error, "ports of pods are not served on ::1");
    };
    listening.inspect_err(failed).ok()
}

impl Shared {
    fn open(config: Config, loopback: Option<Forwarder>) -> Result<Self, Error> {
        let ranges = config.pod_cidrs;
        for range in ranges.iter() {
            if range.prefix_len() > smallest(range) {
                return Err(Error::Range(*range));
            }
        }
        let gateways = ranges.try_map(|range| ranges::nth(range, 1).ok_or(Error::Range(*range)))?;
        let records = Records::open(&config.state_dir, ranges.families())?;
        let mut advertised = Vec::new();
        if let Some(range) = ranges.of(Family::V6) {
            let found = sysctl::read(FORWARD_IPV6);
            let found = found.map_err(during(format!("read {FORWARD_IPV6}")))?;
            found.ok_or(Error::NoIpv6(*range))?;
            advertised = keep_advertised(&records)?;
            set(&records, FORWARD_IPV6, "1")?;
        }
        let bridge = wiring::ensure_bridge(&config.bridge, &prefixes(&ranges, &gateways))
            .map_err(during(format!("set up the bridge {}", config.bridge)))?;
        if ranges.of(Family::V4).is_some() {
            set(&records, FORWARD, "1")?;
        }
        // A host that forwards on our account sends no more redirects than before. Also, as long as it may
        // send some, the kernel looks each packet's source up that leaves by the link it came by.
        let settings = records.settings();
        if settings.contains(&(FORWARD.to_owned(), "0".to_owned())) {
            set(&records, REDIRECTS, "0")?;
        }

        let mut pool = Pools::new(&ranges);
        for family in ranges.families() {
            for (owner, address) in records.addresses(family)? {
                if !pool.restore(&owner, address) {
                    records.delete(address)?;
                }
            }
            if let Some(last) = records.last_address(family) {
                pool.resume_after(last);
            }
        }
        let wired = ports_of(&config.bridge, &pool);
        let port = loopback.as_ref().map(Forwarder::port);
        let tables = Tables::new(config.clone(), wired.clone(), port);
        let mut tables = tables.map_err(during(GUARD.into()))?;
        tables
            .write_masquerade()
            .map_err(during(format!("set up masquerade in {}", config.table)))?;
        // Without it pods could take each other's traffic: rather no pods than those.
        tables.write_guard().map_err(during(GUARD.into()))?;
        let ports: Vec<guard::Port> = wired.values().cloned().collect();
        wiring::adopt(&bridge, &ports).map_err(during("take over the links of pods".into()))?;
        let to_peers = ToPeers::default();
        Ok(Self {
            gateways,
            advertised,
            size: Mutex::new(size(&ranges, &to_peers)?),
            to_peers,
            config,
            bridge: Mutex::new(bridge),
            records,
            pool: Mutex::new(pool),
            tables: Mutex::new(tables),
            loopback,
            wires: RwLock::default(),
            wired: Mutex::new(wired),
            shaped: Mutex::default(),
            neighbours_lost: AtomicBool::new(false),
            adopted: watch::Sender::new(false),
            again: Notify::new(),
        })
    }

    fn attach(&self, pod_uid: &str, netns: BorrowedFd<'_>) -> Result<PerFamily<IpAddr>, Error> {
        let _beside = self.beside();
        if let Some(addresses) = self.wired_before(pod_uid, netns)? {
            return Ok(addresses);
        }
        let addresses = self.claim(pod_uid)?;
        reached(Step::AddressClaimed);
        let port = wiring::port(&self.config.bridge, pod_uid, addresses);
        let admitted = self.tables().admit(pod_uid, &port);
        let wired = admitted
            .and_then(|()| wiring::attach(&self.wire(&self.bridge(), addresses), pod_uid, netns));
        if let Err(error) = wired {
            lock(&self.wired).remove(pod_uid);
            if self.tables().forget(pod_uid).is_err() {
                self.again.notify_one();
            }
            self.release(pod_uid)?;
            return Err(during(format!("wire pod {pod_uid} with {addresses}"))(
                error,
            ));
        }
        lock(&self.wired).insert(pod_uid.to_owned(), port);
        reached(Step::NetworkWired);
        Ok(addresses)
    }

    /// The addresses of a pod that was wired when the node had fewer families than today.
    fn wired_before(
        &self,
        pod_uid: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Option<PerFamily<IpAddr>>, Error> {
        let known = {
            let pool = self.pool();
            pool.of(pod_uid).filter(|_| !pool.is_complete(pod_uid))
        };
        let Some(known) = known else {
            return Ok(None);
        };
        let has_wire = wiring::has_wire(&self.bridge(), pod_uid, &known, netns);
        let has_wire = has_wire.map_err(during(format!("look at the wire of pod {pod_uid}")))?;
        Ok(has_wire.then_some(known))
    }

    /// Addresses for the pod, on record: of each family, or none.
    fn claim(&self, pod_uid: &str) -> Result<PerFamily<IpAddr>, Error> {
        let mut pool = self.pool();
        let addresses = pool.take(pod_uid).ok_or(Error::Exhausted)?;
        let mut list = addresses.iter();
        if let Err(error) = list.try_for_each(|address| self.records.put(pod_uid, *address)) {
            for address in pool.give_back(pod_uid) {
                // One that stays is of a pod that is gone, for the next daemon.
                let _ = self.records.delete(address);
            }
            return Err(error);
        }
        Ok(addresses)
    }

    fn wire<'a>(&self, bridge: &'a Link, addresses: PerFamily<IpAddr>) -> wiring::Wire<'a> {
        wiring::Wire {
            bridge,
            gateways: self.gateways,
            addresses,
            mtu: lock(&self.size).plan.mtu,
        }
    }

    fn shape(
        &self,
        pod_uid: &str,
        netns: BorrowedFd<'_>,
        bandwidth: Bandwidth,
    ) -> Result<(), Error> {
        let _beside = self.beside();
        lock(&self.shaped).insert(pod_uid.to_owned(), bandwidth);
        wiring::shape(pod_uid, netns, bandwidth)
            .map_err(during(format!("limit the bandwidth of pod {pod_uid}")))
    }

    fn forward(&self, pod_uid: &str, forwards: Vec<Forward>) -> Result<(), Error> {
        let addresses = self.pool().of(pod_uid).ok_or(Error::NoAddress)?;
        self.route_localnet()?;
        self.change_ports(|tables| tables.forward(pod_uid, addresses, forwards))?;
        reached(Step::PortsOpened);
        Ok(())
    }

    /// The node's own packets from 127.0.0.1 must find the pods.
    fn route_localnet(&self) -> Result<(), Error> {
        if self.config.pod_cidrs.of(Family::V4).is_none() {
            return Ok(());
        }
        let setting = format!("net/ipv4/conf/{}/route_localnet", self.config.bridge);
        sysctl::write(&setting, "1").map_err(during(format!("set {setting}")))
    }

    fn adopt_ports(&self, forwards: BTreeMap<String, Vec<Forward>>) -> Result<(), Error> {
        // A pod that is being detached meanwhile must not get its ports back, for nobody would close them.
        let _alone = self.alone();
        let mut wanted = BTreeMap::new();
        for (uid, forwards) in forwards {
            let addresses = self.pool().of(&uid);
            if let (Some(addresses), false) = (addresses, forwards.is_empty()) {
                wanted.insert(uid, (addresses, forwards));
            }
        }
        if !wanted.is_empty() {
            self.route_localnet()?;
        }
        self.change_ports(|tables| tables.adopt(wanted))
    }

    /// What fails here is what is wanted all the same: it is tried again.
    fn change_ports(
        &self,
        change: impl FnOnce(&mut Tables) -> Result<(), netns::Error>,
    ) -> Result<(), Error> {
        let mut tables = self.tables();
        let had_ports = tables.has_ports();
        let changed = change(&mut tables);
        let forgotten = tables.forget_flows();
        if let Err(error) = &forgotten {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "flows to ports of pods that went are not forgotten yet"
            );
        }
        // From the first port on there is a setting that must be looked at.
        let is_first = !had_ports && tables.has_ports();
        if is_first || changed.is_err() || forgotten.is_err() {
            self.again.notify_one();
        }
        changed.map_err(during("lead ports of the node to pods".into()))
    }

    fn detach(&self, pod_uid: &str) -> Result<(), Error> {
        let _beside = self.beside();
        self.change_ports(|tables| tables.close(pod_uid))?;
        reached(Step::PortsClosed);
        lock(&self.wired).remove(pod_uid);
        lock(&self.shaped).remove(pod_uid);
        let Some(addresses) = self.pool().of(pod_uid) else {
            return Ok(());
        };
        wiring::detach(&self.bridge(), pod_uid, &addresses)
            .and_then(|()| self.tables().forget(pod_uid))
            .map_err(during(format!("unwire pod {pod_uid}")))?;
        reached(Step::NetworkUnwired);
        self.release(pod_uid)?;
        reached(Step::AddressReleased);
        Ok(())
    }

    fn release(&self, pod_uid: &str) -> Result<(), Error> {
        let mut pool = self.pool();
        let given_back = pool.give_back(pod_uid).into_iter();
        let deleted = given_back.map(|address| self.records.delete(address));
        deleted.fold(Ok(()), Result::and)
    }

    fn remove(&self) -> Result<(), Error> {
        let owners = self.pool().owners();
        for owner in &owners {
            self.detach(owner)?;
        }
        let removed = self.tables().remove();
        removed.map_err(during(format!("remove the table {}", self.config.table)))?;
        wiring::remove_bridge(&self.config.bridge)
            .map_err(during(format!("remove the bridge {}", self.config.bridge)))?;
        for (name, value) in self.records.settings() {
            // The settings of a link go with it.
            let found = sysctl::read(&name).map_err(during(format!("read {name}")))?;
            if found.is_none() {
                continue;
            }
            sysctl::write(&name, &value).map_err(during(format!("restore {name}")))?;
        }
        self.records.forget_settings()
    }

    fn pool(&self) -> MutexGuard<'_, Pools> {
        lock(&self.pool)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    fn bridge(&self) -> Link {
        lock(&self.bridge).clone()
    }

    fn set_bridge(&self, bridge: Link) {
        *lock(&self.bridge) = bridge;
    }

    fn wired(&self) -> BTreeMap<String, guard::Port> {
        lock(&self.wired).clone()
    }

    /// To change one pod's wire.
    fn beside(&self) -> RwLockReadGuard<'_, ()> {
        self.wires.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change everybody's.
    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.wires.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kept_open(netns: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    netns.try_clone_to_owned().map_err(|source| Error::Netlink {
        action: "keep the pod's network namespace open".into(),
        source: source.into(),
    })
}

/// A panic leaves none of this half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this kernel can check what pods send; tried out in a namespace that goes with the try.
pub fn can_guard() -> bool {
    let try_out = || {
        netns::nft::Socket::open()?.commit(guard::whole(
            "probe",
            Family::ALL.into_iter(),
            1,
            [].iter(),
        ))
    };
    netns::Namespace::create()
        .and_then(|namespace| namespace.run(try_out)?)
        .is_ok()
}

fn ports_of(bridge: &str, pool: &Pools) -> BTreeMap<String, guard::Port> {
    let port = |owner: String| {
        let addresses = pool.of(&owner)?;
        Some((owner.clone(), wiring::port(bridge, &owner, addresses)))
    };
    pool.owners().into_iter().filter_map(port).collect()
}

/// The length of the prefix of the smallest range that pods can have.
fn smallest(range: &IpNet) -> u8 {
    match range {
        IpNet::V4(_) => 29,
        IpNet::V6(_) => 120,
    }
}

/// The bridge's addresses with the lengths of their ranges.
fn prefixes(ranges: &PerFamily<IpNet>, gateways: &PerFamily<IpAddr>) -> Vec<Prefix> {
    let both = ranges.iter().zip(gateways.iter());
    both.map(|(range, gateway)| Prefix::new(*gateway, range.prefix_len()))
        .collect()
}

/// How large packets may be on the ways that are known now.
fn size(ranges: &PerFamily<IpNet>, to_peers: &ToPeers) -> Result<Size, Error> {
    let looked = route::Socket::open()
        .and_then(|mut socket| mtu::Uplinks::look(&mut socket, ranges.families()));
    let uplinks = looked.map_err(during("look up the links that packets leave by".into()))?;
    let mut ways = uplinks.ways();
    ways.extend(to_peers.get().unwrap_or_default());
    let has_ipv6 = ranges.of(Family::V6).is_some();
    Ok(Size {
        plan: mtu::plan(ways.iter(), has_ipv6),
        uplinks,
    })
}

fn during(action: String) -> impl FnOnce(netns::Error) -> Error {
    move |source| Error::Netlink {
        action,
        source: Box::new(source),
    }
}

/// Netlink answers in microseconds, but the kernel's one lock for links may take longer.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    hooks::delay().await;
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Error::Netlink {
                action: "run a blocking call".into(),
                source: error.into(),
            })
        })
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the pod has no address")]
    NoAddress,
    #[error("no free address in the pod range")]
    Exhausted,
    #[error("the pod range {0} is too small: it must be a /29 or larger, of IPv6 a /120 or larger")]
    Range(IpNet),
    #[error(
        "pods shall have addresses of {0}, and this kernel has no IPv6 (`ipv6.disable=1`, say)"
    )]
    NoIpv6(IpNet),
    /// Of a newer program, say, which understands them.
    #[error("records of pods' addresses: {path}")]
    Records {
        path: PathBuf,
        source: format::Unreadable,
    },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{action}")]
    Netlink {
        action: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
