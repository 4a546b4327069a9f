//! Services joined with their EndpointSlices, as proxy and DNS want them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;

use super::{Change, Changes, Informer, Informers, Key};

/// The label by which a slice names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One Service as it is now.
#[derive(Clone, Debug)]
pub struct Joined {
    pub key: Key,
    /// `None`: it was deleted.
    pub service: Option<Arc<Service>>,
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// All Services with their slices, and what changes about them.
#[derive(Debug)]
pub struct Services {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    service_changes: Changes<Service>,
    slice_changes: Changes<EndpointSlice>,
    by_service: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    /// Services told of and not yet told gone.
    known: HashSet<Key>,
}

impl Services {
    /// Waits until both kinds have been listed.
    pub async fn start(informers: &Informers) -> Self {
        let services = informers.get::<Service>();
        let slices = informers.get::<EndpointSlice>();
        let mut started = Self {
            service_changes: services.changes(),
            slice_changes: slices.changes(),
            services,
            slices,
            by_service: HashMap::new(),
            known: HashSet::new(),
        };
        started.services.synced().await;
        started.slices.synced().await;
        started.reload();
        started
    }

    pub fn all(&mut self) -> Vec<Joined> {
        let services = self.services.list();
        self.join(services.iter().map(|service| Key::of(&**service)).collect())
    }

    /// The Services that changed since; all that is there at once comes together. `None` when the
    /// informers have ended.
    pub async fn next(&mut self) -> Option<Vec<Joined>> {
        let mut dirty = HashSet::new();
        tokio::select! {
            change = self.service_changes.next() => self.service(change?, &mut dirty),
            change = self.slice_changes.next() => self.slice(change?, &mut dirty),
        }
        while let Some(Some(change)) = self.service_changes.next().now_or_never() {
            self.service(change, &mut dirty);
        }
        while let Some(Some(change)) = self.slice_changes.next().now_or_never() {
            self.slice(change, &mut dirty);
        }
        Some(self.join(dirty))
    }

    fn service(&self, change: Change<Service>, dirty: &mut HashSet<Key>) {
        match change {
            Change::Applied { new, .. } => dirty.extend([Key::of(&*new)]),
            Change::Deleted(old) => dirty.extend([Key::of(&*old)]),
            Change::Resync => self.everything(dirty),
        }
    }

    fn slice(&mut self, change: Change<EndpointSlice>, dirty: &mut HashSet<Key>) {
        match change {
            Change::Applied { old, new } => {
                // Its label may have changed.
                dirty.extend(old.and_then(|old| self.remove(&old)));
                dirty.extend(self.insert(new));
            }
            Change::Deleted(old) => dirty.extend(self.remove(&old)),
            Change::Resync => {
                self.reload();
                self.everything(dirty);
            }
        }
    }

    fn everything(&self, dirty: &mut HashSet<Key>) {
        let services = self.services.list();
        dirty.extend(services.iter().map(|service| Key::of(&**service)));
        dirty.extend(self.known.iter().cloned());
    }

    fn reload(&mut self) {
        self.by_service.clear();
        for slice in self.slices.list() {
            self.insert(slice);
        }
    }

    fn insert(&mut self, slice: Arc<EndpointSlice>) -> Option<Key> {
        let owner = owner(&slice)?;
        let slices = self.by_service.entry(owner.clone()).or_default();
        slices.insert(slice.name_any(), slice);
        Some(owner)
    }

    fn remove(&mut self, slice: &EndpointSlice) -> Option<Key> {
        let owner = owner(slice)?;
        let slices = self.by_service.get_mut(&owner)?;
        slices.remove(&slice.name_any());
        if slices.is_empty() {
            self.by_service.remove(&owner);
        }
        Some(owner)
    }

    fn join(&mut self, keys: HashSet<Key>) -> Vec<Joined> {
        let mut joined = Vec::with_capacity(keys.len());
        for key in keys {
            let service = self.services.get(&key);
            match service.is_some() {
                true => self.known.insert(key.clone()),
                false => self.known.remove(&key),
            };
            let slices = self.by_service.get(&key);
            joined.push(Joined {
                service,
                slices: slices.iter().flat_map(|s| s.values()).cloned().collect(),
                key,
            });
        }
        joined
    }
}

fn owner(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}
