//! Admission: plugins that complete or refuse a write, each a file.
//!
//! Called by the verbs, after authorization: first every plugin's `mutate` in order, then
//! defaulting and validation, then every plugin's `validate`.

mod evaluation;
mod held;
mod late;
mod lifecycle;
mod limits;
mod matching;
mod node_restriction;
mod parts;
mod pod_security;
mod policies;
mod priority;
mod quota;
mod requester;
mod runtime_class;
mod service;
mod service_account;
mod shown;
mod signers;
mod storage;
mod tolerations;
mod webhook;
#[cfg(test)]
mod whole;

use std::sync::Arc;

use serde_json::Value;

use self::evaluation::Authority;
use super::{
    authz::Authorizer, objects::Lookup, registry::Resource, request::User, status::Status,
};
use crate::supervision::Parts;

pub use held::{Held, Reservation};
pub use late::Late;
pub use lifecycle::refusal as namespace_refusal;
pub use node_restriction::{NodeRestriction, is_label_of_cluster};
pub use pod_security::Exemptions;
pub use priority::system_classes;
pub use service::{ExternalIps, ReservedAddress, ServiceConfig};
pub use signers::CertificateSigners;

/// Every plugin in order. `objects` is set once the verbs exist, before the first request: they
/// hold the chain, and some plugins write.
pub fn chain(
    objects: Arc<Late>,
    config: ServiceConfig,
    exemptions: Exemptions,
) -> Vec<Arc<dyn Plugin>> {
    vec![
        Arc::new(lifecycle::NamespaceLifecycle),
        Arc::new(limits::LimitRanger),
        Arc::new(service_account::ServiceAccount::new(objects.clone())),
        Arc::new(tolerations::TaintNodesByCondition),
        Arc::new(priority::Priority),
        Arc::new(tolerations::DefaultTolerationSeconds),
        Arc::new(runtime_class::RuntimeClass),
        Arc::new(storage::Storage),
        Arc::new(parts::Parts),
        Arc::new(requester::CertificateRequester),
        Arc::new(service::ExternalIpsCheck::new(&config)),
        // Before the webhooks, both when they change and when they judge.
        Arc::new(policies::Policies::new(objects.clone())),
        Arc::new(webhook::Webhooks::default()),
        // Sees what all before it have made of a pod.
        Arc::new(pod_security::PodSecurity::new(exemptions)),
        // Last, so that nothing is taken for an object that another plugin refuses.
        Arc::new(service::Allocator::new(objects.clone(), config)),
        // Checks after all have validated: nothing but the commit is left to fail.
        Arc::new(quota::Quotas::new(objects)),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write under way.
pub struct Request<'a> {
    pub user: &'a User,
    pub operation: Operation,
    pub resource: &'a Resource,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    /// Empty on create with generateName.
    pub name: &'a str,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// Texts for `Warning` headers.
    pub warnings: &'a mut Vec<String>,
    pub round: &'a mut Round,
}

/// One write's way through the chain.
#[derive(Debug, Default)]
pub struct Round {
    /// What plugins took for it, and what they judged it by.
    pub held: Held,
    /// All before the webhooks, and they, are to look at changes once more.
    pub again: bool,
    /// What users have set up has changed the object in this round.
    changed: bool,
    second: bool,
    policies: policies::Rounds,
    webhooks: webhook::Rounds,
}

impl Round {
    /// The last of those who change objects for users has done so: there is a second round, once.
    fn end(&mut self) {
        if self.changed && !self.second {
            self.second = true;
            self.again = true;
        }
    }
}

/// One admission plugin.
#[async_trait::async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// May change `object` (absent on delete).
    async fn mutate(
        &self,
        _request: &mut Request<'_>,
        _object: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(
        &self,
        _request: &mut Request<'_>,
        _object: Option<&Value>,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Whether it does what users of the cluster have set up, which the server's own start must not
    /// depend on.
    fn is_policy(&self) -> bool {
        false
    }

    /// The cluster's authorizer, before the first request.
    fn authorizer(&self, _authorizer: &Arc<Authorizer>) {}

    /// All that every cluster has is there: begins what the plugin does by itself, as parts of the daemon.
    fn started(&self, _parts: &Parts) {}

    /// After an object was deleted: gives back what was taken for it (an address, a port).
    async fn deleted(&self, _resource: &Resource, _object: &Value) {}

    /// After a new object was stored.
    async fn created(&self, _resource: &Resource, _object: &Value) {}

    /// After `new` was stored over `old`: gives back what only `old` had.
    async fn replaced(&self, _resource: &Resource, _old: &Value, _new: &Value) {}
}

impl Request<'_> {
    /// Whether this is `operation` on the main endpoint of `plural` in `group`.
    fn is(&self, operation: Operation, group: &str, plural: &str) -> bool {
        self.operation == operation
            && self.subresource.is_none()
            && self.resource.group == group
            && self.resource.plural == plural
    }

    /// 403: `pods "x" is forbidden: why`.
    fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(self.resource.group, self.resource.plural, self.name, why)
    }
}

#[cfg(test)]
mod testing {
    //! A chain's surroundings in memory.

