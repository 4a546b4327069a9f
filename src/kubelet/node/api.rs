//! Writing the Node and its Lease.

use std::{net::IpAddr, path::Path, time::Duration};

use ipnet::IpNet;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Config, Description, DnsAt, Refused, answered, status};
use crate::addresses::family::PerFamily;
use crate::placement::{
    DNS_AT, DNS_AT_NODE, WANTED_RANGE,
    local::{FOLDER, FOLDERS},
};

const LEASES: &str = "kube-node-lease";
const LEASE_SECONDS: u32 = 40;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(7);

/// Creates the Node, or puts our labels on the one that is there. Tries until it works: a node
/// without an object is none.
pub async fn register(config: &Config, client: &Client, refused: &watch::Sender<Refused>) -> Node {
    let mut pause = FIRST_RETRY;
    loop {
        let attempt = try_register(
            &config.node,
            &config.state_dir,
            Some((&config.pod_cidrs, config.dns)),
            &config.description,
            client,
        );
        match answered(refused, |refused| &mut refused.node, attempt).await {
            Ok(node) => return node,
            Err(error) => tracing::warn!(%error, "registering the node failed, will retry"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

async fn try_register(
    name: &str,
    state_dir: &Path,
    pods: Option<(&PerFamily<IpNet>, DnsAt)>,
    description: &Description,
    client: &Client,
) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut annotations = json!({FOLDERS: state_dir.join(FOLDER)});
    if let Some((ranges, dns)) = pods {
        annotations[WANTED_RANGE] = ranges.to_string().into();
        // Nothing of what another setting has left.
        annotations[DNS_AT] = match dns {
            DnsAt::Range => Value::Null,
            DnsAt::Node => DNS_AT_NODE.into(),
        };
    }
    let metadata = json!({
        "name": name,
        "labels": status::labels(name, &description.labels),
        "annotations": annotations,
    });
    if nodes.get_opt(name).await?.is_some() {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        return nodes.patch(name, &PatchParams::default(), &patch).await;
    }
    let mut spec = json!({});
    if !description.taints.is_empty() {
        spec["taints"] = json!(description.taints);
    }
    let mut object = json!({"metadata": metadata, "spec": spec});
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|_, value| !value.is_null());
    }
    let node = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    nodes.create(&PostParams::default(), &node).await
}

/// Creates the Node of a machine that is about to run pods, if there is none, and says where it is.
pub async fn introduce(
    client: &Client,
    node: &str,
    addresses: &[IpAddr],
    state_dir: &Path,
    description: &Description,
) -> Result<(), kube::Error> {
    try_register(node, state_dir, None, description, client).await?;
    let status = json!({"addresses": status::addresses(node, addresses)});
    write_status(client, node, &status).await.map(drop)
}

pub async fn read(client: &Client, node: &str) -> Result<Option<Node>, kube::Error> {
    Api::all(client.clone()).get_opt(node).await
}

pub async fn write_status(
    client: &Client,
    node: &str,
    status: &Value,
) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = Patch::Strategic(json!({"status": status}));
    nodes
        .patch_status(node, &PatchParams::default(), &patch)
        .await
}

/// Says that the node lives. The Lease is the Node's, and goes with it.
pub async fn renew(client: &Client, node: &Node) -> Result<(), kube::Error> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
    });
    let patch = Patch::Merge(json!({"spec": spec}));
    match leases.patch(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let owner = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "name": name,
                "uid": node.metadata.uid,
            });
            let object = json!({
                "metadata": {"name": name, "ownerReferences": [owner]},
                "spec": spec,
            });
            let lease = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
            leases
                .create(&PostParams::default(), &lease)
                .await
                .map(drop)
        }
        result => result.map(drop),
    }
}
