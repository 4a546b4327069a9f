//! Wires pods to the node: bridge, veth pair, address, masquerade, and what a pod may send.
//!
//! Owns the node's bridge, the address records in the state folder and the nf_tables tables for
//! masquerade, for ports of the node and for the guard of the pods' links. Called by the kubelet when a pod's namespace is made and when it goes.
//! Always true: an address belongs to one pod at a time, across restarts; a failed attach leaves
//! nothing; a pod's link carries packets with the pod's own addresses to the gateway, and no other.

pub mod env;
mod guard;
mod pool;
mod ports;
mod records;
#[cfg(test)]
mod tests;
mod wiring;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::{IpNet, Ipv4Net};
use netns::{nft, route::Link, sysctl};

pub use self::ports::{Forward, forwards, host_address};
use self::{pool::Pool, records::Records};
use crate::{own_ports::OwnPorts, supervision::hooks};

const FORWARD: &str = "net/ipv4/ip_forward";
const GUARD: &str = "set up the check of what pods send (it needs a kernel with \
                     CONFIG_NF_TABLES_BRIDGE; see `vetch check`)";

/// Names are made from `cluster`, so that several nodes can share one network namespace's host.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    pub pod_cidr: IpNet,
    /// At most 15 bytes, e.g. `vetch0`.
    pub bridge: String,
    /// The nf_tables table for masquerade, e.g. `vetch`.
    pub table: String,
    /// Traffic inside these is not masqueraded (the cluster's pod range).
    pub cluster_cidr: IpNet,
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
    gateway: IpAddr,
    bridge: Link,
    records: Records,
    /// Guards the records too: a record is written while its address is taken.
    pool: Mutex<Pool>,
    /// Ports of the node by pod; held while they are written to the kernel. Taken before `pool`.
    forwards: Mutex<BTreeMap<String, (Ipv4Addr, Vec<Forward>)>>,
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

    /// The bridge's address: the node as pods see it.
    pub fn gateway(&self) -> IpAddr {
        self.shared.gateway
    }

    /// Gives the namespace `eth0`, its address and a default route. A pod that already has its
    /// address keeps it.
    pub async fn attach(&self, pod_uid: &str, netns: BorrowedFd<'_>) -> Result<IpAddr, Error> {
        let netns = netns
            .try_clone_to_owned()
            .map_err(|source| Error::Netlink {
                action: "keep the pod's network namespace open".into(),
                source: source.into(),
            })?;
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.attach(&uid, netns.as_fd())).await
    }

    /// Leads ports of the node to the pod, which has its address, until it is detached.
    pub async fn forward(&self, pod_uid: &str, forwards: Vec<Forward>) -> Result<(), Error> {
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.forward(&uid, forwards)).await
    }

    /// Removes the pod's link and gives its address back. A pod that was never attached is fine.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), Error> {
        let (shared, uid) = (self.shared.clone(), pod_uid.to_owned());
        blocking(move || shared.detach(&uid)).await
    }

    /// The pod's address, if it has one.
    pub async fn address(&self, pod_uid: &str) -> Option<IpAddr> {
        self.shared.pool().of(pod_uid)
    }

    /// Gives back the addresses and links of pods that are not in `live`.
    pub async fn retain(&self, live: &[String]) -> Result<(), Error> {
        let (shared, live) = (self.shared.clone(), live.to_vec());
        blocking(move || {
            let owners = shared.pool().owners();
            owners
                .iter()
                .filter(|owner| !live.contains(owner))
                .try_for_each(|owner| shared.detach(owner))?;
            // Ports of pods that went while no daemon ran.
            shared.change_forwards(|forwards| forwards.retain(|owner, _| live.contains(owner)))
        })
        .await
    }

    /// Takes bridge and table away again (for `reset`).
    pub async fn remove(&self) -> Result<(), Error> {
        let shared = self.shared.clone();
        blocking(move || shared.remove()).await
    }
}

impl Shared {
    fn open(config: Config) -> Result<Self, Error> {
        let range = match config.pod_cidr {
            IpNet::V4(range) if range.prefix_len() <= 29 => range,
            other => return Err(Error::Range(other)),
        };
        let records = Records::open(&config.state_dir)?;
        let gateway = gateway(range);
        let bridge = wiring::ensure_bridge(&config.bridge, gateway, range)
            .map_err(during(format!("set up the bridge {}", config.bridge)))?;
        set(&records, FORWARD, "1")?;
        wiring::ensure_table(
            &config.table,
            &config.bridge,
            config.pod_cidr,
            config.cluster_cidr,
        )
        .map_err(during(format!("set up masquerade in {}", config.table)))?;

        let mut pool = Pool::new(range);
        for (owner, address) in records.addresses()? {
            if !pool.restore(&owner, address) {
                records.delete(address)?;
            }
        }
        if let Some(last) = records.last_address() {
            pool.resume_after(last);
        }
        let ports = ports_of(&pool);
        // Without it pods could take each other's traffic: rather no pods than those.
        guard::rebuild(&config.table, &ports).map_err(during(GUARD.into()))?;
        wiring::adopt(&bridge, &ports).map_err(during("take over the links of pods".into()))?;
        Ok(Self {
            gateway: gateway.into(),
            config,
            bridge,
            records,
            pool: Mutex::new(pool),
            forwards: Mutex::default(),
        })
    }

