//! Keeps the rows of custom resources what their definitions say, and the definitions' status
//! true; empties what belongs to a definition that is being deleted.
//!
//! Started by [`super::start::Handle::start`], before anyone is served; follows the cache.
//! Always true: a definition says Established only after its rows are served.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    cache::{self, Object},
    metadata::now,
    objects::{Lookup, Named, Objects},
    registry::{
        Resource, custom,
        kinds::{
            self,
            groups::apiextensions::CLEANUP,
            value::{items, set, text, texts},
        },
    },
    server::ApiServer,
    start::own_user,
    status::Reason,
    verbs,
    write::Writing,
};
use crate::{
    backoff::Backoff,
    store::Revision,
    supervision::{Parts, Policy},
};

const PLURAL: &str = "customresourcedefinitions.apiextensions.k8s.io";
const STORAGE: &str = "customresourcedefinitions";
/// The check of what follows the definitions, as the original names it.
const PART: &str = "poststarthook/start-apiextensions-controllers";

/// Between tries to delete what belongs to a definition: somebody's webhook may refuse that for long.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Requests that began with the rows of a definition as it was before a change may go on that long.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// A definition without what is large, as of a revision.
type AsRead = (Revision, Arc<Value>);

pub struct Keeper {
    server: Weak<ApiServer>,
    /// What was read of each definition, by key: all but what is large.
    read: Mutex<HashMap<Arc<str>, AsRead>>,
    /// Rows made, by the definition's uid.
    made: Mutex<HashMap<String, Made>>,
    /// Rows of definitions that are gone, and since when: watchers still hear of their last objects.
    gone: Mutex<Made>,
    /// Definitions whose objects are being deleted, by uid, with why that did not work the last time.
    emptying: Mutex<HashMap<String, Option<String>>>,
}

/// The rows of one definition.
#[derive(Default)]
struct Made {
    /// Generation and names that they were made of.
    of: String,
    rows: Vec<&'static Resource>,
    /// Those of before, and when they were replaced.
    former: Vec<(Instant, &'static Resource)>,
}

impl Made {
    /// Has the other's rows too, as those of before.
    fn take_over(&mut self, other: &mut Self, now: Instant) {
        let rows = std::mem::take(&mut other.rows).into_iter();
        self.former.extend(rows.map(|row| (now, row)));
        self.former.append(&mut other.former);
    }

    /// Lets go of what is large of rows that nobody may use any more.
    fn tidy(&mut self, now: Instant) {
        self.former.retain(|(since, row)| {
            let late = now.saturating_duration_since(*since) >= UNDER_WAY;
            if late {
                retire(row);
            }
            !late
        });
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let former = self.former.iter().map(|(_, row)| row);
        for row in self.rows.iter().chain(former) {
            retire(row);
        }
    }
}

fn retire(row: &Resource) {
    if let Some(custom) = row.custom {
        custom.retire();
    }
}

impl Keeper {
    /// Reads all definitions; from then on follows them until the server is gone.
    pub async fn start(server: &Arc<ApiServer>, parts: &Parts) {
        let keeper = Arc::new(Self {
            server: Arc::downgrade(server),
            read: Mutex::default(),
            made: Mutex::default(),
            gone: Mutex::default(),
            emptying: Mutex::default(),
        });
        let mut changes = server.cache.kind(STORAGE).changes();
        changes.borrow_and_update();
        keeper.refresh(server).await;
        let mut first = true;
        parts.start_endless(PART, Policy::Restart, move || {
            if !std::mem::take(&mut first) {
                changes.mark_changed(); // the change that it failed at
            }
            keeper.clone().follow(changes.clone())
        });
    }

    async fn follow(self: Arc<Self>, mut changes: watch::Receiver<Revision>) {
        loop {
            let former = self.made().values().any(|made| !made.former.is_empty())
                || !self.gone().former.is_empty();
            tokio::select! {
                changed = changes.changed() => {
                    let Some(server) = self.server.upgrade().filter(|_| changed.is_ok()) else {
                        break;
                    };
                    self.refresh(&server).await;
                }
                () = tokio::time::sleep(UNDER_WAY), if former => {}
            }
            let now = Instant::now();
            for made in self.made().values_mut() {
                made.tidy(now);
            }
            self.gone().tidy(now);
        }
        std::future::pending().await // there is no server
    }

