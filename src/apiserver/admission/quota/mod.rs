//! ResourceQuota: what a namespace may use together, and the status that says what it uses.
//!
//! A write takes what it needs from `status.used` by compare-and-swap, before it is committed, so
//! that two writes never share the last of something, also with several servers. What was taken
//! in vain, and what a deletion gives back, is found by counting again: after each change in a
//! namespace with quotas, one count at a time for each namespace, and now and then in all of them.
//! Always true: objects under way to the store, new ones and changed ones, are part of every count,
//! and in a namespace either something is taken or something is counted. (With several servers a
//! count does not know what the others have under way.)

mod usage;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use proto::quantity::Quantity;
use serde_json::{Map, Value};

use self::usage::{Amounts, add, in_scope};
use super::{Late, Operation, Plugin, Request, Reservation};
use crate::apiserver::{
    objects::{Lookup, Named, Objects},
    registry::{
        Resource, Scope,
        kinds::value::{members, set, text},
    },
    request::User,
    status::{Reason, Status, qualified},
};
use crate::{
    supervision::{Parts, Policy, caught},
    ticks,
};

const QUOTAS: &str = "resourcequotas";
/// As the original, in case a count failed or a change was missed.
const COUNT_EVERY: Duration = Duration::from_secs(300);

pub struct Quotas {
    shared: Arc<Shared>,
}

struct Shared {
    objects: Arc<Late>,
    state: Mutex<State>,
    /// One for each namespace that has had a quota: held while taking and while counting.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    /// Admitted and not yet stored: new objects, and what others are to become.
    under_way: HashMap<u64, (Resource, Value)>,
    /// The number of the next one.
    next: u64,
    /// Namespaces being counted; true: something changed since the count began.
    counting: HashMap<String, bool>,
}

/// A write's share of the quotas of its namespace: part of every count from when it was taken until it
/// is stored or given up.
struct Share {
    shared: Arc<Shared>,
    number: u64,
    namespace: String,
}

#[async_trait::async_trait]
impl Reservation for Share {
    async fn keep(self: Box<Self>) {
        // Who hears that it is stored counts again.
        self.shared.state().under_way.remove(&self.number);
    }

    async fn give_back(self: Box<Self>) {
        self.shared.state().under_way.remove(&self.number);
        self.shared.clone().count_soon(&self.namespace);
    }
}

impl Quotas {
    pub fn new(objects: Arc<Late>) -> Self {
        Self {
            shared: Arc::new(Shared {
                objects,
                state: Mutex::default(),
                locks: Mutex::default(),
            }),
        }
    }

    /// Counts again if the namespace has quotas.
    async fn changed(&self, object: &Value) {
        let namespace = text(object, "metadata.namespace");
        let Ok(objects) = self.shared.objects.get() else {
            return;
        };
        if !namespace.is_empty() && !objects.list(QUOTAS, namespace).await.is_empty() {
            self.shared.clone().count_soon(namespace);
        }
    }
}

#[async_trait::async_trait]
impl Plugin for Quotas {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn is_policy(&self) -> bool {
        true
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let (Some(object), None) = (object, request.subresource) else {
            return Ok(());
        };
        if !matches!(request.operation, Operation::Create | Operation::Update)
            || request.namespace.is_empty()
            || request.resource.storage == "events"
            // Bindings and the like are not kept.
            || !request.resource.verbs.contains(&"get")
        {
            return Ok(());
        }
        let quotas = lookup.list(QUOTAS, request.namespace).await;
        if quotas.is_empty() {
            return Ok(());
        }
        let lock = self.shared.lock(request.namespace);
        let _taking = lock.lock().await;
        // Again, now that nobody else takes or counts.
        let quotas = lookup.list(QUOTAS, request.namespace).await;
        let mut delta = usage::of(request.resource, object);
        if let Some(old) = request.old {
            for (name, before) in usage::of(request.resource, old) {
                let now = delta.entry(name).or_insert_with(|| Quantity::from_value(0));
                *now -= before;
            }
        }
        let grows = delta
            .values()
            .any(|amount| !amount.is_zero() && !amount.is_negative());
        let enters = request.old.is_some_and(|old| {
            quotas.iter().any(|quota| {
                in_scope(quota, request.resource, object) && !in_scope(quota, request.resource, old)
            })
        });
        if !grows && !enters {
            return Ok(());
        }
        // Held before anything is taken, so that also what a refusal leaves taken is counted again.
        let share = self.shared.share(request.namespace);
        let number = share.number;
        if !request.dry_run {
            request.round.held.take(share);
        }
        for quota in quotas {
            if !in_scope(&quota, request.resource, object) {
                continue;
            }
            let was_in = request
                .old
                .is_none_or(|old| in_scope(&quota, request.resource, old));
            let delta = match was_in {
                true => delta.clone(),
                false => usage::of(request.resource, object),
            };
            self.take(request, object, &quota, &delta).await?;
        }
        if !request.dry_run {
            let admitted = (request.resource.clone(), object.clone());
            self.shared.state().under_way.insert(number, admitted);
        }
        Ok(())
    }

