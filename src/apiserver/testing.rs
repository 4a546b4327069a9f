//! A handful of objects in memory, for the tests of what reads objects through the seams; and a whole
//! server over a real store, whose writes a test can hold where it likes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    admission::{self, Exemptions, Late, Operation, Plugin, Request, ServiceConfig},
    objects::{Lookup, Named, Objects},
    registry::{PLAIN, Resource, Scope},
    request::User,
    start::{Config, Handle},
    status::Status,
};
use crate::{
    pki::Pki,
    store::{Guard, embedded::Embedded},
};

type Key = (String, String, String);

/// Objects by plural, namespace and name.
#[derive(Debug, Default)]
pub struct InMemory {
    objects: Mutex<BTreeMap<Key, Arc<Value>>>,
    changes: AtomicU64,
}

impl InMemory {
    pub fn put(&self, plural: &str, object: Value) {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        let key = (
            plural.to_owned(),
            text("namespace").to_owned(),
            text("name").to_owned(),
        );
        let mut objects = self.objects.lock().expect("no panic under the lock");
        objects.insert(key, Arc::new(object));
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    pub fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut objects = self.objects.lock().expect("no panic under the lock");
        objects.remove(&key).expect("it was there");
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl Lookup for InMemory {
    async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let objects = self.objects.lock().expect("no panic under the lock");
        objects.get(&key).cloned()
    }

    async fn list(&self, plural: &str, namespace: &str) -> Vec<Arc<Value>> {
        let objects = self.objects.lock().expect("no panic under the lock");
        let found = objects.iter().filter(|((kind, place, _), _)| {
            kind == plural && (namespace.is_empty() || place == namespace)
        });
        found.map(|(_, object)| object.clone()).collect()
    }

    fn changed(&self, _: &str) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

#[async_trait::async_trait]
impl Objects for InMemory {
    async fn create(&self, _: &User, plural: &str, _: &str, o: Value) -> Result<Value, Status> {
        self.put(plural, o.clone());
        Ok(o)
    }

    async fn update(
        &self,
        _: &User,
        target: Named<'_>,
        _: bool,
        change: &(dyn for<'v> Fn(&'v mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Value, Status> {
        let found = self.get(target.plural, target.namespace, target.name).await;
        let found = found.ok_or_else(|| Status::not_found("", target.plural, target.name))?;
        let mut object = (*found).clone();
        change(&mut object)?;
        self.put(target.plural, object.clone());
        Ok(object)
    }

    async fn delete(
        &self,
        _: &User,
        target: Named<'_>,
        _: Value,
        _: Vec<Guard>,
    ) -> Result<Value, Status> {
        self.remove(target.plural, target.namespace, target.name);
        Ok(Value::Null)
    }
}

/// A row with nothing of its own.
pub fn row(group: &'static str, plural: &'static str, kind: &'static str) -> Resource {
    Resource {
        group,
        version: "v1",
        kind,
        plural,
        singular: "",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        verbs: &[],
        subresources: &[],
        type_name: "",
        storage: "",
        columns: &[],
        fields: &[],
        behaviour: PLAIN,
        convert: None,
        custom: None,
    }
}

/// A whole API server without scheduler and controllers.
pub struct Server {
    pub handle: Handle,
    pub user: User,
    folder: Arc<tempfile::TempDir>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Vec::new(), Vec::new()).await
    }

    /// With plugins before and after the usual ones.
    pub async fn with(first: Vec<Arc<dyn Plugin>>, last: Vec<Arc<dyn Plugin>>) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let address = Ipv4Addr::new(10, 0, 0, 1).into();
        let handle = Self::handle(folder.path(), address, first, last).await;
        Self {
            handle: handle.expect("the server starts"),
            user: User::internal("test", &["system:masters"]),
            folder,
        }
    }

    async fn handle(
        folder: &Path,
        advertise: IpAddr,
        first: Vec<Arc<dyn Plugin>>,
        last: Vec<Arc<dyn Plugin>>,
    ) -> Result<Handle, super::start::Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store: PathBuf = folder.join("store");
        let store = Arc::new(Embedded::open(&store).unwrap());
        let pki = Pki::open(&folder.join("pki")).unwrap();
        let config = Config {
            advertise,
            port: 6443,
            services: "10.96.0.0/16".parse().unwrap(),
        };
        let services = ServiceConfig {
            cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            reserved_addresses: Vec::new(),
            node_ports: 30000..=32767,
            reserved_ports: Vec::new(),
            external_ips: admission::ExternalIps::default(),
        };
        let more = super::special::of_pods();
        let handle = Handle::new(config, store, &pki, more).await?;
        let late = Arc::new(Late::default());
        let objects: Arc<dyn Objects> = handle.server.clone();
        late.set(&objects);
        let usual = admission::chain(late, services, Exemptions::default());
        let plugins = first.into_iter().chain(usual).chain(last).collect();
        handle.start(plugins).await?;
        Ok(handle)
    }