    async fn refresh(self: &Arc<Self>, server: &Arc<ApiServer>) {
        server.cache.caught_up().await;
        let stored = server.cache.kind(STORAGE);
        let objects = stored.list(&cache::key(STORAGE, "", ""), "");
        let definitions = self.read(&objects);
        let verdicts = judge(&definitions);
        let mut rows = Vec::new();
        let mut held = HashSet::new();
        for (definition, object) in definitions.iter().zip(&objects) {
            let uid = text(definition, "metadata.uid").to_owned();
            let mut next = (**definition).clone();
            apply(&mut next, verdicts.get(&uid), self.failure(&uid).as_deref());
            if is_established(&next) {
                rows.extend(self.rows(&uid, &next, object));
            }
            held.insert(uid);
        }
        let same = {
            let before = server.rows.all();
            let custom: Vec<_> = before.iter().filter(|row| row.custom.is_some()).collect();
            custom.len() == rows.len()
                && custom.iter().zip(&rows).all(|(a, b)| std::ptr::eq(**a, *b))
        };
        if !same {
            server.rows.set(rows);
        }
        self.forget(server, &held);
        for definition in &definitions {
            let name = text(definition, "metadata.name");
            let uid = text(definition, "metadata.uid");
            let verdict = verdicts.get(uid);
            let mut next = (**definition).clone();
            apply(&mut next, verdict, self.failure(uid).as_deref());
            if next != **definition {
                self.tell(server, name, uid, verdict).await;
            }
            if definition["metadata"]["deletionTimestamp"].is_string() {
                self.clone().empty(name, definition);
            }
        }
    }

    /// Writes a definition's status.
    async fn tell(&self, server: &ApiServer, name: &str, uid: &str, verdict: Option<&Verdict>) {
        let change = |object: &mut Value| {
            if text(object, "metadata.uid") == uid {
                apply(object, verdict, self.failure(uid).as_deref());
            }
            Ok(())
        };
        let told = server
            .update(&own_user(), named(name, "status"), true, &change)
            .await;
        match told {
            Err(status) if status.reason != Reason::NotFound => {
                tracing::warn!(%status, name, "the definition's status is not written");
            }
            _ => {}
        }
    }

    /// What is of interest here of each definition; parsed only if it has changed.
    fn read(&self, objects: &[Arc<Object>]) -> Vec<Arc<Value>> {
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::with_capacity(objects.len());
        let read = objects.iter().map(|object| {
            let lean = match known.remove(&object.key) {
                Some((revision, lean)) if revision == object.revision => lean,
                _ => Arc::new(lean(&object.value())),
            };
            next.insert(object.key.clone(), (object.revision, lean.clone()));
            lean
        });
        let read = read.collect();
        *known = next;
        read
    }

    fn gone(&self) -> MutexGuard<'_, Made> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(&self) -> MutexGuard<'_, HashMap<String, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of one definition; those made before if nothing has changed. `lean`: as it will be.
    fn rows(&self, uid: &str, lean: &Value, object: &Object) -> Vec<&'static Resource> {
        let of = format!(
            "{} {} {}",
            lean["metadata"]["generation"],
            lean["metadata"]["deletionTimestamp"],
            lean["status"]["acceptedNames"]
        );
        let mut made = self.made();
        let made = made.entry(uid.to_owned()).or_default();
        if made.of != of {
            let rows = custom::rows_of(&object.value(), &lean["status"]["acceptedNames"]);
            let now = Instant::now();
            let former = std::mem::replace(&mut made.rows, rows);
            made.former.extend(former.into_iter().map(|row| (now, row)));
            made.of = of;
        }
        made.rows.clone()
    }