    fn started(&self, parts: &Parts) {
        let shared = Arc::downgrade(&self.shared);
        parts.start_endless("part/resource-quota", Policy::Restart, move || {
            let shared = shared.clone();
            async move {
                count_now_and_then(shared, COUNT_EVERY).await;
                std::future::pending().await // there is no server
            }
        });
    }

    async fn created(&self, resource: &Resource, object: &Value) {
        if resource.scope == Scope::Namespaced && resource.storage != "events" {
            self.changed(object).await;
        }
    }

    async fn replaced(&self, resource: &Resource, _old: &Value, new: &Value) {
        if resource.scope == Scope::Namespaced && resource.storage != "events" {
            self.changed(new).await;
        }
    }

    async fn deleted(&self, resource: &Resource, object: &Value) {
        if resource.scope == Scope::Namespaced && resource.storage != "events" {
            self.changed(object).await;
        }
    }
}

/// Counts in every namespace that has quotas, until the plugin is gone.
async fn count_now_and_then(shared: Weak<Shared>, every: Duration) {
    loop {
        ticks::sleep(every).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let Ok(objects) = shared.objects.get() else {
            return;
        };
        let quotas = objects.list(QUOTAS, "").await;
        let namespaces = quotas.iter().map(|quota| text(quota, "metadata.namespace"));
        for namespace in namespaces.collect::<BTreeSet<_>>() {
            shared.clone().count_soon(namespace);
        }
    }
}

fn key(row: &Resource) -> (&str, &str, &str) {
    (row.group, row.version, row.plural)
}

