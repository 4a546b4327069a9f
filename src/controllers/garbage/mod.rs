//! Garbage collector: what is owned goes when its last owner has gone.
//!
//! Watches the metadata of every kind that can be listed and deleted, keeps the graph of owners
//! (`graph.rs`, which also judges) and applies the verdicts (`apply.rs`).
//! Always true:
//! - An owner counts as gone only after the server said so, when it was asked for it or in a watch;
//!   while its kind is not known, nothing is decided, and all is looked at again when kinds change.
//! - What is judged is what is changed: each write names the uid and the resource version.
//! - What is judged is judged again now and then, and the kinds are asked for again, whatever events say.
//! - Nothing is judged before every kind's first list is in the graph, or [`PATIENCE`] is over.

mod apply;
mod graph;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, PartialObjectMeta},
    discovery::verbs,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::graph::{Graph, Node, Owner, Place, Uid};
use super::{
    served::{self, Kind},
    shared::{Failure, GIVEN_UP_AFTER, Stopped, attempt},
};
use crate::{
    events::Recorder,
    informer::{Informers, Key},
    queue::{LOOK_AGAIN, Queue},
    supervision::caught,
};

const WORKERS: usize = 20;
/// A kind whose first list does not come holds up the others no longer than this.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a new kind was announced, its discovery is given this time to show it.
const SETTLE: Duration = Duration::from_millis(200);
/// The kinds are asked for so often even if nothing was announced.
const DISCOVER_EVERY: Duration = Duration::from_secs(300);
/// A failed discovery is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// Finalizer of an object that waits for its dependents to be deleted.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents shall stay.
const ORPHAN: &str = "orphan";

/// Group and kind.
type KindName = (String, String);

struct Shared {
    client: Client,
    watches: watcher::Config,
    events: Recorder,
    graph: Mutex<Graph>,
    kinds: RwLock<HashMap<KindName, Kind>>,
    queue: Queue<Uid>,
    /// Objects that could not be judged, since the kind of an owner of theirs is not known: looked at
    /// again whenever the kinds have changed.
    parked: Mutex<HashSet<Uid>>,
    gone: Mutex<Gone>,
}

/// Owners whose deletion was seen lately. A uid is never used twice, so nobody need be asked.
#[derive(Default)]
struct Gone {
    uids: HashSet<Uid>,
    order: VecDeque<Uid>,
}

impl Gone {
    const MOST: usize = 4096;