    /// Lets go of all that belongs to definitions that are gone.
    fn forget(&self, server: &ApiServer, held: &HashSet<String>) {
        let mut made = self.made();
        let mut storages: BTreeSet<&'static str> = BTreeSet::new();
        made.retain(|uid, made| {
            let stays = held.contains(uid);
            if !stays {
                storages.extend(made.rows.iter().map(|row| row.storage));
                self.gone().take_over(made, Instant::now());
            }
            stays
        });
        for made in made.values() {
            for row in &made.rows {
                storages.remove(row.storage);
            }
        }
        for storage in storages {
            server.cache.forget_kind(storage);
        }
    }

    fn emptying(&self) -> MutexGuard<'_, HashMap<String, Option<String>>> {
        self.emptying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the objects of a definition could not be deleted the last time.
    fn failure(&self, uid: &str) -> Option<String> {
        self.emptying().get(uid).cloned().flatten()
    }

    /// Deletes every object, waits until they are gone, then lets the definition go; again until that
    /// is done, or the definition is gone otherwise.
    fn empty(self: Arc<Self>, name: &str, definition: &Value) {
        let uid = text(definition, "metadata.uid").to_owned();
        if !texts(definition, "metadata.finalizers").contains(&CLEANUP) {
            return;
        }
        match self.emptying().entry(uid.clone()) {
            Entry::Occupied(_) => return,
            Entry::Vacant(free) => free.insert(None),
        };
        let name = name.to_owned();
        tokio::spawn(async move {
            let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
            while let Some(server) = self.server.upgrade() {
                match delete_all(&server, &name, &uid).await {
                    Ok(()) => break,
                    Err(why) => {
                        tracing::info!(name, why, "the objects of a definition are not deleted");
                        self.failed(&server, &name, &uid, why).await;
                    }
                }
                drop(server);
                tokio::time::sleep(backoff.next_wait()).await;
            }
            self.emptying().remove(&uid);
        });
    }

    /// Says in the definition's status why it is still there.
    async fn failed(&self, server: &ApiServer, name: &str, uid: &str, why: String) {
        self.emptying().insert(uid.to_owned(), Some(why));
        let change = |object: &mut Value| {
            if text(object, "metadata.uid") == uid {
                put_terminating(object, self.failure(uid).as_deref());
            }
            Ok(())
        };
        let told = server
            .update(&own_user(), named(name, "status"), true, &change)
            .await;
        if let Err(status) = told
            && status.reason != Reason::NotFound
        {
            // With the next try, or the definition's next change.
            tracing::debug!(%status, name, "the definition's status is not written");
        }
    }
}

/// One pass, and the wait for what finalizers hold; an error says what stands in the way.
async fn delete_all(server: &Arc<ApiServer>, name: &str, uid: &str) -> Result<(), String> {
    if let Some((row, _made)) = row_of(server, name, uid).await {
        let kind = server.cache.kind(row.storage);
        let mut changes = kind.changes();
        loop {
            changes.borrow_and_update();
            server.cache.caught_up().await;
            let held = kind.list(&cache::key(row.storage, "", ""), "");
            if held.is_empty() {
                break;
            }
            delete_each(server, row, held).await?;
            server.cache.caught_up().await;
            if kind.count() == 0 {
                break;
            }
            // What finalizers hold goes when somebody takes them away.
            if changes.changed().await.is_err() {
                return Err("the API server is stopping".to_owned());
            }
        }
    }
    let release = |definition: &mut Value| {
        if text(definition, "metadata.uid") == uid {
            let mut finalizers = items(definition, "metadata.finalizers").to_vec();
            finalizers.retain(|one| one != CLEANUP);
            set(definition, "metadata.finalizers", finalizers);
        }
        Ok(())
    };
    match server
        .update(&own_user(), named(name, ""), true, &release)
        .await
    {
        Err(status) if status.reason != Reason::NotFound => Err(format!(
            "could not remove the finalizer: {}",
            status.message
        )),
        _ => Ok(()),
    }
}

