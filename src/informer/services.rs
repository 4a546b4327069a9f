//! Services joined with their EndpointSlices, as proxy and DNS want them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use tokio::time::Interval;

use super::{Change, Changes, Informer, Informers, Key};
use crate::{queue::LOOK_AGAIN, ticks};

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
    /// When all are told of again.
    again: Interval,
}

impl Services {
    /// Waits until both kinds have been listed.
    pub async fn start(informers: &Informers) -> Self {
        let mut started = Self::of(informers.get(), informers.get());
        started.services.synced().await;
        started.slices.synced().await;
        started.reload();
        started
    }

    fn of(services: Informer<Service>, slices: Informer<EndpointSlice>) -> Self {
        Self {
            service_changes: services.changes(),
            slice_changes: slices.changes(),
            services,
            slices,
            by_service: HashMap::new(),
            known: HashSet::new(),
            again: ticks::every(LOOK_AGAIN),
        }
    }

    /// All of them, also those that were known and are gone.
    pub fn all(&mut self) -> Vec<Joined> {
        let mut dirty = HashSet::new();
        self.reload();
        self.everything(&mut dirty);
        self.join(dirty)
    }

    /// The Services that changed since; all that is there at once comes together. Now and then all of
    /// them, whether or not they have. `None` when the informers have ended.
    pub async fn next(&mut self) -> Option<Vec<Joined>> {
        let mut dirty = HashSet::new();
        tokio::select! {
            change = self.service_changes.next() => self.service(change?, &mut dirty),
            change = self.slice_changes.next() => self.slice(change?, &mut dirty),
            _ = self.again.tick() => {
                self.reload();
                self.everything(&mut dirty);
            }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_nobody_told_is_seen_all_the_same() {
        let (services, slices) = (Informer::by_hand(), Informer::by_hand());
        let mut joined = Services::of(services.clone(), slices.clone());
        joined.again = tokio::time::interval(LOOK_AGAIN);
        let service = |name: &str| -> Service {
            let object = json!({"metadata": {"name": name, "namespace": "n"}});
            serde_json::from_value(object).unwrap()
        };
        let slice = |name: &str| -> EndpointSlice {
            let object = json!({"metadata": {"name": format!("{name}-1"), "namespace": "n",
                "labels": {SERVICE_NAME: name}}, "addressType": "IPv4", "endpoints": []});
            serde_json::from_value(object).unwrap()
        };
        services.slip_in(service("old"));
        assert_eq!(joined.all().len(), 1);
        services.slip_out(&Key::new("n", "old"));
        services.slip_in(service("new"));
        slices.slip_in(slice("new"));
        let mut seen = joined.next().await.unwrap();
        seen.sort_by_key(|one| one.key.clone());
        let seen: Vec<_> = seen
            .iter()
            .map(|one| (&*one.key.name, one.service.is_some(), one.slices.len()))
            .collect();
        assert_eq!(seen, [("new", true, 1), ("old", false, 0)]);
    }
}
