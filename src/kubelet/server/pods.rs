//! `/pods` and `/runningpods/`: what this node should run, and what it does run.

use http::Response;
use k8s_openapi::{
    List,
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    Server,
    answer::{Answer, Body, json},
};
use crate::runtime::{Phase, PodState};

pub fn bound(server: &Server) -> Result<Response<Body>, Answer> {
    let pods = server.pods.pods();
    list(pods.iter().map(|pod| Pod::clone(pod)).collect())
}

pub async fn running(server: &Server) -> Result<Response<Body>, Answer> {
    let pods = server.runtime.pods().await;
    list(pods.iter().filter_map(as_pod).collect())
}

fn list(items: Vec<Pod>) -> Result<Response<Body>, Answer> {
    json(&List {
        items,
        ..List::default()
    })
}

/// The little that the runtime knows of a pod, if anything of it runs. Pure.
fn as_pod(state: &PodState) -> Option<Pod> {
    let running = |phase: &Phase| matches!(phase, Phase::Running { .. });
    let containers: Vec<Container> = state
        .containers
        .iter()
        .filter(|one| running(&one.phase))
        .map(|one| Container {
            name: one.name.clone(),
            ..Container::default()
        })
        .collect();
    if containers.is_empty() {
        return None;
    }
    let identity = &state.config.identity;
    let created = jiff::Timestamp::try_from(state.created).ok();
    Some(Pod {
        metadata: ObjectMeta {
            name: Some(identity.name.clone()),
            namespace: Some(identity.namespace.clone()),
            uid: Some(identity.uid.clone()),
            creation_timestamp: created.map(Time),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers,
            ..PodSpec::default()
        }),
        status: None,
    })
}