/// The row of a definition's objects, also if none of its versions is served: then it is made for this.
async fn row_of(
    server: &ApiServer,
    name: &str,
    uid: &str,
) -> Option<(&'static Resource, Option<Made>)> {
    if let Some(row) = server.rows.by_plural(name) {
        return Some((row, None));
    }
    let definition = server.get(PLURAL, "", name).await?;
    if text(&definition, "metadata.uid") != uid || !is_established(&definition) {
        return None;
    }
    let row = custom::stored_row(&definition)?;
    let mut made = Made::default();
    made.rows.push(row);
    Some((row, Some(made)))
}

/// A definition without what is large in it: schemas, annotations, who owns which field.
fn lean(definition: &Value) -> Value {
    let mut lean = json!({});
    for part in ["spec", "status"] {
        let Some(members) = definition[part].as_object() else {
            continue;
        };
        let members = members.iter().filter(|(name, _)| *name != "versions");
        let members = members.map(|(name, value)| (name.clone(), value.clone()));
        lean[part] = Value::Object(members.collect());
    }
    let versions = items(definition, "spec.versions").iter();
    let versions: Vec<Value> = versions
        .map(|version| {
            let kept =
                ["name", "served", "storage"].map(|name| (name.to_owned(), version[name].clone()));
            Value::Object(kept.into_iter().collect())
        })
        .collect();
    lean["spec"]["versions"] = versions.into();
    for name in [
        "name",
        "uid",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "finalizers",
    ] {
        if let Some(value) = definition["metadata"].get(name) {
            lean["metadata"][name] = value.clone();
        }
    }
    lean
}

/// Asks for the end of every object, also of those after one that is refused.
async fn delete_each(
    server: &ApiServer,
    row: &'static Resource,
    objects: Vec<Arc<Object>>,
) -> Result<(), String> {
    let (mut refused, mut first) = (0, None);
    for object in objects {
        let value = object.value();
        if value["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        let uid = text(&value, "metadata.uid");
        let options = json!({"preconditions": {"uid": uid}});
        let writing = Writing::own(row, &object.namespace, &object.name);
        match verbs::delete(server, &writing, &options).await {
            Ok(_) => {}
            Err(status) if status.reason == Reason::NotFound => {}
            Err(status) => {
                refused += 1;
                first.get_or_insert_with(|| format!("{}: {}", object.name, status.message));
            }
        }
    }
    match first {
        None => Ok(()),
        Some(first) if refused == 1 => Err(format!("could not issue all deletes: {first}")),
        Some(first) => Err(format!(
            "could not issue all deletes: {first}, and {} more",
            refused - 1
        )),
    }
}

fn named<'a>(name: &'a str, subresource: &'a str) -> Named<'a> {
    Named {
        plural: PLURAL,
        subresource,
        namespace: "",
        name,
    }
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    items(definition, "status.conditions")
        .iter()
        .find(|one| text(one, "type") == kind)
}

fn holds(definition: &Value, kind: &str) -> bool {
    condition(definition, kind).is_some_and(|one| text(one, "status") == "True")
}

fn is_established(definition: &Value) -> bool {
    holds(definition, "Established")
}

/// Why a definition may not have its names; `None`: it may.
type Verdict = Option<String>;

/// Who may have which names, by uid. Names are first come, first served; who has them keeps them.
fn judge(definitions: &[Arc<Value>]) -> BTreeMap<String, Verdict> {
    let mut order: Vec<&Arc<Value>> = definitions.iter().collect();
    order.sort_by_key(|one| {
        let created = text(one, "metadata.creationTimestamp").to_owned();
        (
            !holds(one, "NamesAccepted"),
            created,
            text(one, "metadata.name").to_owned(),
        )
    });
    let mut taken: BTreeSet<(String, &str, String)> = BTreeSet::new();
    for row in kinds::table() {
        let mut put = |sort: &'static str, name: &str| {
            taken.insert((row.group.to_owned(), sort, name.to_owned()));
        };
        put("resource", row.plural);
        put("resource", row.singular);
        put("kind", row.kind);
    }
    let mut verdicts = BTreeMap::new();
    for definition in order {
        let group = text(definition, "spec.group").to_owned();
        let names = &definition["spec"]["names"];
        let mut own: BTreeSet<(&str, String)> = BTreeSet::new();
        for field in ["plural", "singular"] {
            own.insert(("resource", text(names, field).to_owned()));
        }
        for name in texts(names, "shortNames") {
            own.insert(("resource", name.to_owned()));
        }
        for field in ["kind", "listKind"] {
            own.insert(("kind", text(names, field).to_owned()));
        }
        let clash = own
            .iter()
            .find(|(sort, name)| taken.contains(&(group.clone(), *sort, name.clone())));
        let verdict = clash.map(|(_, name)| format!("{name:?} is already in use"));
        if verdict.is_none() {
            taken.extend(
                own.into_iter()
                    .map(|(sort, name)| (group.clone(), sort, name)),
            );
        }
        verdicts.insert(text(definition, "metadata.uid").to_owned(), verdict);
    }
    verdicts
}

