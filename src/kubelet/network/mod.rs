//! Wires pods to the node: bridge, veth pair, address, masquerade, and what a pod may send.
//!
//! Owns the node's bridge, the address records in the state folder and the nf_tables tables for
//! masquerade, for ports of the node and for the guard of the pods' links. Called by the kubelet when
//! a pod's namespace is made and when it goes; [`PodNetwork::keep`] restores what others undo.
//! Always true: an address belongs to one pod at a time, across restarts; a failed attach leaves
//! nothing; a pod's link carries packets with the pod's own addresses to the gateway, and no other;
//! a change of a table that failed is made again until it works.

mod bandwidth;
pub mod env;
mod guard;
pub mod peers;
mod pool;
mod ports;
mod records;
mod repairs;
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

use ipnet::{IpNet, Ipv4Net};
use netns::{route::Link, sysctl};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use self::{
    bandwidth::Bandwidth,
    ports::{Forward, forwards, host_address},
};
use self::{pool::Pool, records::Records, tables::Tables};
use crate::{
    addresses::family::PerFamily,
    format,
    own_ports::OwnPorts,
    repair::{self, Told},
    runtime::Runtime,
    supervision::{
        hooks,
        steps::{Step, reached},
    },
};

const FORWARD: &str = "net/ipv4/ip_forward";
/// Whether the host tells a sender of a shorter way.
const REDIRECTS: &str = "net/ipv4/conf/all/send_redirects";
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

/// The node's pod network; cheap to clone.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    range: Ipv4Net,
    gateway: IpAddr,
    /// As it was made last; a repair makes another.
    bridge: Mutex<Link>,
    records: Records,
    /// Guards the records too: a record is written while its address is taken.
    pool: Mutex<Pool>,
    /// Held while the kernel is written to. Taken before `pool`.
    tables: Mutex<Tables>,
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

impl PodNetwork {
    /// Makes or takes over bridge, forwarding and masquerade.
    pub async fn open(config: Config) -> Result<Self, Error> {
        blocking(move || Shared::open(config))
            .await
            .map(|shared| Self {
                shared: Arc::new(shared),
            })
    }

    /// The bridge's addresses: the node as pods see it.
    pub fn gateways(&self) -> PerFamily<IpAddr> {
        PerFamily::one(self.shared.gateway)
    }

