//! The service proxy: Services and EndpointSlices as nf_tables state.
//!
//! Owns one nf_tables table and the route to the service range; started by the node. Everything
//! is read from informers.
//! Always true:
//! - A batch of changes is one transaction: packets see all of it or nothing.
//! - A change costs what changed; a packet costs the same with one service or ten thousand.
//! - Foreign tables are never touched.
//!
//! `model.rs` says what a Service asks for, `render.rs` which elements that is, `table.rs` has the
//! rules, `sync.rs` talks to the kernel. IPv4 only, so far. Node ports answer on every address of
//! the node but loopback, which the kernel does not let go elsewhere.

mod model;
mod render;
mod slots;
mod sync;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use futures::FutureExt;
use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use self::{model::Plan, sync::Programmer};
use crate::informer::{Change, Informer, Informers, Key};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The bit of the packet mark that asks for masquerade, where nothing else is chosen.
pub const DEFAULT_MARK: u32 = 0x4000;

#[derive(Clone, Debug)]
pub struct Config {
    /// The nf_tables table, e.g. `vetch-proxy`; not that of the pod network.
    pub table: String,
    /// This node's name, as endpoints carry it.
    pub node: String,
    /// Clients inside are pods: they are not masqueraded.
    pub cluster_cidr: IpNet,
    /// Service range and the link (the pods' bridge) that the node's own packets to it are routed
    /// to, so that they leave with an address that pods can answer.
    pub service_route: Option<(IpNet, String)>,
    /// One bit of the packet mark: [`DEFAULT_MARK`].
    pub mark: u32,
}

/// Keeps the table as the API says, until `shutdown`; the table stays then, for running pods.
pub async fn run(
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let services = informers.get::<Service>();
    let slices = informers.get::<EndpointSlice>();
    let (mut service_changes, mut slice_changes) = (services.changes(), slices.changes());
    services.synced().await;
    slices.synced().await;

    let mut view = View::new(services, config.node.clone());
    view.reload(&slices);
    let plans = view.plan(view.all());
    let programmer = blocking(move || Programmer::start(config, plans)).await?;
    let programmer = Arc::new(Mutex::new(programmer));
    loop {
        let mut dirty = HashSet::new();
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            change = service_changes.next() => match change {
                Some(change) => view.service(change, &mut dirty),
                None => return Ok(()),
            },
            change = slice_changes.next() => match change {
                Some(change) => view.slice(change, &slices, &mut dirty),
                None => return Ok(()),
            },
        }
        // What else has come in by now goes into the same transaction.
        while let Some(Some(change)) = service_changes.next().now_or_never() {
            view.service(change, &mut dirty);
        }
        while let Some(Some(change)) = slice_changes.next().now_or_never() {
            view.slice(change, &slices, &mut dirty);
        }
        if view.everything {
            view.everything = false;
            dirty.extend(view.all());
            let programmer = programmer.lock().unwrap_or_else(PoisonError::into_inner);
            dirty.extend(programmer.known());
        }
        let plans = view.plan(dirty);
        let programmer = programmer.clone();
        let applied = blocking(move || {
            let mut programmer = programmer.lock().unwrap_or_else(PoisonError::into_inner);
            programmer.apply(plans)
        })
        .await;
        if let Err(error) = applied {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "services are not up to date"
            );
        }
    }
}

/// Takes the table and the route away (for `reset`).
pub async fn remove(config: Config) -> Result<(), Error> {
    blocking(move || sync::remove(&config)).await
}

/// The services and, by service, their slices.
struct View {
    services: Informer<Service>,
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    node: String,
    /// Changes were missed.
    everything: bool,
}

impl View {
    fn new(services: Informer<Service>, node: String) -> Self {
        Self {
            services,
            slices: HashMap::new(),
            node,
            everything: false,
        }
    }

    fn reload(&mut self, slices: &Informer<EndpointSlice>) {
        self.slices.clear();
        for slice in slices.list() {
            self.insert(slice);
        }
    }

    fn insert(&mut self, slice: Arc<EndpointSlice>) -> Option<Key> {
        let owner = owner(&slice)?;
        let slices = self.slices.entry(owner.clone()).or_default();
        slices.insert(slice.name_any(), slice);
        Some(owner)
    }

    fn remove(&mut self, slice: &EndpointSlice) -> Option<Key> {
        let owner = owner(slice)?;
        let slices = self.slices.get_mut(&owner)?;
        slices.remove(&slice.name_any());
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
        Some(owner)
    }

    fn service(&mut self, change: Change<Service>, dirty: &mut HashSet<Key>) {
        match change {
            Change::Applied { new, .. } => dirty.extend([Key::of(&*new)]),
            Change::Deleted(old) => dirty.extend([Key::of(&*old)]),
            Change::Resync => self.everything = true,
        }
    }

    fn slice(
        &mut self,
        change: Change<EndpointSlice>,
        slices: &Informer<EndpointSlice>,
        dirty: &mut HashSet<Key>,
    ) {
        match change {
            Change::Applied { old, new } => {
                // Its label may have changed.
                dirty.extend(old.and_then(|old| self.remove(&old)));
                dirty.extend(self.insert(new));
            }
            Change::Deleted(old) => dirty.extend(self.remove(&old)),
            Change::Resync => {
                self.reload(slices);
                self.everything = true;
            }
        }
    }

    fn all(&self) -> Vec<Key> {
        let services = self.services.list();
        services.iter().map(|service| Key::of(&**service)).collect()
    }

    fn plan(&self, keys: impl IntoIterator<Item = Key>) -> Vec<(Key, Plan)> {
        keys.into_iter()
            .map(|key| {
                let slices: Vec<&EndpointSlice> = self
                    .slices
                    .get(&key)
                    .into_iter()
                    .flat_map(BTreeMap::values)
                    .map(|slice| &**slice)
                    .collect();
                let plan = match self.services.get(&key) {
                    Some(service) => model::plan(&service, &slices, &self.node),
                    None => Plan::default(),
                };
                (key, plan)
            })
            .collect()
    }
}

fn owner(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Task(error)))
}

/// Why services could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a netlink socket for services")]
    Start(#[source] netns::Error),
    #[error("write services to nf_tables")]
    Commit(#[source] netns::Error),
    #[error("route the service range")]
    Route(#[source] netns::Error),
    #[error("forget stale UDP flows")]
    Conntrack(#[source] netns::Error),
    #[error("run a blocking call")]
    Task(#[source] tokio::task::JoinError),
}
