//! Mirror pods: the objects in the API that show static pods.
//!
//! Owns which there shall be and which there are. Called by the table, which says what runs and what
//! the API has; creates and deletes by itself. Always true:
//! - At most one change of a mirror is under way; a refused one is tried again with back-off.
//! - A mirror shows one run of its pod: when the pod has ended it goes, and a later run of the same
//!   manifest gets another.
//! - Nothing is changed before both the folder of manifests and the API have been read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};

use super::statics;
use crate::{
    backoff::Backoff,
    informer::Key,
    queue::{Queue, Taken},
    supervision::{Panic, caught, pulse},
};

const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The namespace, the quota or the node that is missing may be there by then.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Cheap to clone.
#[derive(Clone)]
pub struct Mirrors {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    node: String,
    state: Mutex<State>,
    /// Names of mirrors that must be looked at.
    queue: Queue<Key>,
}

#[derive(Default)]
struct State {
    /// Both sources have been read.
    open: bool,
    /// Static pods that run here, or are going to.
    runs: HashMap<Key, Arc<Pod>>,
    /// What the API has.
    held: BTreeMap<Key, Arc<Pod>>,
    /// UIDs of mirrors whose pod has ended.
    past: HashSet<String>,
    failures: HashMap<Key, Backoff>,
}

/// What is to be done about one name.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Create(Arc<Pod>),
    Delete(Arc<Pod>),
}

impl State {
    /// Pure.
    fn step(&self, key: &Key) -> Step {
        let run = self.runs.get(key).filter(|_| self.open);
        match (run, self.held.get(key).filter(|_| self.open)) {
            (None, None) => Step::Nothing,
            (Some(pod), None) => Step::Create(pod.clone()),
            (Some(pod), Some(mirror))
                if self.shows(mirror, pod) && mirror.metadata.deletion_timestamp.is_none() =>
            {
                Step::Nothing
            }
            (_, Some(mirror)) => Step::Delete(mirror.clone()),
        }
    }

    fn shows(&self, mirror: &Pod, pod: &Pod) -> bool {
        let over = mirror.uid().is_some_and(|uid| self.past.contains(&uid));
        !over && statics::hash(mirror) == statics::hash(pod)
    }

    fn retry_after(&mut self, key: &Key) -> Duration {
        let new = || Backoff::new(FIRST_RETRY, LAST_RETRY);
        let failures = self.failures.entry(key.clone()).or_insert_with(new);
        failures.next_wait()
    }
}

