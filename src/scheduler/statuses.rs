//! What the statuses of pods without a node are to say: why they have none, and what they were promised.
//!
//! Always true: of each pod one write is under way at most, and the newest wish is written last; what
//! is written is judged by the pod as it is, so that nothing lands on one that has a node meanwhile.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::pod::{PodInfo, Uid, nominated, uid_of};
use crate::{queue::Queue, supervision::caught};

const WORKERS: usize = 4;
const UNSCHEDULABLE: &str = "Unschedulable";

/// What becomes of the node that a pod was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nomination {
    Keep,
    Node(String),
    Nothing,
}

#[derive(Clone, Debug)]
pub struct Wish {
    pub pod: Arc<PodInfo>,
    /// Why it has no node; `None`: as was said before.
    pub message: Option<String>,
    pub nomination: Nomination,
}

impl Wish {
    /// Both, the newer one where they disagree.
    fn after(mut self, older: Self) -> Self {
        self.message = self.message.or(older.message);
        if self.nomination == Nomination::Keep {
            self.nomination = older.nomination;
        }
        self
    }
}

pub struct Statuses {
    shared: Arc<Shared>,
    _workers: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Queue<Uid>,
    wishes: Mutex<Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    waiting: HashMap<Uid, Wish>,
    being_written: HashSet<Uid>,
}

impl Statuses {
    /// Writes until it is dropped.
    pub fn start(client: Client) -> Self {
        let shared = Arc::new(Shared::default());
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            workers.spawn(work(shared.clone(), client.clone()));
        }
        Self {
            shared,
            _workers: workers,
        }
    }

    pub fn write(&self, wish: Wish) {
        self.shared.add(wish);
    }

    /// The pod is gone, or over.
    pub fn forget(&self, uid: &Uid) {
        self.shared.wishes().waiting.remove(uid);
    }

    /// Whether what the pod's status says is not the last word from here.
    pub fn is_pending(&self, uid: &Uid) -> bool {
        let wishes = self.shared.wishes();
        wishes.waiting.contains_key(uid) || wishes.being_written.contains(uid)
    }
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, wish: Wish) {
        let uid = wish.pod.uid.clone();
        {
            let waiting = &mut self.wishes().waiting;
            let wish = match waiting.remove(&uid) {
                Some(older) => wish.after(older),
                None => wish,
            };
            waiting.insert(uid.clone(), wish);
        }
        self.queue.add(uid);
    }

    fn take(&self, uid: &Uid) -> Option<Wish> {
        let mut wishes = self.wishes();
        let wish = wishes.waiting.remove(uid)?;
        wishes.being_written.insert(uid.clone());
        Some(wish)
    }

    /// `again`: it could not be written.
    fn give_back(&self, uid: &Uid, again: Option<Wish>) {
        let mut wishes = self.wishes();
        wishes.being_written.remove(uid);
        if let Some(older) = again {
            let wish = match wishes.waiting.remove(uid) {
                Some(newer) => newer.after(older),
                None => older,
            };
            wishes.waiting.insert(uid.clone(), wish);
        }
    }
}

async fn work(shared: Arc<Shared>, client: Client) {
    loop {
        let uid = shared.queue.next().await;
        let Some(wish) = shared.take(&uid) else {
            shared.queue.forget(&uid);
            continue;
        };
        let failed = match caught(write(&client, &wish)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => {
                tracing::error!(pod = %wish.pod.key, %panic, "status not written");
                Some(panic.to_string())
            }
        };
        match failed {
            None => {
                shared.give_back(&uid, None);
                shared.queue.forget(&uid);
            }
            Some(error) => {
                tracing::debug!(pod = %wish.pod.key, error, "status not written, will retry");
                shared.give_back(&uid, Some(wish));
                shared.queue.retry(uid.clone());
            }
        }
    }
}

async fn write(client: &Client, wish: &Wish) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &wish.pod.key.namespace);
    let name = &wish.pod.key.name;
    let mut pod = wish.pod.pod.clone();
    loop {
        let Some(patch) = patch(&pod, wish) else {
            return Ok(());
        };
        let (params, patch) = (PatchParams::default(), Patch::Strategic(&patch));
        match api.patch_status(name, &params, &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            // It is not what it was: what is there to say of it now?
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            Err(error) => return Err(error),
        }
        match api.get_opt(name).await? {
            Some(live) if uid_of(&live) == wish.pod.uid => pod = Arc::new(live),
            _ => return Ok(()),
        }
    }
}

