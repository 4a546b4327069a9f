//! `vetch up --demo`: a small application, answering through its Service, on a machine that has
//! nothing but this program.
//!
//! Owns the namespace `demo`. Its image is made from this very binary, so no registry is needed.

mod image;
pub mod server;

use std::{fmt::Debug, net::IpAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Service},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::Error;
use crate::runtime::image::Images;

const NAME: &str = "demo";
const REPLICAS: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// What a user can look at now.
pub struct Demo {
    pub url: String,
    /// What the application said when asked.
    pub answer: String,
}

/// Makes the application, or brings an older one up to date, and waits until it answers.
pub async fn deploy(client: &Client, images: &Images) -> Result<Demo, Error> {
    image::import(images).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    ensure(&namespaces, json!({"metadata": {"name": NAME}})).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAME);
    ensure(&deployments, deployment()).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), NAME);
    let service = ensure(&services, service()).await?;
    let address: IpAddr = service
        .spec
        .and_then(|spec| spec.cluster_ip)
        .ok_or("the demo's service has no address")?
        .parse()?;
    let available = |deployment: Option<&Deployment>| {
        deployment
            .and_then(|deployment| deployment.status.as_ref())
            .is_some_and(|status| {
                status.updated_replicas == Some(REPLICAS)
                    && status.available_replicas == Some(REPLICAS)
            })
    };
    tokio::time::timeout(PATIENCE, await_condition(deployments, NAME, available))
        .await
        .map_err(|_| {
            format!(
                "the demo is not available after {} s; see `kubectl -n {NAME} describe pods`",
                PATIENCE.as_secs()
            )
        })??;
    let answer = tokio::time::timeout(PATIENCE, ask(address))
        .await
        .map_err(|_| format!("the demo's service at {address} does not answer"))?;
    Ok(Demo {
        url: format!("http://{address}/"),
        answer,
    })
}

/// Creates the object, or patches the one that exists.
async fn ensure<K>(api: &Api<K>, wanted: Value) -> Result<K, Error>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::from_value(wanted.clone())?;
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = Patch::Merge(wanted);
            let params = PatchParams::default();
            Ok(api.patch(&object.name_any(), &params, &patch).await?)
        }
        result => Ok(result?),
    }
}

fn deployment() -> Value {
    json!({
        "metadata": {"name": NAME, "labels": {"app": NAME}},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": NAME,
                        "image": image::NAME,
                        "imagePullPolicy": "Never",
                        "ports": [{"containerPort": server::PORT}],
                        "env": [
                            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                            {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        ],
                        "readinessProbe": {"httpGet": {"path": "/", "port": server::PORT}},
                        "securityContext": {
                            "runAsNonRoot": true,
                            "runAsUser": 1000,
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            },
        },
    })
}

fn service() -> Value {
    json!({
        "metadata": {"name": NAME, "labels": {"app": NAME}},
        "spec": {
            "selector": {"app": NAME},
            "ports": [{"port": 80, "targetPort": server::PORT}],
        },
    })
}

/// Asks until somebody answers: the proxy may be a moment behind.
async fn ask(address: IpAddr) -> String {
    loop {
        match get(address).await {
            Ok(text) => return text,
            Err(error) => {
                tracing::debug!(%error, "the demo does not answer yet");
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        }
    }
}

async fn get(address: IpAddr) -> Result<String, Error> {
    let connect = tokio::net::TcpStream::connect((address, 80));
    let stream = tokio::time::timeout(Duration::from_secs(1), connect).await??;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get("/")
        .header(http::header::HOST, NAME)
        .body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}