impl Mirrors {
    pub fn new(client: Client, node: String) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                node,
                state: Mutex::default(),
                queue: Queue::default(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Both sources have been read.
    pub fn open(&self) {
        let mut state = self.state();
        state.open = true;
        let keys = state.runs.keys().chain(state.held.keys()).cloned();
        keys.for_each(|key| self.shared.queue.add(key));
    }

    /// A static pod runs here from now on.
    pub fn run_begins(&self, pod: Arc<Pod>) {
        let key = Key::of(&*pod);
        self.state().runs.insert(key.clone(), pod);
        self.shared.queue.add(key);
    }

    /// Nothing of it is left.
    pub fn run_ended(&self, key: &Key) {
        let mut state = self.state();
        state.runs.remove(key);
        if let Some(uid) = state.held.get(key).and_then(|mirror| mirror.uid()) {
            state.past.insert(uid);
        }
        self.shared.queue.add(key.clone());
    }

    /// The API has it, or a newer version of it.
    pub fn applied(&self, mirror: Arc<Pod>) {
        let key = Key::of(&*mirror);
        self.state().held.insert(key.clone(), mirror);
        self.shared.queue.add(key);
    }

    pub fn deleted(&self, mirror: &Pod) {
        let key = Key::of(mirror);
        self.forget(&mut self.state(), &key, mirror);
        self.shared.queue.add(key);
    }

    /// Those with these UIDs are all that the API has.
    pub fn listed(&self, uids: &HashSet<String>) {
        let mut state = self.state();
        let gone: Vec<(Key, Arc<Pod>)> = { state.held.iter() }
            .filter(|(_, mirror)| !uids.contains(&mirror.uid().unwrap_or_default()))
            .map(|(key, mirror)| (key.clone(), mirror.clone()))
            .collect();
        for (key, mirror) in gone {
            self.forget(&mut state, &key, &mirror);
            self.shared.queue.add(key);
        }
    }

    fn forget(&self, state: &mut State, key: &Key, mirror: &Pod) {
        let uid = mirror.uid().unwrap_or_default();
        state.past.remove(&uid);
        let held = state.held.get(key).and_then(|held| held.uid());
        if held.as_ref() == Some(&uid) {
            state.held.remove(key);
        }
    }

    /// UID and status of the mirror that shows this run of the static pod.
    pub fn of(&self, pod: &Pod) -> Option<(String, Option<PodStatus>)> {
        let state = self.state();
        let mirror = state.held.get(&Key::of(pod))?;
        let shows = state.shows(mirror, pod);
        shows.then(|| Some((mirror.uid()?, mirror.status.clone())))?
    }

    /// Makes the API's mirrors what they shall be, for as long as it is polled.
    pub async fn run(self) {
        let queue = &self.shared.queue;
        let mut looks = FuturesUnordered::new();
        // Kept while others go on: it may have its key already.
        let mut next = std::pin::pin!(queue.next());
        loop {
            tokio::select! {
                () = pulse::asked() => {}
                key = &mut next => {
                    next.set(queue.next());
                    looks.push(self.look(key));
                }
                Some(()) = looks.next() => {}
            }
        }
    }

    async fn look(&self, key: Taken<'_, Key>) {
        let step = self.state().step(&key);
        let done = caught(self.carry_out(&key, step)).await;
        match done.map_err(Error::Panic).and_then(|done| done) {
            Ok(()) => drop(self.state().failures.remove(&*key)),
            Err(error) => {
                let delay = self.state().retry_after(&key);
                tracing::warn!(pod = %key.name, %error, "mirror pod, will retry");
                self.shared.queue.add_after(key.clone(), delay);
            }
        }
    }

    async fn carry_out(&self, key: &Key, step: Step) -> Result<(), Error> {
        let client = self.shared.client.clone();
        let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        match step {
            Step::Nothing => Ok(()),
            Step::Create(pod) => {
                // It belongs to the Node, which may be registered only later.
                let nodes: Api<Node> = Api::all(client);
                let node = nodes.get_opt(&self.shared.node).await?;
                let mirror = statics::mirror(&pod, &node.ok_or(Error::NoNode)?);
                let made = api.create(&PostParams::default(), &mirror).await;
                made.map(drop).map_err(Error::Create)
            }
            Step::Delete(mirror) => {
                let params = DeleteParams::default()
                    .grace_period(0)
                    .preconditions(Preconditions {
                        uid: mirror.uid(),
                        resource_version: None,
                    });
                match api.delete(&key.name, &params).await {
                    // Of one that is another by now the watch tells; it is looked at again.
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    deleted => deleted.map(drop).map_err(Error::Delete),
                }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the node is not registered yet")]
    NoNode,
    #[error("read the node: {0}")]
    Node(#[from] kube::Error),
    #[error("create: {0}")]
    Create(kube::Error),
    #[error("delete: {0}")]
    Delete(kube::Error),
    #[error(transparent)]
    Panic(Panic),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(hash: &str) -> Arc<Pod> {
        pod(json!({"name": "p", "namespace": "n", "uid": hash,
            "annotations": {"kubernetes.io/config.hash": hash}}))
    }

    fn mirror(uid: &str, hash: &str) -> Arc<Pod> {
        pod(
            json!({"name": "p", "namespace": "n", "uid": uid, "annotations": {
            "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash}}),
        )
    }

    fn pod(metadata: serde_json::Value) -> Arc<Pod> {
        let pod = json!({"metadata": metadata, "status": {"phase": "Running"}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn mirrors() -> Mirrors {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is there"))
        });
        Mirrors::new(Client::new(service, "default"), "node".into())
    }

    #[tokio::test]
    async fn each_run_has_a_mirror_of_its_own() {
        let mirrors = mirrors();
        let key = Key::new("n", "p");
        let step = || mirrors.state().step(&key);
        mirrors.run_begins(run("a"));
        assert_eq!(step(), Step::Nothing, "the API is not known yet");
        mirrors.open();
        assert_eq!(step(), Step::Create(run("a")));
        mirrors.applied(mirror("1", "a"));
        assert_eq!(step(), Step::Nothing);
        assert_eq!(mirrors.of(&run("a")).unwrap().0, "1");
        assert!(mirrors.of(&run("b")).is_none());
        // The manifest went and came back before the pod had ended.
        mirrors.run_ended(&key);
        mirrors.run_begins(run("a"));
        assert_eq!(step(), Step::Delete(mirror("1", "a")));
        assert!(mirrors.of(&run("a")).is_none(), "not the earlier run's");
        // Late news of the old one do not make it the new one's.
        mirrors.applied(mirror("1", "a"));
        assert!(mirrors.of(&run("a")).is_none());
        mirrors.deleted(&mirror("1", "a"));
        assert_eq!(step(), Step::Create(run("a")));
        mirrors.applied(mirror("2", "a"));
        mirrors.deleted(&mirror("1", "a"));
        assert_eq!(step(), Step::Nothing);
        mirrors.listed(&HashSet::from(["3".to_owned()]));
        assert_eq!(step(), Step::Create(run("a")));
        mirrors.run_ended(&key);
        assert_eq!(step(), Step::Nothing);
        assert!(mirrors.state().past.is_empty());
    }

    #[tokio::test]
    async fn a_mirror_of_another_manifest_or_one_that_is_deleted_goes() {
        let mirrors = mirrors();
        mirrors.open();
        let key = Key::new("n", "p");
        mirrors.run_begins(run("a"));
        mirrors.applied(mirror("1", "b"));
        assert_eq!(mirrors.state().step(&key), Step::Delete(mirror("1", "b")));
        let mut deleted = Pod::clone(&mirror("1", "a"));
        deleted.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        mirrors.applied(Arc::new(deleted.clone()));
        assert_eq!(mirrors.state().step(&key), Step::Delete(Arc::new(deleted)));
    }

    #[tokio::test]
    async fn a_refused_mirror_is_tried_again() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let tries = counted.clone();
            async move {
                let (code, body) = match request.method() {
                    &http::Method::GET => (200, json!({"metadata": {"name": "node", "uid": "u"}})),
                    _ => match tries.fetch_add(1, Ordering::SeqCst) {
                        0 => (
                            403,
                            json!({"code": 403, "reason": "Forbidden", "message": "quota",
                            "status": "Failure"}),
                        ),
                        1 => (
                            404,
                            json!({"code": 404, "reason": "NotFound", "message": "namespace",
                            "status": "Failure"}),
                        ),
                        _ => (201, serde_json::to_value(&*mirror("1", "a")).unwrap()),
                    },
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                let response = http::Response::builder().status(code).body(body);
                response.map_err(std::io::Error::other)
            }
        });
        let mirrors = Mirrors::new(Client::new(service, "default"), "node".into());
        mirrors.run_begins(run("a"));
        mirrors.open();
        let running = tokio::spawn(mirrors.clone().run());
        while tries.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        mirrors.applied(mirror("1", "a"));
        tokio::time::sleep(8 * FIRST_RETRY).await;
        assert_eq!(tries.load(Ordering::SeqCst), 3, "done is done");
        running.abort();
    }
}
