//! All pods of this node: compares the sources with the workers, and brings each worker its news.
//!
//! Always true: nothing is killed for being unknown before both sources have been read.

use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    admit::{self, Refusal, Room},
    book::Book,
    events,
    eviction::{self, Order, Pressures},
    logs,
    mirrors::Mirrors,
    network,
    node::Health,
    pieces::Pieces,
    pod, probe,
    reporter::Target,
    sources::{self, Change, Changes, Source},
    statics,
    worker::{
        Context, Desired, FORCED_GRACE, Handle, Hooks, Note, Wish, Worker, delete_object, identity,
        sandbox, stop_containers,
    },
};
use crate::{backoff::Backoff, informer::Key, supervision::pulse};

const RETRY: Duration = Duration::from_secs(5);
/// A worker that panicked starts over after the first, then twice as long.
const FIRST_RESTART: Duration = Duration::from_secs(1);
const LAST_RESTART: Duration = Duration::from_secs(60);

struct Entry {
    source: Source,
    pod: Arc<Pod>,
    handle: Handle,
    wish: Wish,
    /// Of its worker.
    panics: Backoff,
}

/// What decides whether the node takes a new pod.
#[derive(Debug)]
pub struct Admission {
    pub room: Room,
    pub pressures: watch::Receiver<Pressures>,
}

pub struct Table {
    context: Arc<Context>,
    book: Arc<Book>,
    health: watch::Sender<Health>,
    admission: Admission,
    /// By UID.
    entries: HashMap<String, Entry>,
    workers: JoinSet<String>,
    /// Resolve with the UID of a pod whose worker shall start over.
    restarts: JoinSet<String>,
    mirrors: Mirrors,
    /// Static pods that wait until an older one of their name is gone.
    waiting: HashMap<Key, Pod>,
    /// Pods that an earlier daemon left and nobody knows; by UID, being removed.
    leaving: HashMap<String, Key>,
    removals: JoinSet<String>,
    synced: HashSet<Source>,
    /// Without one of these nothing would be heard any more.
    pieces: Pieces,
    /// Pods that are not understood, by UID.
    left_alone: HashMap<String, Arc<Pod>>,
}

impl Table {
    pub fn new(
        context: Arc<Context>,
        book: Arc<Book>,
        health: watch::Sender<Health>,
        admission: Admission,
    ) -> Self {
        let (client, node) = (context.client.clone(), context.config.node.clone());
        Self {
            mirrors: Mirrors::new(client, node),
            context,
            book,
            health,
            admission,
            entries: HashMap::new(),
            workers: JoinSet::new(),
            restarts: JoinSet::new(),
            waiting: HashMap::new(),
            leaving: HashMap::new(),
            removals: JoinSet::new(),
            synced: HashSet::new(),
            pieces: Pieces::default(),
            left_alone: HashMap::new(),
        }
    }

