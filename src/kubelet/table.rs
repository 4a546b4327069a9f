//! All pods of this node: compares the sources with the workers, and brings each worker its news.
//!
//! Always true: nothing is killed for being unknown before both sources have been read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Pods,
    admit::{self, Refusal, Room},
    events,
    eviction::{self, Order, Pressures},
    logs, network,
    node::Health,
    pod, probe,
    reporter::Target,
    sources::{self, Change, Changes, Source},
    statics,
    worker::{Context, Desired, Handle, Note, Wish, Worker, sandbox},
};
use crate::informer::Key;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(5);

/// The pods for whoever looks them up.
#[derive(Default)]
pub struct Book {
    /// By UID.
    pods: RwLock<HashMap<String, Arc<Pod>>>,
}

impl Book {
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<Pod>>> {
        self.pods.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods for Book {
    /// The youngest, if one of the same name is still ending.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let is_it = |pod: &&Arc<Pod>| {
            pod.metadata.name.as_deref() == Some(name)
                && pod.metadata.namespace.as_deref() == Some(namespace)
        };
        let born = |pod: &&Arc<Pod>| pod.metadata.creation_timestamp.clone();
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().filter(is_it).max_by_key(born).cloned()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }
}

struct Entry {
    source: Source,
    pod: Arc<Pod>,
    handle: Handle,
    wish: Wish,
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
    /// Mirror pods in the API.
    mirrors: BTreeMap<Key, Arc<Pod>>,
    /// Static pods that wait until an older one of their name is gone.
    waiting: HashMap<Key, Pod>,
    synced: HashSet<Source>,
    tasks: JoinSet<()>,
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
        Self {
            context,
            book,
            health,
            admission,
            entries: HashMap::new(),
            workers: JoinSet::new(),
            mirrors: BTreeMap::new(),
            waiting: HashMap::new(),
            synced: HashSet::new(),
            tasks: JoinSet::new(),
            left_alone: HashMap::new(),
        }
    }

    /// Until told to stop.
    pub async fn run(
        mut self,
        mut probed: mpsc::UnboundedReceiver<probe::Update>,
        mut orders: mpsc::Receiver<Order>,
        shutdown: CancellationToken,
    ) {
        let mut events = self.context.runtime.events();
        let mut volumes = self.context.volumes.changes();
        let mut changes = self.watch_sources();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some((source, change)) = changes.recv() => self.take(source, change).await,
                event = events.recv() => match event {
                    Ok(event) => self.note(&event.pod_uid, Note::Look),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.note_all(|| Note::Look),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(update) = probed.recv() => {
                    let uid = update.pod_uid.clone();
                    self.note(&uid, Note::Probe(update));
                }
                Some(order) = orders.recv() => match order {
                    Order::Evict { uid, eviction } => self.note(&uid, Note::Evict(eviction)),
                    Order::RemoveDead { uid } => self.note(&uid, Note::RemoveDead),
                },
                changed = volumes.recv() => match changed {
                    Ok(uid) => self.note(&uid, Note::Volumes),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.note_all(|| Note::Volumes),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(ended) = self.workers.join_next() => self.ended(ended),
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    fn watch_sources(&mut self) -> Changes {
        let (sender, changes) = sources::channel();
        let config = &self.context.config;
        self.tasks.spawn(sources::watch(
            self.context.client.clone(),
            config.node.clone(),
            sender.clone(),
        ));
        self.tasks.spawn(statics::watch(
            config.manifest_dir.clone(),
            config.node.clone(),
            sender,
        ));
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
                self.mirrors.remove(&Key::of(&pod));
                self.mirror(&Key::of(&pod));
            }
            Change::Deleted(pod) => self.gone(&pod.uid().unwrap_or_default()),
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
        if source == Source::Api {
            self.mirrors
                .retain(|_, pod| listed.contains(&pod.uid().unwrap_or_default()));
        } else {
            self.waiting.clear();
        }
        // The oldest first: there may not be room for all.
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        pods.into_iter().for_each(|pod| self.applied(source, pod));
        let first = self.synced.insert(source);
        if first && self.synced.len() == 2 {
            self.remove_orphans().await;
        }
        if self.synced.contains(&Source::Api) {
            self.health.send_replace(Health::Ready);
            let keys: HashSet<Key> = self
                .entries
                .values()
                .filter(|entry| entry.source == Source::Static)
                .map(|entry| Key::of(&*entry.pod))
                .chain(self.mirrors.keys().cloned())
                .collect();
            keys.iter().for_each(|key| self.mirror(key));
        }
    }

    fn applied(&mut self, source: Source, pod: Pod) {
        let mut pod = pod;
        if source == Source::Api {
            statics::disown(&mut pod);
        }
        if source == Source::Api && self.is_mirror(&pod) {
            let key = Key::of(&pod);
            self.mirrors.insert(key.clone(), Arc::new(pod));
            return self.mirror(&key);
        }
        let uid = pod.uid().unwrap_or_default();
        let key = Key::of(&pod);
        if source == Source::Static {
            if self.entries.contains_key(&uid) {
                return; // the UID says all of a manifest
            }
            if self.static_of(&key).is_some() {
                self.waiting.insert(key, pod);
                return;
            }
        }
        let pod = Arc::new(pod);
        if let Some(why) = self.context.runtime.set_aside().get(&uid) {
            return self.leave_alone(&uid, pod, why);
        }
        self.book.write().insert(uid.clone(), pod.clone());
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pod = pod;
            return self.send(&uid);
        }
        let wish = match source {
            Source::Api => self.admit(&pod),
            Source::Static => Wish::Run,
        };
        let desired = Desired {
            target: self.target(source, &pod),
            held: self.held(source, &pod),
            pod: pod.clone(),
            wish: wish.clone(),
        };
        let handle = Worker::start(self.context.clone(), desired, &mut self.workers);
        let entry = Entry {
            source,
            pod,
            handle,
            wish,
        };
        self.entries.insert(uid, entry);
    }

    /// The pod may run, but nothing is known of it: nothing of it is changed, nor its status. Whoever
    /// has written its records takes it over again.
    fn leave_alone(&mut self, uid: &str, pod: Arc<Pod>, why: &str) {
        if self
            .left_alone
            .insert(uid.to_owned(), pod.clone())
            .is_none()
        {
            let message = format!("This version does not understand the pod's records: {why}");
            let events = &self.context.events;
            events.pod(&pod, events::Level::Warning, "RecordSetAside", message);
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
        // A pod that is gone from the API no longer counts for whoever placed this one.
        let counts = |entry: &&Entry| entry.wish != Wish::Gone && !pod::is_over(&entry.pod);
        let others = self.entries.values().filter(counts);
        let others = others.map(|entry| entry.pod.as_ref());
        let own_ports = &self.context.config.own_ports;
        match admit::refusal(pod, others, self.admission.room, own_ports) {
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
            entry.handle.desired.send_replace(Desired {
                target: self.target(entry.source, &entry.pod),
                held: self.held(entry.source, &entry.pod),
                pod: entry.pod.clone(),
                wish: entry.wish.clone(),
            });
        }
    }

    /// The object in the API for the pod's status.
    fn target(&self, source: Source, pod: &Pod) -> Option<Target> {
        let uid = match source {
            Source::Api => pod.uid(),
            Source::Static => {
                let mirror = self.mirrors.get(&Key::of(pod))?;
                (statics::hash(mirror) == statics::hash(pod)).then(|| mirror.uid())?
            }
        };
        Some(Target {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: uid?,
        })
    }

    /// What the API says of the pod.
    fn held(&self, source: Source, pod: &Pod) -> Option<PodStatus> {
        match source {
            Source::Api => pod.status.clone(),
            Source::Static => self.mirrors.get(&Key::of(pod))?.status.clone(),
        }
    }

    fn static_of(&self, key: &Key) -> Option<&Entry> {
        self.entries
            .values()
            .find(|entry| entry.source == Source::Static && Key::of(&*entry.pod) == *key)
    }

    /// Brings the mirror of one name in line with the static pod, once both sources are known.
    fn mirror(&mut self, key: &Key) {
        if self.synced.len() < 2 {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let running = self
            .static_of(key)
            .filter(|entry| entry.wish == Wish::Run)
            .map(|entry| entry.pod.clone());
        match (running, self.mirrors.get(key)) {
            (Some(pod), None) => {
                let node = self.context.config.node.clone();
                self.tasks.spawn(create(api, node, pod));
            }
            (Some(pod), Some(mirror))
                if statics::hash(mirror) == statics::hash(&pod)
                    && mirror.metadata.deletion_timestamp.is_none() =>
            {
                self.send(&pod.uid().unwrap_or_default());
            }
            (_, Some(mirror)) => {
                self.tasks.spawn(delete(api, mirror.clone()));
            }
            (None, None) => {}
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        let uid = match ended {
            Ok(uid) => uid,
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed");
                return;
            }
        };
        self.book.write().remove(&uid);
        let Some(entry) = self.entries.remove(&uid) else {
            return;
        };
        let key = Key::of(&*entry.pod);
        if let Some(pod) = self.waiting.remove(&key) {
            self.applied(Source::Static, pod);
        }
        if entry.source == Source::Static {
            self.mirror(&key);
        }
    }

    /// Removes what no source knows. Nothing new comes in meanwhile, since this is awaited.
    async fn remove_orphans(&mut self) {
        let context = self.context.clone();
        let set_aside = context.runtime.set_aside();
        let node = eviction::node_ref(&context.config.node);
        for (uid, why) in &set_aside {
            let message = format!("Pod {uid} is left alone, its records are not understood: {why}");
            let level = events::Level::Warning;
            context
                .events
                .about(node.clone(), level, "RecordSetAside", message);
        }
        let live: Vec<String> = self
            .entries
            .keys()
            .chain(set_aside.keys())
            .cloned()
            .collect();
        let is_orphan = |uid: &String| !live.contains(uid);
        let pods = context.runtime.pods().await;
        let running: HashSet<String> = pods
            .iter()
            .map(|pod| pod.config.identity.uid.clone())
            .filter(is_orphan)
            .collect();
        for uid in running.clone() {
            tracing::info!(pod = uid, "removing a pod that nobody knows");
            self.tasks.spawn(remove(context.clone(), uid));
        }
        let known = context.volumes.known().await;
        let known = known.unwrap_or_else(|error| {
            tracing::warn!(%error, "volumes of pods that are gone may stay");
            Vec::new()
        });
        for uid in known.into_iter().filter(is_orphan) {
            if !running.contains(&uid) {
                self.tasks.spawn(remove(context.clone(), uid));
            }
        }
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

/// Removes a pod of which there is only the UID.
async fn remove(context: Arc<Context>, uid: String) {
    while let Err(error) = sandbox::release_uid(&context, &uid).await {
        tracing::warn!(pod = uid, error, "not removed, will retry");
        tokio::time::sleep(RETRY).await;
    }
}

/// Makes the mirror of a static pod. It belongs to the Node, which may be registered only now.
async fn create(api: Api<Pod>, node: String, pod: Arc<Pod>) {
    let nodes: Api<Node> = Api::all(api.clone().into_client());
    let mut pause = FIRST_RETRY;
    loop {
        match nodes.get_opt(&node).await {
            Ok(Some(node)) => {
                let mirror = statics::mirror(&pod, &node);
                match api.create(&PostParams::default(), &mirror).await {
                    Ok(_) => return,
                    // Refused for good, or there already: another try says nothing new.
                    Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
                        tracing::warn!(pod = mirror.name_any(), %status, "no mirror pod");
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "no mirror pod yet"),
                }
            }
            Ok(None) => tracing::debug!(node, "no mirror pod before the node is registered"),
            Err(error) => tracing::debug!(%error, "no mirror pod yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY);
    }
}

async fn delete(api: Api<Pod>, mirror: Arc<Pod>) {
    let params = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: mirror.uid(),
            resource_version: None,
        });
    if let Err(error) = api.delete(&mirror.name_any(), &params).await {
        tracing::debug!(%error, pod = mirror.name_any(), "mirror pod not deleted");
    }
}