impl Quotas {
    /// Takes `delta` from one quota, or says what there is not enough of.
    async fn take(
        &self,
        request: &Request<'_>,
        object: &Value,
        quota: &Value,
        delta: &Amounts,
    ) -> Result<(), Status> {
        let hard = amounts(quota, "spec.hard");
        let name = text(quota, "metadata.name").to_owned();
        if request.operation == Operation::Create
            && request.resource.group.is_empty()
            && request.resource.plural == "pods"
        {
            let names: Vec<String> = hard.keys().cloned().collect();
            let unsaid = usage::unsaid(&names, object);
            if !unsaid.is_empty() {
                return Err(
                    request.forbidden(&format!("failed quota: {name}: must specify {unsaid}"))
                );
            }
        }
        let wanted: Amounts = delta
            .iter()
            // What becomes free is free once that is stored.
            .filter(|(name, amount)| {
                hard.contains_key(*name) && !amount.is_zero() && !amount.is_negative()
            })
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if amounts(quota, "status.hard") != hard {
            // Not counted yet.
            self.shared.count_locked(request.namespace).await?;
        }
        let change = |quota: &mut Value| {
            let mut used = amounts(quota, "status.used");
            if let Some(why) = refusal(&hard, &used, &wanted) {
                return Err(request.forbidden(&format!("exceeded quota: {name}, {why}")));
            }
            add(&mut used, &wanted);
            set(quota, "status.used", written(&used));
            Ok(())
        };
        if request.dry_run {
            return change(&mut quota.clone());
        }
        let objects = self.shared.objects.get()?;
        let target = named(request.namespace, &name);
        match objects.update(&user(), target, true, &change).await {
            // Deleted meanwhile: it limits nobody.
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

/// Why `wanted` does not fit.
fn refusal(hard: &Amounts, used: &Amounts, wanted: &Amounts) -> Option<String> {
    let zero = Quantity::from_value(0);
    let over: Vec<&String> = wanted
        .iter()
        .filter(|(name, amount)| {
            let sum = used.get(*name).copied().unwrap_or(zero) + **amount;
            !amount.is_negative() && hard.get(*name).is_some_and(|hard| sum > *hard)
        })
        .map(|(name, _)| name)
        .collect();
    let words = |of: &Amounts| {
        let parts: Vec<String> = over
            .iter()
            .map(|name| format!("{name}={}", of.get(*name).copied().unwrap_or(zero)))
            .collect();
        parts.join(",")
    };
    (!over.is_empty()).then(|| {
        format!(
            "requested: {}, used: {}, limited: {}",
            words(wanted),
            words(used),
            words(hard)
        )
    })
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(self: &Arc<Self>, namespace: &str) -> Share {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        Share {
            shared: self.clone(),
            number,
            namespace: namespace.to_owned(),
        }
    }

    fn count_soon(self: Arc<Self>, namespace: &str) {
        {
            let mut state = self.state();
            if let Some(again) = state.counting.get_mut(namespace) {
                *again = true;
                return;
            }
            state.counting.insert(namespace.to_owned(), false);
        }
        let namespace = namespace.to_owned();
        tokio::spawn(async move {
            loop {
                match caught(self.count(&namespace)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(status)) => {
                        tracing::debug!(%status, namespace, "quotas not counted");
                    }
                    Err(panic) => tracing::error!(%panic, namespace, "quotas not counted"),
                }
                let mut state = self.state();
                match state.counting.get_mut(&namespace) {
                    Some(again) if *again => *again = false,
                    _ => {
                        state.counting.remove(&namespace);
                        return;
                    }
                }
            }
        });
    }

    fn lock(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(namespace.to_owned()).or_default().clone()
    }

    /// Writes what every quota of the namespace limits and what is used of it.
    async fn count(&self, namespace: &str) -> Result<(), Status> {
        let lock = self.lock(namespace);
        let _counting = lock.lock().await;
        self.count_locked(namespace).await
    }

    /// The namespace's lock is held.
    async fn count_locked(&self, namespace: &str) -> Result<(), Status> {
        let objects = self.objects.get()?;
        for quota in objects.list(QUOTAS, namespace).await {
            let hard = amounts(&quota, "spec.hard");
            let used = self.used(&*objects, &quota, namespace, &hard).await;
            let limits = quota["spec"]["hard"].clone();
            let change = |quota: &mut Value| {
                // One with another specification is counted after that change.
                if quota["spec"]["hard"] == limits {
                    set(quota, "status.hard", limits.clone());
                    set(quota, "status.used", written(&used));
                }
                Ok(())
            };
            let target = named(namespace, text(&quota, "metadata.name"));
            match objects.update(&user(), target, true, &change).await {
                Err(status) if status.reason != Reason::NotFound => return Err(status),
                _ => {}
            }
        }
        Ok(())
    }

    async fn used(
        &self,
        objects: &dyn Objects,
        quota: &Value,
        namespace: &str,
        hard: &Amounts,
    ) -> Amounts {
        let mut used: Amounts = hard
            .keys()
            .map(|name| (name.clone(), Quantity::from_value(0)))
            .collect();
        for row in counted_rows(objects, hard) {
            // First what is under way: what is committed in between is then in both, and counted
            // once. Of each object the most that it is or may become.
            let mut forms: Vec<Arc<Value>> = self
                .state()
                .under_way
                .values()
                .filter(|(of, object)| {
                    key(of) == key(row) && text(object, "metadata.namespace") == namespace
                })
                .map(|(_, object)| Arc::new(object.clone()))
                .collect();
            let plural = qualified(row.group, row.plural);
            forms.extend(objects.list(&plural, namespace).await);
            let mut most: HashMap<&str, Amounts> = HashMap::new();
            for object in forms.iter().filter(|object| in_scope(quota, row, object)) {
                let mut own = usage::of(row, object);
                own.retain(|name, _| hard.contains_key(name));
                let most = most.entry(text(object, "metadata.uid")).or_default();
                usage::raise(most, &own);
            }
            for own in most.values() {
                add(&mut used, own);
            }
        }
        used
    }
}

/// The kinds whose objects these limits are about.
fn counted_rows(objects: &dyn Objects, hard: &Amounts) -> Vec<&'static Resource> {
    let plural = |name: &str| match name.strip_prefix("count/") {
        Some(plural) => plural.to_owned(),
        None if name.starts_with("services") => "services".to_owned(),
        None if name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/") => {
            "persistentvolumeclaims".to_owned()
        }
        None => match name {
            "configmaps"
            | "persistentvolumeclaims"
            | "replicationcontrollers"
            | QUOTAS
            | "secrets" => name.to_owned(),
            _ => "pods".to_owned(),
        },
    };
    let mut plurals: Vec<String> = hard.keys().map(|name| plural(name)).collect();
    plurals.sort();
    plurals.dedup();
    plurals
        .iter()
        .filter_map(|plural| objects.row(plural))
        .collect()
}

