//! Config maps and secrets in use by this node's pods: each fetched once, then watched alone.
//!
//! A node may see only what its pods refer to, hence no informer of all of them. A watch lives as
//! long as a pod uses the object; an immutable object is not watched.
//! Always true: whoever was released uses nothing afterwards, whatever was on its way.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;

use super::user::{Changes, User};
use crate::{
    backoff::Backoff,
    supervision::{hooks, outlast},
};

/// The server ends a watch after this long; a new one goes on where it ended.
const WATCH_SECONDS: u32 = 290;
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MOST: Duration = Duration::from_secs(30);
/// By which tests order a failure of one.
const FOLLOWERS: &str = "volume-objects";

pub type Data = BTreeMap<String, Vec<u8>>;
/// `None`: there is no such object.
pub type Value = Option<Arc<Data>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    kind: Kind,
    namespace: String,
    name: String,
}

impl Key {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// An object that is keys and bytes.
trait Content: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static {
    fn data(self) -> Data;
    fn is_immutable(&self) -> bool;
}

impl Content for ConfigMap {
    fn data(self) -> Data {
        let text = self
            .data
            .into_iter()
            .flatten()
            .map(|(key, text)| (key, text.into_bytes()));
        let binary = self
            .binary_data
            .into_iter()
            .flatten()
            .map(|(key, bytes)| (key, bytes.0));
        text.chain(binary).collect()
    }

    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Content for Secret {
    fn data(self) -> Data {
        let data = self.data.into_iter().flatten();
        data.map(|(key, bytes)| (key, bytes.0)).collect()
    }

    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    /// Locked before `users` of an entry.
    entries: Arc<Mutex<HashMap<Key, Arc<Entry>>>>,
    changes: Changes,
}

#[derive(Default)]
struct Entry {
    /// By UID.
    users: Mutex<HashMap<String, User>>,
    /// `None` until fetched.
    value: Mutex<Option<Value>>,
    /// One fetch at a time; the others wait for its result.
    fetching: tokio::sync::Mutex<()>,
    watch: Mutex<Option<AbortHandle>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(watch) = lock(&self.watch).take() {
            watch.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Objects {
    pub fn new(client: Client, changes: Changes) -> Self {
        Self {
            client,
            entries: Arc::default(),
            changes,
        }
    }

    /// What the object holds now. From here on the user hears of its changes, until released.
    pub async fn get(&self, key: &Key, user: &User) -> Result<Value, String> {
        let entry = self.entry(key, user)?;
        if let Some(value) = lock(&entry.value).clone() {
            return Ok(value);
        }
        let _one_at_a_time = entry.fetching.lock().await;
        if let Some(value) = lock(&entry.value).clone() {
            return Ok(value);
        }
        match key.kind {
            Kind::ConfigMap => self.fetch::<ConfigMap>(key, &entry, self.api(key)).await,
            Kind::Secret => self.fetch::<Secret>(key, &entry, self.api(key)).await,
        }
    }

    fn entry(&self, key: &Key, user: &User) -> Result<Arc<Entry>, String> {
        let mut entries = lock(&self.entries);
        // Looked at while the entries are held, which its release waits for.
        if user.is_released() {
            return Err("the pod's volumes are released".into());
        }
        let entry = entries.entry(key.clone()).or_default().clone();
        lock(&entry.users).insert(user.uid().to_owned(), user.clone());
        Ok(entry)
    }

    /// The user, which is marked as released, uses nothing any more.
    pub fn release(&self, user: &User) {
        lock(&self.entries).retain(|_, entry| {
            let mut users = lock(&entry.users);
            users.remove(user.uid());
            !users.is_empty()
        });
    }

    fn api<K>(&self, key: &Key) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    async fn fetch<K: Content>(
        &self,
        key: &Key,
        entry: &Arc<Entry>,
        api: Api<K>,
    ) -> Result<Value, String> {
        let (found, revision) = list(&api, &key.name)
            .await
            .map_err(|error| error.to_string())?;
        let finished = found.as_ref().is_some_and(Content::is_immutable);
        let value = found.map(|object| Arc::new(object.data()));
        *lock(&entry.value) = Some(value.clone());
        if !finished {
            let follower = Follower {
                api,
                name: key.name.clone(),
                entry: Arc::downgrade(entry),
                changes: self.changes.clone(),
                revision,
            };
            *lock(&entry.watch) = Some(tokio::spawn(follower.keep()).abort_handle());
        }
        Ok(value)
    }
}

/// The object, if it exists, and the revision to watch from.
async fn list<K: Content>(api: &Api<K>, name: &str) -> kube::Result<(Option<K>, String)> {
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = api.list(&params).await?;
    let revision = found.metadata.resource_version.clone().unwrap_or_default();
    Ok((found.items.into_iter().next(), revision))
}

/// Watches one object.
struct Follower<K> {
    api: Api<K>,
    name: String,
    entry: Weak<Entry>,
    changes: Changes,
    revision: String,
}

/// Why a watch ended.
enum End {
    /// As servers do now and then: go on from where it was.
    Closed,
    /// Something may have been missed.
    Gap,
    /// Nobody uses the object, or it cannot change any more.
    Finished,
}

impl<K: Content> Follower<K> {
    /// Until nobody uses the object.
    async fn keep(self) {
        let name = format!("watching {}", self.name);
        let follower = tokio::sync::Mutex::new(self);
        let mut again = false;
        outlast(&name, Backoff::new(WAIT_FIRST, WAIT_MOST), || {
            let again = std::mem::replace(&mut again, true);
            let follower = &follower;
            async move { follower.lock().await.run(again).await }
        })
        .await;
    }

    /// `again`: after a panic, with which a change may have been lost.
    async fn run(&mut self, again: bool) {
        let mut wait = WAIT_FIRST;
        let mut gap = again;
        loop {
            let began = Instant::now();
            let ended = match std::mem::take(&mut gap) {
                true => End::Gap,
                false => self.watch().await,
            };
            match ended {
                End::Finished => return,
                // A server that only ever closes must not be asked without end.
                End::Closed if began.elapsed() >= WAIT_FIRST => {
                    wait = WAIT_FIRST;
                    continue;
                }
                End::Closed | End::Gap => {}
            }
            loop {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(WAIT_MOST);
                match list(&self.api, &self.name).await {
                    Ok((found, revision)) => {
                        self.revision = revision;
                        if self.put(found).is_break() {
                            return;
                        }
                        break;
                    }
                    Err(error) => tracing::debug!(object = self.name, %error, "list"),
                }
            }
        }
    }

    async fn watch(&mut self) -> End {
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", self.name))
            .timeout(WATCH_SECONDS);
        let stream = match self.api.watch(&params, &self.revision).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(object = self.name, %error, "watch");
                return End::Gap;
            }
        };
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            hooks::provoked(FOLLOWERS).await;
            let object = match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    self.revision = object.resource_version().unwrap_or_default();
                    Some(object)
                }
                Ok(WatchEvent::Deleted(object)) => {
                    self.revision = object.resource_version().unwrap_or_default();
                    None
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    self.revision = bookmark.metadata.resource_version;
                    continue;
                }
                Ok(WatchEvent::Error(_)) | Err(_) => return End::Gap,
            };
            if self.put(object).is_break() {
                return End::Finished;
            }
        }
        End::Closed
    }

    /// Takes over what is there now, and tells the pods if it is something else than before.
    fn put(&self, object: Option<K>) -> std::ops::ControlFlow<()> {
        let Some(entry) = self.entry.upgrade() else {
            return std::ops::ControlFlow::Break(());
        };
        let finished = object.as_ref().is_some_and(Content::is_immutable);
        let value = object.map(|object| Arc::new(object.data()));
        let changed = {
            let mut held = lock(&entry.value);
            let changed = held.as_ref() != Some(&value);
            *held = Some(value);
            changed
        };
        if changed {
            lock(&entry.users)
                .values()
                .for_each(|user| self.changes.tell(user));
        }
        match finished {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        }
    }
}