/// What to write of the wish on a pod that looks like this; `None`: nothing. Pure but for the clock.
fn patch(pod: &Pod, wish: &Wish) -> Option<Value> {
    let spec = pod.spec.as_ref();
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    if node.is_some_and(|node| !node.is_empty()) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut status = json!({});
    if let Some(condition) = condition(pod, wish) {
        status["conditions"] = json!([condition]);
    }
    match (&wish.nomination, nominated(pod)) {
        (Nomination::Node(node), held) if held != Some(node) => {
            status["nominatedNodeName"] = json!(node);
        }
        (Nomination::Nothing, Some(_)) => status["nominatedNodeName"] = Value::Null,
        _ => {}
    }
    let changes = status.as_object().is_some_and(|status| !status.is_empty());
    changes.then(|| {
        let judged = json!({"uid": pod.uid(), "resourceVersion": pod.resource_version()});
        json!({"metadata": judged, "status": status})
    })
}

/// The condition `PodScheduled`, if it does not say the same already.
fn condition(pod: &Pod, wish: &Wish) -> Option<Value> {
    let message = wish.message.as_deref()?;
    let held = conditions(pod).find(|held| held.type_ == "PodScheduled" && held.status == "False");
    let same = held.is_some_and(|held| {
        held.reason.as_deref() == Some(UNSCHEDULABLE) && held.message.as_deref() == Some(message)
    });
    if same {
        return None;
    }
    let since = held.and_then(|held| held.last_transition_time.clone());
    Some(json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": UNSCHEDULABLE,
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": since.unwrap_or(Time(Timestamp::now())),
    }))
}

fn conditions(pod: &Pod) -> impl Iterator<Item = &PodCondition> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value, status: Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
            "resourceVersion": "7"}, "spec": spec, "status": status}),
        )
        .expect("a pod")
    }

    fn wish(message: Option<&str>, nomination: Nomination) -> Wish {
        let containers = json!({"containers": []});
        Wish {
            pod: Arc::new(PodInfo::new(Arc::new(pod(containers, json!({}))))),
            message: message.map(str::to_owned),
            nomination,
        }
    }

    #[test]
    fn only_what_differs_is_written_and_nothing_on_a_pod_that_has_a_node() {
        let free = || json!({"containers": []});
        let said = json!({"conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "full"}], "nominatedNodeName": "a"});
        let node = |name: &str| Nomination::Node(name.to_owned());
        for (spec, status, wish, condition, nomination) in [
            (
                free(),
                json!({}),
                wish(Some("full"), node("a")),
                true,
                Some(json!("a")),
            ),
            (
                free(),
                said.clone(),
                wish(Some("full"), node("a")),
                false,
                None,
            ),
            (
                free(),
                said.clone(),
                wish(Some("other"), Nomination::Keep),
                true,
                None,
            ),
            (
                free(),
                said.clone(),
                wish(None, Nomination::Nothing),
                false,
                Some(Value::Null),
            ),
            (
                json!({"containers": [], "nodeName": "b"}),
                json!({}),
                wish(Some("full"), node("a")),
                false,
                None,
            ),
        ] {
            let made = patch(&pod(spec, status), &wish);
            let status = made.as_ref().map(|made| &made["status"]);
            let has = |name: &str| status.and_then(|status| status.get(name));
            assert_eq!(has("conditions").is_some(), condition, "{wish:?}");
            assert_eq!(has("nominatedNodeName").cloned(), nomination, "{wish:?}");
            if let Some(made) = &made {
                assert_eq!(
                    made["metadata"],
                    json!({"uid": "u", "resourceVersion": "7"})
                );
            }
        }
    }

    #[test]
    fn the_newest_wish_counts_and_what_it_leaves_open_is_kept() {
        let shared = Shared::default();
        shared.add(wish(Some("first"), Nomination::Node("a".to_owned())));
        shared.add(wish(Some("second"), Nomination::Keep));
        let uid: Uid = "u".into();
        let taken = shared.take(&uid).expect("a wish");
        assert_eq!(taken.message.as_deref(), Some("second"));
        assert_eq!(taken.nomination, Nomination::Node("a".to_owned()));
        // It could not be written, and a newer one has come.
        shared.add(wish(None, Nomination::Nothing));
        shared.give_back(&uid, Some(taken));
        let taken = shared.take(&uid).expect("both in one");
        assert_eq!(taken.message.as_deref(), Some("second"));
        assert_eq!(taken.nomination, Nomination::Nothing);
    }
}