    /// Another server on what this one has stored by now, found at another address.
    pub async fn again(&self, advertise: Ipv4Addr) -> Result<Self, String> {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let (from, to) = (self.folder.path(), folder.path());
        for part in ["store", "pki"] {
            std::fs::create_dir(to.join(part)).unwrap();
            for file in std::fs::read_dir(from.join(part)).unwrap() {
                let file = file.unwrap();
                if file.file_type().unwrap().is_file() {
                    std::fs::copy(file.path(), to.join(part).join(file.file_name())).unwrap();
                }
            }
        }
        let handle = Self::handle(to, advertise.into(), Vec::new(), Vec::new()).await;
        Ok(Self {
            handle: handle.map_err(|error| format!("{error:?}"))?,
            user: self.user.clone(),
            folder,
        })
    }

    pub async fn create(
        &self,
        plural: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status> {
        self.handle
            .server
            .create(&self.user, plural, namespace, object)
            .await
    }

    /// Through the main endpoint, or another one: `services`, `pods/status`.
    pub async fn update(
        &self,
        what: &str,
        namespace: &str,
        name: &str,
        change: impl Fn(&mut Value) + Send + Sync,
    ) -> Result<Value, Status> {
        let (plural, subresource) = what.split_once('/').unwrap_or((what, ""));
        let target = Named {
            plural,
            subresource,
            namespace,
            name,
        };
        let change = |object: &mut Value| {
            change(object);
            Ok(())
        };
        self.handle
            .server
            .update(&self.user, target, false, &change)
            .await
    }

    pub async fn delete(&self, plural: &str, name: &str) -> Result<Value, Status> {
        self.delete_in(plural, "default", name).await
    }

    pub async fn delete_in(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Value, Status> {
        let target = Named {
            plural,
            subresource: "",
            namespace,
            name,
        };
        self.handle
            .server
            .delete(&self.user, target, json!({}), Vec::new())
            .await
    }

    pub async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.handle.server.get(plural, namespace, name).await
    }
}

/// Waits for what another task brings about.
pub async fn until(what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

/// Where a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// When the plugins check an object for the last time, before its commit.
    Validation(Operation),
    /// When they hear that a changed object is stored.
    Replaced,
}

/// Holds one write of one object, until it is opened.
pub struct Gate {
    at: At,
    plural: &'static str,
    name: &'static str,
    /// How many may pass before, and whether one was held.
    passing: AtomicUsize,
    used: AtomicBool,
    came: Semaphore,
    opened: Semaphore,
}

impl Gate {
    /// Holds the first one that comes by.
    pub fn new(at: At, plural: &'static str, name: &'static str) -> Arc<Self> {
        Self::after(0, at, plural, name)
    }

    pub fn after(passing: usize, at: At, plural: &'static str, name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            at,
            plural,
            name,
            passing: AtomicUsize::new(passing),
            used: AtomicBool::new(false),
            came: Semaphore::new(0),
            opened: Semaphore::new(0),
        })
    }

    async fn hold(&self, at: At, plural: &str, name: &str) {
        let one_less = |left: usize| left.checked_sub(1);
        if (at, plural, name) == (self.at, self.plural, self.name)
            && self
                .passing
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                .is_err()
            && !self.used.swap(true, Ordering::SeqCst)
        {
            self.came.add_permits(1);
            self.opened.acquire().await.expect("never closed").forget();
        }
    }

    /// Waits until a write is held.
    pub async fn holds(&self) {
        let came = tokio::time::timeout(Duration::from_secs(10), self.came.acquire());
        came.await
            .expect("nothing came")
            .expect("never closed")
            .forget();
    }

    pub fn open(&self) {
        self.opened.add_permits(1);
    }
}

#[async_trait::async_trait]
impl Plugin for Gate {
    fn name(&self) -> &'static str {
        "Gate"
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        _object: Option<&Value>,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if request.subresource.is_none() {
            let at = At::Validation(request.operation);
            self.hold(at, request.resource.plural, request.name).await;
        }
        Ok(())
    }

    async fn replaced(&self, resource: &Resource, _old: &Value, new: &Value) {
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        self.hold(At::Replaced, resource.plural, name).await;
    }
}