/// Writes a verdict into a definition's status. Changes nothing the second time.
/// `failure`: why its objects could not be deleted.
fn apply(definition: &mut Value, verdict: Option<&Verdict>, failure: Option<&str>) {
    let Some(verdict) = verdict else {
        return;
    };
    match verdict {
        None => {
            let names = definition["spec"]["names"].clone();
            set(definition, "status.acceptedNames", names);
            put(
                definition,
                "NamesAccepted",
                "True",
                "NoConflicts",
                "no conflicts found",
            );
            put(
                definition,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
            );
        }
        Some(why) => {
            put(definition, "NamesAccepted", "False", "NamesConflict", why);
            if !is_established(definition) {
                put(
                    definition,
                    "Established",
                    "False",
                    "NotAccepted",
                    "not all names are accepted",
                );
            }
        }
    }
    if definition["metadata"]["deletionTimestamp"].is_string() {
        put_terminating(definition, failure);
    }
    let mut stored = items(definition, "status.storedVersions").to_vec();
    for version in items(definition, "spec.versions") {
        if version["storage"] == true && !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    set(definition, "status.storedVersions", stored);
}

fn put_terminating(definition: &mut Value, failure: Option<&str>) {
    let (reason, message) = match failure {
        None => (
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
        ),
        Some(why) => ("InstanceDeletionFailed", why),
    };
    put(definition, "Terminating", "True", reason, message);
}

fn put(definition: &mut Value, kind: &str, state: &str, reason: &str, message: &str) {
    let held = condition(definition, kind).filter(|held| text(held, "status") == state);
    let same =
        held.is_some_and(|held| text(held, "reason") == reason && text(held, "message") == message);
    if same {
        return;
    }
    let since = held.map(|held| text(held, "lastTransitionTime").to_owned());
    let mut all = items(definition, "status.conditions").to_vec();
    all.retain(|one| text(one, "type") != kind);
    all.push(
        json!({"type": kind, "status": state, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(now)}),
    );
    set(definition, "status.conditions", all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_first_come_first_served() {
        let definition = |uid: &str, kind: &str, created: &str| {
            Arc::new(
                json!({"metadata": {"name": uid, "uid": uid, "creationTimestamp": created},
                "spec": {"group": "a.example", "names": {"plural": format!("{uid}s"), "singular": uid,
                    "kind": kind, "listKind": format!("{kind}List")}}}),
            )
        };
        let all = [
            definition("second", "Tab", "2026-01-02T00:00:00Z"),
            definition("first", "Tab", "2026-01-01T00:00:00Z"),
            definition("other", "Other", "2026-01-03T00:00:00Z"),
        ];
        let verdicts = judge(&all);
        assert_eq!(verdicts["first"], None);
        assert_eq!(verdicts["other"], None);
        assert_eq!(
            verdicts["second"].as_deref(),
            Some("\"Tab\" is already in use")
        );
        let mut once = (*all[1]).clone();
        apply(&mut once, Some(&None), None);
        assert!(is_established(&once));
        let mut twice = once.clone();
        apply(&mut twice, Some(&None), None);
        assert_eq!(once, twice);
    }
}