    fn insert(&mut self, uid: &str) {
        if self.uids.insert(uid.to_owned()) {
            self.order.push_back(uid.to_owned());
        }
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let client = informers.client().clone();
    let shared = Arc::new(Shared {
        events: Recorder::start(client.clone(), "garbage-collector-controller"),
        client,
        watches: informers.watch_config(),
        graph: Mutex::default(),
        kinds: RwLock::default(),
        queue: Queue::default(),
        parked: Mutex::default(),
        gone: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    let (listed, first_lists) = mpsc::unbounded_channel();
    let (changed, kind_changes) = mpsc::unbounded_channel();
    tasks.spawn(follow_discovery(
        shared.clone(),
        Reports { listed, changed },
        kind_changes,
    ));
    let started = tokio::time::timeout(PATIENCE, all_listed(shared.clone(), first_lists));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        stopped = Stopped::first_of(&mut tasks) => return Err(stopped),
        _ = started => {}
    }
    let again = shared.clone();
    tasks.spawn(async move {
        again
            .queue
            .look_again(LOOK_AGAIN, || again.graph().all())
            .await
    });
    for _ in 0..WORKERS {
        tasks.spawn(work(shared.clone()));
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        stopped = Stopped::first_of(&mut tasks) => return Err(stopped),
    }
    tasks.shutdown().await;
    Ok(())
}

/// What the watches tell those who start and restart them.
#[derive(Clone)]
struct Reports {
    listed: mpsc::UnboundedSender<KindName>,
    /// The set of kinds may have changed.
    changed: mpsc::UnboundedSender<()>,
}

/// Waits for the first list of every kind of the first discovery.
async fn all_listed(shared: Arc<Shared>, mut first_lists: mpsc::UnboundedReceiver<KindName>) {
    let mut done: HashSet<KindName> = HashSet::new();
    while let Some(kind) = first_lists.recv().await {
        done.insert(kind);
        let kinds = shared.kinds.read().unwrap_or_else(PoisonError::into_inner);
        if !kinds.is_empty() && kinds.keys().all(|kind| done.contains(kind)) {
            return;
        }
    }
}

/// Keeps one watch per kind, and starts and ends them as kinds come and go.
async fn follow_discovery(
    shared: Arc<Shared>,
    reports: Reports,
    mut changes: mpsc::UnboundedReceiver<()>,
) {
    let mut watches: HashMap<KindName, (String, tokio_util::sync::DropGuard)> = HashMap::new();
    loop {
        match discover(&shared.client).await {
            Ok((found, stale)) => {
                let found = shared.take_over(found, &stale);
                watches.retain(|name, (version, _)| {
                    found
                        .get(name)
                        .is_some_and(|kind| kind.resource.version == *version)
                });
                for (name, kind) in found {
                    watches.entry(name.clone()).or_insert_with(|| {
                        let stop = CancellationToken::new();
                        let version = kind.resource.version.clone();
                        let watch = keep_watching(shared.clone(), name, kind, reports.clone());
                        let stopped = stop.clone();
                        tokio::spawn(async move { stopped.run_until_cancelled(watch).await });
                        (version, stop.drop_guard())
                    });
                }
                // Those of aggregated servers change without a word.
                if let Ok(None) = tokio::time::timeout(DISCOVER_EVERY, changes.recv()).await {
                    return;
                }
                tokio::time::sleep(SETTLE).await;
                while changes.try_recv().is_ok() {}
            }
            Err(error) => {
                tracing::warn!(%error, "discovery for garbage collection failed, will retry");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The kinds that can be collected or own, and the groups with versions that did not answer.
async fn discover(client: &Client) -> Result<(HashMap<KindName, Kind>, Vec<String>), kube::Error> {
    let served = served::discover(client).await?;
    let mut kinds = served.kinds;
    kinds.retain(|kind| {
        [verbs::LIST, verbs::WATCH, verbs::DELETE]
            .iter()
            .all(|verb| kind.supports(verb))
            && kind.resource.kind != "Event"
    });
    let named = kinds.into_iter().map(|kind| {
        let name = (kind.resource.group.clone(), kind.resource.kind.clone());
        (name, kind)
    });
    Ok((named.collect(), served.stale))
}

/// A change that cannot be taken in must not end the watch of its kind: it starts with a new list.
async fn keep_watching(shared: Arc<Shared>, name: KindName, kind: Kind, reports: Reports) {
    loop {
        let watch = watch(shared.clone(), name.clone(), kind.clone(), reports.clone());
        if let Err(panic) = caught(watch).await {
            tracing::error!(kind = name.1, %panic, "watch failed, will retry");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch(shared: Arc<Shared>, name: KindName, kind: Kind, reports: Reports) {
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(shared.client.clone(), &kind.resource);
    let events = watcher::watcher(api, shared.watches.clone());
    let mut events = std::pin::pin!(events.default_backoff());
    let announces_kinds = matches!(
        kind.resource.kind.as_str(),
        "CustomResourceDefinition" | "APIService"
    );
    let mut listing: HashSet<Uid> = HashSet::new();
    while let Some(event) = events.next().await {
        let mut is_change = announces_kinds;
        match event {
            Ok(Event::Apply(object)) => {
                shared.apply(&name, &object);
            }
            Ok(Event::Delete(object)) => {
                shared.deleted(&object.uid().unwrap_or_default());
            }
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(object)) => {
                is_change = false;
                listing.extend(object.uid());
                shared.apply(&name, &object);
            }
            Ok(Event::InitDone) => {
                is_change = false;
                shared.forget_all_but(&name, &std::mem::take(&mut listing));
                let _ = reports.listed.send(name.clone());
            }
            Err(error) => {
                is_change = false;
                tracing::debug!(kind = kind.resource.kind, %error, "watch failed, will retry");
            }
        }
        if is_change {
            let _ = reports.changed.send(());
        }
    }
}

impl Shared {
    fn graph(&self) -> std::sync::MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind(&self, group: &str, kind: &str) -> Option<Kind> {
        self.kinds
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(group.to_owned(), kind.to_owned()))
            .cloned()
    }

    fn apply(&self, name: &KindName, object: &PartialObjectMeta<DynamicObject>) {
        let touched = self
            .graph()
            .set(object.uid().unwrap_or_default(), node(name, object));
        self.look_at(touched);
    }

    /// Takes over the kinds that discovery found; those of groups that did not answer stay. What was
    /// of a kind that is not served any more is not known any more, and no proof of anything.
    fn take_over(
        &self,
        mut found: HashMap<KindName, Kind>,
        stale: &[String],
    ) -> HashMap<KindName, Kind> {
        let lost = {
            let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
            let mut lost = Vec::new();
            for (name, kind) in kinds.drain() {
                if found.contains_key(&name) {
                    continue;
                }
                if stale.contains(&kind.resource.api_version) {
                    found.insert(name, kind);
                } else {
                    lost.push(name);
                }
            }
            kinds.clone_from(&found);
            lost
        };
        for name in lost {
            self.forget_all_but(&name, &HashSet::new());
        }
        let parked = std::mem::take(&mut *self.parked());
        self.look_at(parked.into_iter().collect());
        found
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, HashSet<Uid>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an object looked at again once the kinds have changed.
    fn park(&self, uid: &Uid, owner: &Place) {
        self.parked().insert(uid.clone());
        // They may have changed since they were asked.
        if self.kind(&owner.group, &owner.kind).is_some() && self.parked().remove(uid) {
            self.queue.add(uid.clone());
        }
    }

    /// The server said that the object is gone.
    fn deleted(&self, uid: &str) {
        if self.graph().dependents(uid).next().is_some() {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.insert(uid);
        }
        self.remove(uid);
    }

    fn is_gone(&self, uid: &str) -> bool {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.uids.contains(uid)
    }

    fn remove(&self, uid: &str) {
        let touched = self.graph().remove(uid);
        self.look_at(touched);
    }

    fn forget_all_but(&self, name: &KindName, listed: &HashSet<Uid>) {
        let held = self.graph().of_kind(&name.0, &name.1);
        for uid in held.iter().filter(|uid| !listed.contains(*uid)) {
            self.remove(uid);
        }
    }

    fn look_at(&self, uids: Vec<Uid>) {
        for uid in uids {
            self.queue.add(uid);
        }
    }
}

fn node(name: &KindName, object: &PartialObjectMeta<DynamicObject>) -> Node {
    let namespace = object.namespace().unwrap_or_default();
    let has = |finalizer: &str| object.finalizers().iter().any(|one| one == finalizer);
    Node {
        place: Place {
            group: name.0.clone(),
            kind: name.1.clone(),
            key: Key::new(namespace.clone(), object.name_any()),
        },
        owners: object
            .owner_references()
            .iter()
            .map(|owner| Owner {
                uid: owner.uid.clone(),
                place: Place {
                    group: owner
                        .api_version
                        .split_once('/')
                        .map_or("", |(group, _)| group)
                        .to_owned(),
                    kind: owner.kind.clone(),
                    key: Key::new(namespace.clone(), owner.name.clone()),
                },
                api_version: owner.api_version.clone(),
                blocks: owner.block_owner_deletion == Some(true),
            })
            .collect(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        foreground: has(FOREGROUND),
        orphan: has(ORPHAN),
    }
}

async fn work(shared: Arc<Shared>) {
    loop {
        let uid = shared.queue.next().await;
        match attempt(GIVEN_UP_AFTER, apply::process(&shared, &uid)).await {
            Ok(()) => shared.queue.forget(&uid),
            Err(failure) => {
                let error = &failure as &dyn std::error::Error;
                match &failure {
                    _ if failure.is_conflict() => {}
                    Failure::Error(_) => {
                        tracing::debug!(
                            uid = *uid,
                            error,
                            "garbage collection of an object failed"
                        );
                    }
                    Failure::Endless(_) | Failure::Panic(_) => {
                        tracing::error!(
                            uid = *uid,
                            error,
                            "garbage collection of an object failed"
                        );
                    }
                }
                shared.queue.retry(uid.clone());
            }
        }
    }
}
