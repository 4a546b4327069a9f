//! Shared informers: one list-and-watch per kind per process, read by every component.
//!
//! Owns the caches; knows no component. Scheduler, controllers, proxy, DNS and kubelet get theirs
//! from one [`Informers`].
//! Always true:
//! - A [`Change`] is sent after the cache shows it, in watch order.
//! - Both sides of a change are the same object, by uid.
//! - A subscriber that falls behind gets [`Change::Resync`] and must look at the whole cache.

pub mod service_ranges;
pub mod services;

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::StreamExt;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};

use crate::supervision::{Parts, Policy, hooks};

/// Changes a subscriber may lag behind before it is told to resync. The places are made with the channel,
/// and there are some seventy informers: 12 KiB each.
const BACKLOG: usize = 512;

/// Namespace and name; the namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The version of an object read from the API; 0 where it has none.
pub fn revision_of<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What happened to one object, or to too many to tell.
#[derive(Debug)]
pub enum Change<K> {
    Applied {
        old: Option<Arc<K>>,
        new: Arc<K>,
    },
    Deleted(Arc<K>),
    /// Changes were missed: compare everything.
    Resync,
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied { old, new } => Self::Applied {
                old: old.clone(),
                new: new.clone(),
            },
            Self::Deleted(old) => Self::Deleted(old.clone()),
            Self::Resync => Self::Resync,
        }
    }
}

/// Changes of one kind from the moment of subscription on.
#[derive(Debug)]
pub struct Changes<K>(broadcast::Receiver<Change<K>>);

impl<K> Changes<K> {
    /// The next change; `None` when the informer has ended.
    pub async fn next(&mut self) -> Option<Change<K>> {
        hooks::delay().await;
        match self.0.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The cache of one kind.
#[derive(Debug)]
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

#[derive(Debug)]
struct Shared<K> {
    /// Ordered, so that one namespace is a range.
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    /// The highest resource version seen in an event of this kind.
    revision: AtomicU64,
    changes: broadcast::Sender<Change<K>>,
    synced: watch::Sender<bool>,
}

impl<K> Informer<K> {
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.shared
            .objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    /// Every object, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared
            .objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// The objects of one namespace, by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared
            .objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The highest resource version that the cache has taken in: a writer who waits until this has
    /// reached its own last write reads its own writes.
    pub fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// Subscribe before the first `list`, so that nothing falls between.
    pub fn changes(&self) -> Changes<K> {
        Changes(self.shared.changes.subscribe())
    }

    /// Waits until the first list is in the cache.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives in `shared`, so this can only end by becoming true.
        let _ = synced.wait_for(|synced| *synced).await;
    }
}

/// A cache that nobody feeds but a test, and of which nobody is told.
#[cfg(test)]
impl<K: Resource<DynamicType = ()>> Informer<K> {
    pub fn by_hand() -> Self {
        Self {
            shared: Arc::new(Shared {
                objects: RwLock::default(),
                revision: AtomicU64::new(0),
                changes: broadcast::channel(BACKLOG).0,
                synced: watch::channel(true).0,
            }),
        }
    }

    /// As a change does that was missed.
    pub fn slip_in(&self, object: K) {
        let mut objects = self.shared.objects.write().expect("no panic before");
        objects.insert(Key::of(&object), Arc::new(object));
    }

