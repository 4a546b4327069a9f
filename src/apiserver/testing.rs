//! A handful of objects in memory, for the tests of what reads objects through the seams.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;

use super::{
    objects::{Lookup, Named, Objects},
    registry::{PLAIN, Resource, Scope},
    request::User,
    status::Status,
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

    async fn delete(&self, _: &User, target: Named<'_>, _: Value) -> Result<Value, Status> {
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