    /// Until told to stop, or until what it hears from has ended.
    pub async fn run(
        mut self,
        mut probed: mpsc::UnboundedReceiver<probe::Update>,
        mut orders: mpsc::Receiver<Order>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let mut events = self.context.runtime.events();
        let mut images = self.context.puller.additions();
        let mut changes = self.watch_sources();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = pulse::asked() => {}
                Some((source, change)) = changes.recv() => self.take(source, change).await,
                event = events.recv() => match event {
                    Ok(event) => self.note(&event.pod_uid, Note::Look),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.note_all(|| Note::Look),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Some(update) = probed.recv() => {
                    let uid = update.pod_uid.clone();
                    self.note(&uid, Note::Probe(update));
                }
                Some(order) = orders.recv() => match order {
                    Order::Evict { uid, eviction } => self.note(&uid, Note::Evict(eviction)),
                    Order::RemoveDead { uid } => self.note(&uid, Note::RemoveDead),
                },
                Ok(()) = images.changed() => self.note_all(|| Note::Images),
                Some(ended) = self.workers.join_next() => self.ended(ended),
                Some(Ok(uid)) = self.restarts.join_next() => self.restart(&uid),
                Some(Ok(uid)) = self.removals.join_next() => self.left(&uid),
                Some(ends) = self.pieces.ended() => return Err(Error::Pieces(ends)),
            }
        }
    }

    fn watch_sources(&mut self) -> Changes {
        let (sender, changes) = sources::channel();
        let config = &self.context.config;
        let (client, node) = (self.context.client.clone(), config.node.clone());
        let watching = sources::watch(client, node.clone(), sender.clone());
        self.pieces.start_plain("sources", watching);
        let watching = statics::watch(config.manifest_dir.clone(), node, sender);
        self.pieces.start_plain("manifests", watching);
        self.pieces
            .start_plain("mirrors", self.mirrors.clone().run());
        changes
    }

    fn note(&self, uid: &str, note: Note) {
        if let Some(entry) = self.entries.get(uid) {
            // A worker that has ended needs no news.
            let _ = entry.handle.notes.send(note);
        }
    }

    fn note_all(&self, note: impl Fn() -> Note) {
        self.entries.keys().for_each(|uid| self.note(uid, note()));
    }

    async fn take(&mut self, source: Source, change: Change) {
        match change {
            Change::Applied(pod) => self.applied(source, pod),
            Change::Deleted(pod) if self.is_mirror(&pod) => {
                self.mirrors.deleted(&pod);
                self.send_static(&Key::of(&pod));
            }
            Change::Deleted(pod) => {
                let uid = pod.uid().unwrap_or_default();
                self.gone(&uid);
                self.not_wanted(&uid);
            }
            Change::List(pods) => self.listed(source, pods).await,
        }
    }

    async fn listed(&mut self, source: Source, mut pods: Vec<Pod>) {
        let listed: HashSet<String> = pods.iter().filter_map(ResourceExt::uid).collect();
        let missing: Vec<String> = self
            .entries
            .iter()
            .filter(|(uid, entry)| entry.source == source && !listed.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        missing.iter().for_each(|uid| self.gone(uid));
        let is_of = |pod: &Pod| statics::is_static(pod) == (source == Source::Static);
        let unwanted = self.left_alone.iter();
        let unwanted = unwanted.filter(|(uid, pod)| is_of(pod) && !listed.contains(*uid));
        let unwanted: Vec<String> = unwanted.map(|(uid, _)| uid.clone()).collect();
        unwanted.iter().for_each(|uid| self.not_wanted(uid));
        if source == Source::Api {
            self.mirrors.listed(&listed);
        } else {
            self.waiting.clear();
            if !self.synced.contains(&source) {
                self.supersede(&pods).await;
            }
        }
        // The oldest first: there may not be room for all.
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        pods.into_iter().for_each(|pod| self.applied(source, pod));
        let first = self.synced.insert(source);
        if first && self.synced.len() == 2 {
            self.remove_orphans().await;
            self.mirrors.open();
        }
        if self.synced.contains(&Source::Api) {
            self.health.send_replace(Health::Ready);
        }
        let statics = self.entries.iter();
        let statics = statics.filter(|(_, entry)| entry.source == Source::Static);
        statics.for_each(|(uid, _)| self.send(uid));
    }

    fn applied(&mut self, source: Source, pod: Pod) {
        let mut pod = pod;
        if source == Source::Api {
            statics::disown(&mut pod);
        }
        if source == Source::Api && self.is_mirror(&pod) {
            let key = Key::of(&pod);
            self.mirrors.applied(Arc::new(pod));
            return self.send_static(&key);
        }
        let uid = pod.uid().unwrap_or_default();
        let key = Key::of(&pod);
        if source == Source::Static {
            let entry = self.entries.get(&uid);
            if entry.is_some_and(|entry| entry.wish == Wish::Run) {
                return; // the UID says all of a manifest
            }
            if self.is_taken(&uid, &key) {
                self.waiting.insert(key, pod);
                return;
            }
        }
        let pod = Arc::new(pod);
        if let Some(why) = self.context.runtime.set_aside().get(&uid) {
            return self.leave_alone(&uid, pod, why);
        }
        self.book.put(&uid, pod.clone());
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pod = pod;
            return self.send(&uid);
        }
        let wish = match source {
            Source::Api => self.admit(&pod),
            Source::Static => Wish::Run,
        };
        if source == Source::Static {
            self.mirrors.run_begins(pod.clone());
        }
        let desired = self.desired(source, &pod, &wish);
        let handle = Worker::start(self.context.clone(), desired, &mut self.workers);
        let entry = Entry {
            source,
            pod,
            handle,
            wish,
            panics: Backoff::new(FIRST_RESTART, LAST_RESTART),
        };
        self.entries.insert(uid, entry);
    }

    fn desired(&self, source: Source, pod: &Arc<Pod>, wish: &Wish) -> Desired {
        let shown = match source {
            Source::Api => pod.uid().map(|uid| (uid, pod.status.clone())),
            Source::Static => self.mirrors.of(pod),
        };
        let (uid, held) = shown.unzip();
        let target = uid.map(|uid| Target {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid,
        });
        Desired {
            pod: pod.clone(),
            target,
            held: held.flatten(),
            wish: wish.clone(),
        }
    }

    /// Whether an earlier pod of that name, or with that UID, is still ending.
    fn is_taken(&self, uid: &str, key: &Key) -> bool {
        let leaves = self
            .leaving
            .iter()
            .any(|(one, named)| one == uid || named == key);
        leaves || self.entries.contains_key(uid) || self.static_of(key).is_some()
    }

    /// The pod may run, but nothing is known of it: nothing of it is changed, nor its status, until it
    /// shall go. Whoever has written its records takes it over again.
    fn leave_alone(&mut self, uid: &str, pod: Arc<Pod>, why: &str) {
        let before = self.left_alone.insert(uid.to_owned(), pod.clone());
        if pod.metadata.deletion_timestamp.is_some() {
            return self.not_wanted(uid);
        }
        if before.is_none() {
            let message = format!("This version does not understand the pod's records: {why}");
            let events = &self.context.events;
            events.pod(&pod, events::Level::Warning, "RecordSetAside", message);
        }
    }

    /// Ends a pod that was left alone, and its object if that waits for it.
    fn not_wanted(&mut self, uid: &str) {
        let Some(pod) = self.left_alone.remove(uid) else {
            return;
        };
        if let hash_map::Entry::Vacant(vacant) = self.leaving.entry(uid.to_owned()) {
            vacant.insert(Key::of(&*pod));
            tracing::info!(
                pod = uid,
                "ending a pod that is not understood, as nobody wants it"
            );
            let (context, uid) = (self.context.clone(), uid.to_owned());
            self.removals.spawn(async move {
                let uid = remove(context.clone(), uid, pod::grace(&pod)).await;
                if pod.metadata.deletion_timestamp.is_some() {
                    delete_object(&context, &pod).await;
                }
                logs::remove_pod(&context.config.log_dir, &identity(&pod)).await;
                uid
            });
        }
    }

    /// Whether the pod only stands for one that runs here. What this node runs itself does not become
    /// a mirror by a word in its annotations: it would go on running, and nobody would know of it.
    fn is_mirror(&self, pod: &Pod) -> bool {
        let runs = |uid: String| self.entries.contains_key(&uid);
        statics::is_mirror(pod) && !pod.uid().is_some_and(runs)
    }

    /// Whether this node takes a new pod. One that it has taken before is not refused any more.
    fn admit(&self, pod: &Pod) -> Wish {
        let status = pod.status.as_ref();
        if pod::is_over(pod) || status.is_some_and(|status| status.start_time.is_some()) {
            return Wish::Run;
        }
        let pressures = *self.admission.pressures.borrow();
        if let Some(message) = eviction::refusal(pod, pressures) {
            let reason = eviction::REASON.to_owned();
            return Wish::Reject { reason, message };
        }
        // What is gone from the API, or was refused itself, takes no room from this one.
        let counts = |entry: &&Entry| entry.wish == Wish::Run && !pod::is_over(&entry.pod);
        let others = self.entries.values().filter(counts);
        let others = others.map(|entry| entry.pod.as_ref());
        let config = &self.context.config;
        let ports = admit::Ports {
            own: &config.own_ports,
            pods: &config.pod_cidrs,
        };
        match admit::refusal(pod, others, self.admission.room, ports) {
            None => Wish::Run,
            Some(Refusal { reason, message }) => Wish::Reject { reason, message },
        }
    }

    fn gone(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.wish = Wish::Gone;
            self.send(uid);
        }
    }

    /// Tells the worker what it shall bring about now.
    fn send(&self, uid: &str) {
        if let Some(entry) = self.entries.get(uid) {
            let desired = self.desired(entry.source, &entry.pod, &entry.wish);
            entry.handle.desired.send_replace(desired);
        }
    }

    /// The same for the static pod of that name, whose mirror is another now.
    fn send_static(&self, key: &Key) {
        if let Some(uid) = self.static_of(key).and_then(|entry| entry.pod.uid()) {
            self.send(&uid);
        }
    }

    fn static_of(&self, key: &Key) -> Option<&Entry> {
        self.entries
            .values()
            .find(|entry| entry.source == Source::Static && Key::of(&*entry.pod) == *key)
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        let uid = match ended {
            Ok(uid) => uid,
            Err(error) => return self.panicked(&error),
        };
        self.book.remove(&uid);
        let Some(entry) = self.entries.remove(&uid) else {
            return;
        };
        let key = Key::of(&*entry.pod);
        if entry.source == Source::Static {
            self.mirrors.run_ended(&key);
        }
        self.start_waiting(&key);
    }

    /// The static pod of that name that waits may start if nothing is in its way any more.
    fn start_waiting(&mut self, key: &Key) {
        if let Some(pod) = self.waiting.remove(key) {
            self.applied(Source::Static, pod);
        }
    }

    /// The pod itself goes on without its worker; another takes over what is there.
    fn panicked(&mut self, error: &tokio::task::JoinError) {
        let of = |(_, entry): &(&String, &mut Entry)| entry.handle.task == error.id();
        let Some((uid, entry)) = self.entries.iter_mut().find(of) else {
            return;
        };
        let (uid, delay) = (uid.clone(), entry.panics.next_wait());
        tracing::error!(%error, pod = entry.pod.name_any(), "a pod's worker failed, will start over");
        self.restarts.spawn(async move {
            tokio::time::sleep(delay).await;
            uid
        });
    }

    fn restart(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        self.context.prober.stop(uid);
        let desired = self.desired(entry.source, &entry.pod, &entry.wish);
        let handle = Worker::start(self.context.clone(), desired, &mut self.workers);
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.handle = handle;
        }
    }

    /// Removes what runs of manifests that were changed while no daemon ran: before the new ones
    /// start, with or without the API.
    async fn supersede(&mut self, listed: &[Pod]) {
        let keys: HashMap<Key, Option<String>> =
            listed.iter().map(|pod| (Key::of(pod), pod.uid())).collect();
        for state in self.context.runtime.pods().await {
            let identity = state.config.identity;
            let key = Key::new(&identity.namespace, &identity.name);
            let other = keys
                .get(&key)
                .is_some_and(|uid| uid.as_ref() != Some(&identity.uid));
            if other && statics::is_static_uid(&identity.uid) {
                self.leave(identity.uid, key);
            }
        }
    }

    /// Stops and removes a pod that no source knows.
    fn leave(&mut self, uid: String, key: Key) {
        if let hash_map::Entry::Vacant(vacant) = self.leaving.entry(uid.clone()) {
            vacant.insert(key);
            tracing::info!(pod = uid, "removing a pod that nobody knows");
            let removal = remove(self.context.clone(), uid, FORCED_GRACE);
            self.removals.spawn(removal);
        }
    }

    /// Nothing of it is left.
    fn left(&mut self, uid: &str) {
        if let Some(key) = self.leaving.remove(uid) {
            self.start_waiting(&key);
        }
    }

    /// Removes what no source knows. Nothing new comes in meanwhile, since this is awaited.
    async fn remove_orphans(&mut self) {
        let context = self.context.clone();
        let set_aside = context.runtime.set_aside();
        let node = eviction::node_ref(&context.config.node);
        let node_events = set_aside.iter();
        for (uid, why) in node_events.filter(|(uid, _)| self.left_alone.contains_key(*uid)) {
            let message = format!("Pod {uid} is left alone, its records are not understood: {why}");
            let level = events::Level::Warning;
            context
                .events
                .about(node.clone(), level, "RecordSetAside", message);
        }
        let live: Vec<String> = self
            .entries
            .keys()
            .chain(self.left_alone.keys())
            .cloned()
            .collect();
        for uid in set_aside.into_keys().filter(|uid| !live.contains(uid)) {
            // Nobody remembers its name.
            self.leave(uid, Key::new("", ""));
        }
        for state in context.runtime.pods().await {
            let identity = state.config.identity;
            if !live.contains(&identity.uid) {
                let key = Key::new(&identity.namespace, &identity.name);
                self.leave(identity.uid, key);
            }
        }
        let known = context.volumes.known().await;
        let known = known.unwrap_or_else(|error| {
            tracing::warn!(%error, "volumes of pods that are gone may stay");
            Vec::new()
        });
        for uid in known.into_iter().filter(|uid| !live.contains(uid)) {
            // Nobody remembers its name.
            self.leave(uid, Key::new("", ""));
        }
        let running = self.leaving.keys().cloned();
        let kept: Vec<String> = live.iter().cloned().chain(running).collect();
        let known = self.entries.iter().map(|(uid, entry)| (uid, &entry.pod));
        let asked = |(uid, pod): (&String, &Arc<Pod>)| (uid.clone(), network::forwards(pod));
        let ports = known.chain(&self.left_alone).map(asked).collect();
        if let Err(error) = context.network.adopt(&kept, ports).await {
            tracing::warn!(%error, "addresses of pods that are gone may stay taken");
        }
        logs::remove_orphans(&context.config.log_dir, live).await;
    }
}

/// Removes a pod of which there is only what the runtime knows, after its containers had their time:
/// one that the runtime does not understand has `unknown_grace`.
async fn remove(context: Arc<Context>, uid: String, unknown_grace: Duration) -> String {
    while let Err(error) = context.runtime.end_set_aside(&uid, unknown_grace).await {
        tracing::warn!(pod = uid, %error, "not ended, will retry");
        tokio::time::sleep(RETRY).await;
    }
    if let Some(pod) = context.runtime.pod(&uid).await {
        let address = match pod.config.host_network {
            true => context.config.addresses.first().copied(),
            false => {
                let addresses = context.network.addresses(&uid).await;
                addresses.map(|addresses| *addresses.primary())
            }
        };
        stop_containers(&context.runtime, pod, Hooks::Run { address }, |record| {
            record.grace.unwrap_or(match statics::is_static_uid(&uid) {
                true => pod::DEFAULT_GRACE,
                false => FORCED_GRACE,
            })
        })
        .await;
    }
    while let Err(error) = sandbox::release_uid(&context, &uid).await {
        tracing::warn!(pod = uid, error, "not removed, will retry");
        tokio::time::sleep(RETRY).await;
    }
    uid
}