    use std::{
        collections::BTreeMap,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use serde_json::{Value, json};

    use super::*;
    use crate::apiserver::{
        objects::{Named, Objects},
        registry::kinds,
    };

    pub fn row(plural: &str) -> &'static Resource {
        kinds::ALL
            .iter()
            .find(|row| row.plural == plural)
            .expect("a known plural")
    }

    type Key = (String, String, String);

    /// The objects, and how many have been read.
    #[derive(Default)]
    pub struct Memory(pub Mutex<BTreeMap<Key, Arc<Value>>>, pub AtomicUsize);

    impl Memory {
        pub fn with(objects: &[(&str, Value)]) -> Arc<Self> {
            let memory = Self::default();
            for (plural, object) in objects {
                memory.put(plural, object.clone());
            }
            Arc::new(memory)
        }

        pub fn put(&self, plural: &str, object: Value) {
            let text = |name: &str| {
                object["metadata"][name]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let key = (plural.to_owned(), text("namespace"), text("name"));
            self.0.lock().unwrap().insert(key, Arc::new(object));
        }

        /// Gives it a revision that nothing else has.
        fn number(&self, object: &mut Value) {
            static LAST: AtomicUsize = AtomicUsize::new(0);
            let revision = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            object["metadata"]["resourceVersion"] = revision.to_string().into();
        }

        pub fn late(self: &Arc<Self>) -> Arc<Late> {
            let late = Arc::new(Late::default());
            let objects: Arc<dyn Objects> = self.clone();
            late.set(&objects);
            late
        }
    }

    fn key(plural: &str, namespace: &str, name: &str) -> Key {
        (plural.to_owned(), namespace.to_owned(), name.to_owned())
    }

    #[async_trait::async_trait]
    impl Lookup for Memory {
        async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0
                .lock()
                .unwrap()
                .get(&key(plural, namespace, name))
                .cloned()
        }

        async fn list(&self, plural: &str, namespace: &str) -> Vec<Arc<Value>> {
            let all = self.0.lock().unwrap();
            let found: Vec<Arc<Value>> = all
                .iter()
                .filter(|((kind, place, _), _)| {
                    kind == plural && (namespace.is_empty() || place == namespace)
                })
                .map(|(_, object)| object.clone())
                .collect();
            self.1.fetch_add(found.len(), Ordering::Relaxed);
            found
        }

        fn changed(&self, _plural: &str) -> u64 {
            0
        }
    }

    #[async_trait::async_trait]
    impl Objects for Memory {
        async fn create(
            &self,
            _user: &User,
            plural: &str,
            namespace: &str,
            mut object: Value,
        ) -> Result<Value, Status> {
            if !namespace.is_empty() {
                object["metadata"]["namespace"] = namespace.into();
            }
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if self.get(plural, namespace, &name).await.is_some() {
                return Err(Status::already_exists("", plural, &name));
            }
            object["metadata"]["creationTimestamp"] = jiff::Timestamp::now().to_string().into();
            self.number(&mut object);
            self.put(plural, object.clone());
            Ok(object)
        }

        async fn update(
            &self,
            _user: &User,
            target: Named<'_>,
            _trusted: bool,
            change: &(dyn for<'v> Fn(&'v mut Value) -> Result<(), Status> + Send + Sync),
        ) -> Result<Value, Status> {
            let old = self.get(target.plural, target.namespace, target.name).await;
            let old = old.ok_or_else(|| Status::not_found("", target.plural, target.name))?;
            let mut new = (*old).clone();
            change(&mut new)?;
            if new != *old {
                self.number(&mut new);
            }
            self.put(target.plural, new.clone());
            Ok(new)
        }

        async fn delete(
            &self,
            _user: &User,
            target: Named<'_>,
            _options: Value,
            _guards: Vec<crate::store::Guard>,
        ) -> Result<Value, Status> {
            let gone =
                self.0
                    .lock()
                    .unwrap()
                    .remove(&key(target.plural, target.namespace, target.name));
            gone.map(|_| json!({}))
                .ok_or_else(|| Status::not_found("", target.plural, target.name))
        }
    }

    /// Runs one plugin's `mutate` and `validate` on a create or update, which then is stored unless they
    /// refuse it.
    pub async fn admit(
        plugin: &dyn Plugin,
        memory: &Memory,
        plural: &str,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let (user, mut warnings) = (User::default(), Vec::new());
        let mut round = Round::default();
        let metadata = object["metadata"].clone();
        let mut request = Request {
            user: &user,
            operation: if old.is_some() {
                Operation::Update
            } else {
                Operation::Create
            },
            resource: row(plural),
            subresource: None,
            namespace: metadata["namespace"].as_str().unwrap_or_default(),
            name: metadata["name"].as_str().unwrap_or_default(),
            old,
            dry_run: false,
            warnings: &mut warnings,
            round: &mut round,
        };
        let mut admitted = plugin.mutate(&mut request, object, memory).await;
        if admitted.is_ok() {
            admitted = plugin.validate(&mut request, Some(object), memory).await;
        }
        round.held.settle(admitted.is_ok()).await;
        admitted
    }
}
