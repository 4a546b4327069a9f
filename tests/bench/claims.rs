//! Claims of the class `local`: created with their pod, to bound and to Ready.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    runtime::wait::await_condition,
};
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
    let mut pod = serde_json::to_value(super::pod(name)).unwrap();
    if claimed {
        pod["spec"]["volumes"] =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
    }
    serde_json::from_value(pod).unwrap()
}

async fn since<E: std::fmt::Debug>(
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
                let is_bound = |claim: Option<&PersistentVolumeClaim>| {
                    let status = claim.and_then(|claim| claim.status.as_ref());
                    status.is_some_and(|status| status.phase.as_deref() == Some("Bound"))
                };
                await_condition(self.claims.clone(), name, is_bound)
                    .await
                    .unwrap();
            }
            Ok::<_, ()>(())
        };
        let is_ready = |pod: Option<&Pod>| pod.is_some_and(super::is_ready);
        let ready = await_condition(self.pods.clone(), name, is_ready);
        tokio::join!(since(started, bound), since(started, ready))
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
        let all = (0..MANY).map(|index| {
            let clients = &clients;
            async move { clients.one(&format!("many-{index}"), claimed).await }
        });
        let figures = futures::future::join_all(all).await;
        let whole = started.elapsed();
        let name = match claimed {
            true => "claim/many: 100 pods with claims at once, each",
            false => "claim/many: 100 pods without, each",
        };
        if claimed {
            let bound = figures.iter().map(|(bound, _)| *bound).collect();
            super::print("claim/many: 100 claims at once, each Bound", bound, "-");
        }
        let ready = figures.into_iter().map(|(_, ready)| ready).collect();
        super::print(name, ready, &format!("all in {} ms", whole.as_millis()));
        clients.none().await;
    }
}