    fn attach(&self, pod_uid: &str, netns: BorrowedFd<'_>) -> Result<IpAddr, Error> {
        let address = {
            let mut pool = self.pool();
            let address = pool.take(pod_uid).ok_or(Error::Exhausted)?;
            if let Err(error) = self.records.put(pod_uid, address) {
                pool.give_back(pod_uid);
                return Err(error);
            }
            address
        };
        let wired = self.admit(&wiring::port(pod_uid, address)).and_then(|()| {
            wiring::attach(&self.bridge, self.gateway, pod_uid, address.into(), netns)
        });
        if let Err(error) = wired {
            let _ = guard::forget(&self.config.table, &wiring::port(pod_uid, address));
            self.release(pod_uid)?;
            return Err(during(format!("wire pod {pod_uid} with {address}"))(error));
        }
        Ok(address.into())
    }

    /// Lets the pod send. If somebody took the guard's table away, it is made anew.
    fn admit(&self, port: &guard::Port) -> Result<(), netns::Error> {
        match guard::admit(&self.config.table, port) {
            Err(error) if error.is_absent() => {
                let ports = ports_of(&self.pool());
                guard::rebuild(&self.config.table, &ports)
            }
            admitted => admitted,
        }
    }

    fn forward(&self, pod_uid: &str, forwards: Vec<Forward>) -> Result<(), Error> {
        let IpAddr::V4(address) = self.pool().of(pod_uid).ok_or(Error::NoAddress)? else {
            return Err(Error::NoAddress);
        };
        // The node's own packets from 127.0.0.1 must find the pod.
        let setting = format!("net/ipv4/conf/{}/route_localnet", self.config.bridge);
        sysctl::write(&setting, "1").map_err(during(format!("set {setting}")))?;
        self.change_forwards(|all| {
            all.insert(pod_uid.to_owned(), (address, forwards));
        })
    }

    fn change_forwards(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, (Ipv4Addr, Vec<Forward>)>),
    ) -> Result<(), Error> {
        let mut forwards = self.forwards.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut forwards);
        let batch = ports::batch(
            &self.ports_table(),
            &self.config.bridge,
            &self.config.own_ports,
            &forwards,
        );
        nft::Socket::open()
            .and_then(|mut socket| socket.commit(batch))
            .map_err(during("lead ports of the node to pods".into()))
    }

    fn ports_table(&self) -> String {
        format!("{}-ports", self.config.table)
    }

    fn detach(&self, pod_uid: &str) -> Result<(), Error> {
        let forwards = || self.forwards.lock().unwrap_or_else(PoisonError::into_inner);
        if forwards().contains_key(pod_uid) {
            self.change_forwards(|all| drop(all.remove(pod_uid)))?;
        }
        let Some(IpAddr::V4(address)) = self.pool().of(pod_uid) else {
            return Ok(());
        };
        wiring::detach(&self.bridge, pod_uid, address.into())
            .and_then(|()| guard::forget(&self.config.table, &wiring::port(pod_uid, address)))
            .map_err(during(format!("unwire pod {pod_uid}")))?;
        self.release(pod_uid)
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
        self.change_forwards(BTreeMap::clear)?;
        wiring::remove_table(&self.config.table)
            .and_then(|()| guard::remove(&self.config.table))
            .map_err(during(format!("remove the table {}", self.config.table)))?;
        wiring::remove_bridge(&self.config.bridge)
            .map_err(during(format!("remove the bridge {}", self.config.bridge)))?;
        for (name, value) in self.records.settings() {
            sysctl::write(&name, &value).map_err(during(format!("restore {name}")))?;
        }
        self.records.forget_settings()
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this kernel can check what pods send; tried out in a namespace that goes with the try.
pub fn can_guard() -> bool {
    netns::Namespace::create()
        .and_then(|namespace| namespace.run(|| guard::rebuild("probe", &[]))?)
        .is_ok()
}

fn ports_of(pool: &Pool) -> Vec<guard::Port> {
    let owners = pool.owners();
    let port = |owner: &String| match pool.of(owner)? {
        IpAddr::V4(address) => Some(wiring::port(owner, address)),
        IpAddr::V6(_) => None,
    };
    owners.iter().filter_map(port).collect()
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
