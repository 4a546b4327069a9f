//! Claims of the class `local`: created with their pod, to bound and to Ready.

use std::{
    collections::HashMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
    runtime::wait::await_condition,
};
use serde::de::DeserializeOwned;
use serde_json::json;

const SINGLE: usize = 40;
const MANY: usize = 100;

fn claim(name: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }))
    .unwrap()
}

fn pod(name: &str, claimed: bool) -> Pod {
    let mut pod = serde_json::to_value(super::pods::pod(name)).unwrap();
    if claimed {
        pod["spec"]["volumes"] =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
    }
    serde_json::from_value(pod).unwrap()
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    status.is_some_and(|status| status.phase.as_deref() == Some("Bound"))
}

/// When each of so many objects was first seen so, by one watch as a client has it; `ready`: it watches.
async fn seen<K>(
    api: Api<K>,
    count: usize,
    is_so: fn(&K) -> bool,
    ready: tokio::sync::oneshot::Sender<()>,
) -> HashMap<String, Instant>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let now = api.list_metadata(&ListParams::default()).await.unwrap();
    let version = now.metadata.resource_version.unwrap();
    let events = api.watch(&WatchParams::default(), &version).await.unwrap();
    let mut events = std::pin::pin!(events);
    let _ = ready.send(());
    let mut seen = HashMap::new();
    while seen.len() < count {
        match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(object) | WatchEvent::Modified(object) if is_so(&object) => {
                seen.entry(object.name_any()).or_insert_with(Instant::now);
            }
            _ => {}
        }
    }
    seen
}

async fn since<E: Debug>(
    started: Instant,
    done: impl Future<Output = Result<impl Sized, E>>,
) -> Duration {
    done.await.unwrap();
    started.elapsed()
}

struct Clients {
    pods: Api<Pod>,
    claims: Api<PersistentVolumeClaim>,
}

impl Clients {
    /// Creates a pod, with a claim or without; until the claim is bound, and until the pod is ready.
    async fn one(&self, name: &str, claimed: bool) -> (Duration, Duration) {
        let params = PostParams::default();
        let started = Instant::now();
        if claimed {
            self.claims.create(&params, &claim(name)).await.unwrap();
        }
        self.pods
            .create(&params, &pod(name, claimed))
            .await
            .unwrap();
        let bound = async {
            if claimed {
                let bound = |claim: Option<&PersistentVolumeClaim>| claim.is_some_and(is_bound);
                await_condition(self.claims.clone(), name, bound)
                    .await
                    .unwrap();
            }
            Ok::<_, ()>(())
        };
        let is_ready = |pod: Option<&Pod>| pod.is_some_and(super::pods::is_ready);
        let ready = await_condition(self.pods.clone(), name, is_ready);
        tokio::join!(since(started, bound), since(started, ready))
    }

    /// Creates all at once; of each, until its claim is bound and until its pod is ready.
    async fn many(&self, claimed: bool) -> (Vec<Duration>, Vec<Duration>) {
        let params = PostParams::default();
        let ((pods_ready, pods_watched), (claims_ready, claims_watched)) = (
            tokio::sync::oneshot::channel(),
            tokio::sync::oneshot::channel(),
        );
        let claims = if claimed { MANY } else { 0 };
        let bound = tokio::spawn(seen(self.claims.clone(), claims, is_bound, claims_ready));
        let ready = tokio::spawn(seen(
            self.pods.clone(),
            MANY,
            super::pods::is_ready,
            pods_ready,
        ));
        pods_watched.await.unwrap();
        claims_watched.await.unwrap();
        let created = futures::stream::iter(0..MANY).map(|index| {
            let (name, params) = (format!("many-{index}"), &params);
            async move {
                let started = Instant::now();
                if claimed {
                    let claim = claim(&name);
                    self.claims.create(params, &claim).await.unwrap();
                }
                let pod = pod(&name, claimed);
                self.pods.create(params, &pod).await.unwrap();
                (name, started)
            }
        });
        let started: HashMap<_, _> = created.buffer_unordered(MANY).collect().await;
        let figures = |seen: HashMap<String, Instant>| {
            let since = |(name, at): (String, Instant)| at - started[&name];
            seen.into_iter().map(since).collect()
        };
        (figures(bound.await.unwrap()), figures(ready.await.unwrap()))
    }

    async fn none(&self) {
        let (all, params) = (ListParams::default(), DeleteParams::default());
        self.pods.delete_collection(&params, &all).await.unwrap();
        self.claims.delete_collection(&params, &all).await.unwrap();
        while !(self.pods.list(&all).await.unwrap().items.is_empty()
            && self.claims.list(&all).await.unwrap().items.is_empty())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Pods with a claim beside pods without, in turns.
pub async fn bound(client: Client) {
    let clients = Clients {
        pods: Api::namespaced(client.clone(), "default"),
        claims: Api::namespaced(client, "default"),
    };
    let (mut bound, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SINGLE {
        without.push(clients.one("plain", false).await.1);
        clients.none().await;
        let (claim, pod) = clients.one("claims", true).await;
        bound.push(claim);
        with.push(pod);
        clients.none().await;
    }
    super::print("claim/one: create to Bound", bound, "goal 30");
    super::print("claim/one: its pod, create to Ready", with, "goal 30 more");
    super::print("claim/none: a pod without, the same time", without, "-");
    for claimed in [false, true] {
        let started = Instant::now();
        let (bound, ready) = clients.many(claimed).await;
        let whole = started.elapsed();
        let name = match claimed {
            true => "claim/many: 100 pods with claims at once, each",
            false => "claim/many: 100 pods without, each",
        };
        if claimed {
            super::print("claim/many: 100 claims at once, each Bound", bound, "-");
        }
        super::print(name, ready, &format!("all in {} ms", whole.as_millis()));
        clients.none().await;
    }
}