    /// Gives the namespace `eth0`, its addresses and default routes. A pod that already has its
    /// addresses keeps them.
    pub async fn attach(
        &self,
        pod_uid: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<PerFamily<IpAddr>, Error> {
        let netns = kept_open(netns)?;
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        let address = blocking(move || shared.attach(&uid, netns.as_fd())).await?;
        Ok(PerFamily::one(address))
    }

    /// Leads ports of the node to the pod, which has its address, until it is detached. Waits for
    /// [`PodNetwork::adopt`].
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

    /// The pod's addresses, if it has any.
    pub async fn addresses(&self, pod_uid: &str) -> Option<PerFamily<IpAddr>> {
        self.shared.pool().of(pod_uid).map(PerFamily::one)
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
        repair::keep(Arc::new(kept), own, &self.shared.again, tell, shutdown).await;
        Ok(())
    }

    /// As [`PodNetwork::open`], without whatever is recorded of pods, for when none shall be left.
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

impl Shared {
    fn open(config: Config) -> Result<Self, Error> {
        let range = match *config.pod_cidrs.primary() {
            IpNet::V4(range) if range.prefix_len() <= 29 => range,
            other => return Err(Error::Range(other)),
        };
        let records = Records::open(&config.state_dir)?;
        let gateway = gateway(range);
        let bridge = wiring::ensure_bridge(&config.bridge, gateway, range)
            .map_err(during(format!("set up the bridge {}", config.bridge)))?;
        set(&records, FORWARD, "1")?;
        // A host that forwards on our account sends no more redirects than before. Also, as long as it may
        // send some, the kernel looks each packet's source up that leaves by the link it came by.
        let settings = records.settings();
        if settings.contains(&(FORWARD.to_owned(), "0".to_owned())) {
            set(&records, REDIRECTS, "0")?;
        }

        let mut pool = Pool::new(range);
        for (owner, address) in records.addresses()? {
            if !pool.restore(&owner, address) {
                records.delete(address)?;
            }
        }
        if let Some(last) = records.last_address() {
            pool.resume_after(last);
        }
        let wired = ports_of(&config.bridge, &pool);
        let mut tables =
            Tables::new(config.clone(), wired.clone()).map_err(during(GUARD.into()))?;
        tables
            .write_masquerade()
            .map_err(during(format!("set up masquerade in {}", config.table)))?;
        // Without it pods could take each other's traffic: rather no pods than those.
        tables.write_guard().map_err(during(GUARD.into()))?;
        let ports: Vec<guard::Port> = wired.values().cloned().collect();
        wiring::adopt(&bridge, &ports).map_err(during("take over the links of pods".into()))?;
        Ok(Self {
            range,
            gateway: gateway.into(),
            config,
            bridge: Mutex::new(bridge),
            records,
            pool: Mutex::new(pool),
            tables: Mutex::new(tables),
            wires: RwLock::default(),
            wired: Mutex::new(wired),
            shaped: Mutex::default(),
            neighbours_lost: AtomicBool::new(false),
            adopted: watch::Sender::new(false),
            again: Notify::new(),
        })
    }

    fn attach(&self, pod_uid: &str, netns: BorrowedFd<'_>) -> Result<IpAddr, Error> {
        let _beside = self.beside();
        let address = {
            let mut pool = self.pool();
            let address = pool.take(pod_uid).ok_or(Error::Exhausted)?;
            if let Err(error) = self.records.put(pod_uid, address) {
                pool.give_back(pod_uid);
                return Err(error);
            }
            address
        };
        reached(Step::AddressClaimed);
        let port = wiring::port(&self.config.bridge, pod_uid, address);
        let admitted = self.tables().admit(pod_uid, &port);
        let wired = admitted.and_then(|()| {
            let bridge = self.bridge();
            wiring::attach(&bridge, self.gateway, pod_uid, address.into(), netns)
        });
        if let Err(error) = wired {
            lock(&self.wired).remove(pod_uid);
            if self.tables().forget(pod_uid).is_err() {
                self.again.notify_one();
            }
            self.release(pod_uid)?;
            return Err(during(format!("wire pod {pod_uid} with {address}"))(error));
        }
        lock(&self.wired).insert(pod_uid.to_owned(), port);
        reached(Step::NetworkWired);
        Ok(address.into())
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
        let IpAddr::V4(address) = self.pool().of(pod_uid).ok_or(Error::NoAddress)? else {
            return Err(Error::NoAddress);
        };
        self.route_localnet()?;
        self.change_ports(|tables| tables.forward(pod_uid, address, forwards))?;
        reached(Step::PortsOpened);
        Ok(())
    }

    /// The node's own packets from 127.0.0.1 must find the pods.
    fn route_localnet(&self) -> Result<(), Error> {
        let setting = format!("net/ipv4/conf/{}/route_localnet", self.config.bridge);
        sysctl::write(&setting, "1").map_err(during(format!("set {setting}")))
    }

    fn adopt_ports(&self, forwards: BTreeMap<String, Vec<Forward>>) -> Result<(), Error> {
        // A pod that is being detached meanwhile must not get its ports back, for nobody would close them.
        let _alone = self.alone();
        let mut wanted = BTreeMap::new();
        for (uid, forwards) in forwards {
            let address = self.pool().of(&uid);
            if let (Some(IpAddr::V4(address)), false) = (address, forwards.is_empty()) {
                wanted.insert(uid, (address, forwards));
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
        let Some(IpAddr::V4(address)) = self.pool().of(pod_uid) else {
            return Ok(());
        };
        wiring::detach(&self.bridge(), pod_uid, address.into())
            .and_then(|()| self.tables().forget(pod_uid))
            .map_err(during(format!("unwire pod {pod_uid}")))?;
        reached(Step::NetworkUnwired);
        self.release(pod_uid)?;
        reached(Step::AddressReleased);
        Ok(())
    }

    fn release(&self, pod_uid: &str) -> Result<(), Error> {
        let mut pool = self.pool();
        match pool.give_back(pod_uid) {
            Some(address) => self.records.delete(address),
            None => Ok(()),
        }
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
            sysctl::write(&name, &value).map_err(during(format!("restore {name}")))?;
        }
        self.records.forget_settings()
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
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
    let try_out = || netns::nft::Socket::open()?.commit(guard::whole("probe", 1, [].iter()));
    netns::Namespace::create()
        .and_then(|namespace| namespace.run(try_out)?)
        .is_ok()
}

fn ports_of(bridge: &str, pool: &Pool) -> BTreeMap<String, guard::Port> {
    let port = |owner: String| match pool.of(&owner)? {
        IpAddr::V4(address) => Some((owner.clone(), wiring::port(bridge, &owner, address))),
        IpAddr::V6(_) => None,
    };
    pool.owners().into_iter().filter_map(port).collect()
}

/// The first address of the range.
fn gateway(range: Ipv4Net) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(u32::from(range.network()) + 1)
}

/// Changes a kernel setting, after its old value is on record.
fn set(records: &Records, name: &str, value: &str) -> Result<(), Error> {
    let old = sysctl::read(name).map_err(during(format!("read {name}")))?;
    match old {
        Some(old) if old != value => {
            records.record_setting(name, &old)?;
            sysctl::write(name, value).map_err(during(format!("set {name} to {value}")))
        }
        _ => Ok(()),
    }
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
    #[error("the pod range {0} is not an IPv4 range of at least eight addresses")]
    Range(IpNet),
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