fn amounts(quota: &Value, path: &str) -> Amounts {
    members(quota, path)
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| {
            let text = match amount {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            Some((name.clone(), Quantity::parse(&text).ok()?))
        })
        .collect()
}

fn written(amounts: &Amounts) -> Value {
    let map: Map<String, Value> = amounts
        .iter()
        .map(|(name, amount)| (name.clone(), amount.to_string().into()))
        .collect();
    Value::Object(map)
}

fn named<'a>(namespace: &'a str, name: &'a str) -> Named<'a> {
    Named {
        plural: QUOTAS,
        subresource: "status",
        namespace,
        name,
    }
}

fn user() -> User {
    User::internal("system:apiserver", &["system:masters"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::{admission::testing, testing::until};

    #[tokio::test]
    async fn the_last_one_is_taken_once() {
        let quota = json!({"metadata": {"name": "q", "namespace": "n"},
            "spec": {"hard": {"pods": "1", "limits.cpu": "1"}}});
        let memory = testing::Memory::with(&[(QUOTAS, quota)]);
        let plugin = Quotas::new(memory.late());
        let pod = |uid: &str, cpu: &str| {
            json!({"metadata": {"name": uid, "namespace": "n", "uid": uid},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": cpu}}}]}})
        };
        let silent = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c"}]}});
        for (mut object, want) in [
            (
                silent,
                Some("pods \"p\" is forbidden: failed quota: q: must specify limits.cpu for: c"),
            ),
            (
                pod("big", "2"),
                Some(
                    "pods \"big\" is forbidden: exceeded quota: q, requested: limits.cpu=2, used: limits.cpu=0, limited: limits.cpu=1",
                ),
            ),
            (pod("a", "1"), None),
            (
                pod("b", "500m"),
                Some(
                    "pods \"b\" is forbidden: exceeded quota: q, requested: limits.cpu=500m,pods=1, used: limits.cpu=1,pods=1, limited: limits.cpu=1,pods=1",
                ),
            ),
        ] {
            let got = testing::admit(&plugin, &memory, "pods", &mut object, None).await;
            if got.is_ok() {
                memory.put("pods", object);
            }
            assert_eq!(
                got.err().map(|status| status.message),
                want.map(str::to_owned)
            );
        }
        plugin.shared.count("n").await.unwrap();
        let quota = memory.get(QUOTAS, "n", "q").await.unwrap();
        assert_eq!(
            quota["status"],
            json!({"hard": {"pods": "1", "limits.cpu": "1"}, "used": {"pods": "1", "limits.cpu": "1"}})
        );
        // Counted while it is on its way to the store: a new pod, and what the other is to become.
        let mut shares = Vec::new();
        for pod in [pod("c", "1"), pod("a", "3")] {
            let share = plugin.shared.share("n");
            let admitted = (testing::row("pods").clone(), pod);
            let under_way = &mut plugin.shared.state().under_way;
            under_way.insert(share.number, admitted);
            shares.push(share);
        }
        plugin.shared.count("n").await.unwrap();
        let quota = memory.get(QUOTAS, "n", "q").await.unwrap();
        assert_eq!(
            quota["status"]["used"],
            json!({"pods": "2", "limits.cpu": "4"})
        );
        for share in shares {
            Box::new(share).give_back().await;
        }
        plugin.shared.count("n").await.unwrap();
        let quota = memory.get(QUOTAS, "n", "q").await.unwrap();
        assert_eq!(
            quota["status"]["used"],
            json!({"pods": "1", "limits.cpu": "1"})
        );
    }

    #[tokio::test]
    async fn what_nobody_told_is_counted_all_the_same() {
        let quota = json!({"metadata": {"name": "q", "namespace": "n"},
            "spec": {"hard": {"pods": "5"}}, "status": {"hard": {"pods": "5"}, "used": {"pods": "4"}}});
        let memory = testing::Memory::with(&[(QUOTAS, quota)]);
        let plugin = Quotas::new(memory.late());
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}});
        memory.put("pods", pod);
        let used = async || {
            let quota = memory.get(QUOTAS, "n", "q").await.unwrap();
            text(&quota, "status.used.pods").to_owned()
        };
        assert_eq!(used().await, "4");
        let shared = Arc::downgrade(&plugin.shared);
        tokio::spawn(count_now_and_then(shared, Duration::from_millis(5)));
        until("it is counted", async || used().await == "1").await;
    }
}
