//! Pods that sleep, and the client that makes them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions},
};
use serde_json::json;

/// The administrator of the cluster below `root`.
pub async fn client(root: &Path) -> Client {
    let path = root.join("etc/admin.kubeconfig");
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

pub fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"bench": "pod"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "100000"]}],
        },
    }))
    .unwrap()
}

pub fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
}

/// How long one pod takes from its creation until it is Ready; it is gone again afterwards.
pub async fn start(pods: &Api<Pod>, name: &str) -> Duration {
    let started = Instant::now();
    pods.create(&PostParams::default(), &pod(name))
        .await
        .unwrap();
    await_condition(pods.clone(), name, |pod: Option<&Pod>| {
        pod.is_some_and(is_ready)
    })
    .await
    .unwrap();
    let took = started.elapsed();
    let gone = pods.delete(name, &DeleteParams::default()).await.unwrap();
    if let Some(pod) = gone.left() {
        let uid = pod.metadata.uid.unwrap();
        await_condition(pods.clone(), name, conditions::is_deleted(&uid))
            .await
            .unwrap();
    }
    took
}