    pub fn slip_out(&self, key: &Key) {
        let mut objects = self.shared.objects.write().expect("no panic before");
        objects.remove(key);
    }
}

impl<K> Shared<K>
where
    K: Resource + Clone,
{
    fn apply(&self, object: K) {
        let key = Key::of(&object);
        let new = Arc::new(object);
        let old = self.write().insert(key, new.clone());
        self.saw(new.as_ref());
        if old
            .as_ref()
            .is_some_and(|old| old.resource_version() == new.resource_version())
        {
            return;
        }
        // Deleted and made again while nobody watched: one is gone, and another one has come.
        let (gone, old) = match old {
            Some(old) if old.uid() != new.uid() => (Some(old), None),
            old => (None, old),
        };
        if let Some(gone) = gone {
            let _ = self.changes.send(Change::Deleted(gone));
        }
        let _ = self.changes.send(Change::Applied { old, new });
    }

    fn saw(&self, object: &K) {
        let revision = object.resource_version().and_then(|text| text.parse().ok());
        self.revision
            .fetch_max(revision.unwrap_or(0), Ordering::AcqRel);
    }

    fn delete(&self, key: &Key) {
        let old = self.write().remove(key);
        if let Some(old) = old {
            let _ = self.changes.send(Change::Deleted(old));
        }
    }

    /// Takes over a whole list: what it lacks was deleted while nobody watched.
    fn replace(&self, list: Vec<K>) {
        let listed: std::collections::HashSet<Key> = list.iter().map(Key::of).collect();
        let gone: Vec<Key> = {
            let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
            objects
                .keys()
                .filter(|key| !listed.contains(key))
                .cloned()
                .collect()
        };
        for key in &gone {
            self.delete(key);
        }
        for object in list {
            self.apply(object);
        }
        self.synced.send_replace(true);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

type Started = HashMap<(TypeId, String), Box<dyn Any + Send>>;

/// The informers of one component, started on first use.
#[derive(Clone)]
pub struct Informers {
    /// What the caches are read with.
    watching: Client,
    client: Client,
    /// By kind and field selector.
    started: Arc<Mutex<Started>>,
    config: watcher::Config,
    parts: Parts,
    /// Whose they are, for the names of the parts.
    owner: &'static str,
}

impl Informers {
    /// For a test, or for who watches nothing.
    pub fn new(client: Client) -> Self {
        Self::of("", client, Parts::default())
    }

    /// The informers of `owner`, each of them a part.
    pub fn of(owner: &'static str, client: Client, parts: Parts) -> Self {
        Self {
            watching: client.clone(),
            client,
            started: Arc::default(),
            config: watcher::Config::default().streaming_lists(),
            parts,
            owner,
        }
    }

    /// For who is in the API server's own process: a watch lasts as long as the server lets it (half an hour and
    /// more), for no connection can be lost without notice. Each new one costs as much as a dozen changes.
    pub fn beside_the_server(mut self) -> Self {
        self.config = self.config.timeout(0);
        self
    }

    /// The same caches, for somebody who does everything else with another client.
    pub fn acting_with(&self, client: Client) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How its watches are made, for who watches something else.
    pub fn watch_config(&self) -> watcher::Config {
        self.config.clone()
    }

    /// The informer of kind `K` over all namespaces. Must be called inside the runtime.
    pub fn get<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.selected("")
    }

    /// The informer of those objects only that the field selector `fields` names.
    pub fn some<K>(&self, fields: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.selected(fields)
    }

    fn selected<K>(&self, fields: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<K>(), fields.to_owned());
        if let Some(informer) = started
            .get(&key)
            .and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = self.start(fields);
        started.insert(key, Box::new(informer.clone()));
        informer
    }

    fn start<K>(&self, fields: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let shared = Arc::new(Shared {
            objects: RwLock::default(),
            revision: AtomicU64::new(0),
            changes: broadcast::channel(BACKLOG).0,
            synced: watch::channel(false).0,
        });
        let api = Api::<K>::all(self.watching.clone());
        let (config, mut name) = (
            self.config.clone(),
            format!("part/informer/{}/{}", self.owner, K::plural(&())),
        );
        let config = match fields {
            "" => config,
            fields => {
                name = format!("{name}?{fields}");
                config.fields(fields)
            }
        };
        let feeding = shared.clone();
        // It lists anew whenever it starts: what was missed meanwhile is found then.
        self.parts.start_endless(name, Policy::Restart, move || {
            run(api.clone(), config.clone(), feeding.clone())
        });
        Informer { shared }
    }
}

/// Feeds the cache; the watcher makes up for whatever fails, and has no end.
async fn run<K>(api: Api<K>, config: watcher::Config, shared: Arc<Shared<K>>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = std::pin::pin!(kube::runtime::WatchStreamExt::default_backoff(
        watcher::watcher(api, config)
    ));
    let mut listing = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object)) => shared.apply(object),
            Ok(Event::Delete(object)) => {
                shared.delete(&Key::of(&object));
                shared.saw(&object);
            }
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(object)) => listing.push(object),
            Ok(Event::InitDone) => shared.replace(std::mem::take(&mut listing)),
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch failed, will retry"),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn another_object_of_the_same_name_is_another_object() {
        let (sender, receiver) = broadcast::channel(8);
        let shared: Shared<Pod> = Shared {
            objects: RwLock::default(),
            revision: AtomicU64::new(0),
            changes: sender,
            synced: watch::channel(false).0,
        };
        let pod = |uid: &str, version: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n", "uid": uid,
                "resourceVersion": version}}),
            )
            .expect("a pod")
        };
        for (uid, version) in [("a", "1"), ("a", "2"), ("b", "3")] {
            shared.apply(pod(uid, version));
        }
        let mut changes = Changes(receiver);
        let mut seen = Vec::new();
        drop(shared);
        while let Some(change) = changes.next().await {
            let uid = |pod: &Pod| pod.uid().unwrap_or_default();
            seen.push(match change {
                Change::Applied { old, new } => {
                    format!("{:?} to {}", old.map(|old| uid(&old)), uid(&new))
                }
                Change::Deleted(old) => format!("{} gone", uid(&old)),
                Change::Resync => "resync".to_owned(),
            });
        }
        let want = ["None to a", "Some(\"a\") to a", "a gone", "None to b"];
        assert_eq!(seen, want);
    }
}
