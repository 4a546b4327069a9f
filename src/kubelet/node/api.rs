//! Writing the Node and its Lease.

use std::time::Duration;

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

use super::{Config, Refused, answered, status};

const LEASES: &str = "kube-node-lease";
const LEASE_SECONDS: u32 = 40;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(7);

/// Creates the Node, or puts our labels on the one that is there. Tries until it works: a node
/// without an object is none.
pub async fn register(config: &Config, client: &Client, refused: &watch::Sender<Refused>) -> Node {
    let mut pause = FIRST_RETRY;
    loop {
        let attempt = try_register(config, client);
        match answered(refused, |refused| &mut refused.node, attempt).await {
            Ok(node) => return node,
            Err(error) => tracing::warn!(%error, "registering the node failed, will retry"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

async fn try_register(config: &Config, client: &Client) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    if let Some(node) = nodes.get_opt(&config.node).await? {
        let labels = status::labels(&config.node);
        let mut patch = json!({"metadata": {"labels": labels}});
        let has_range = node
            .spec
            .as_ref()
            .is_some_and(|spec| spec.pod_cidr.is_some());
        if let (Some(range), false) = (&config.pod_cidr, has_range) {
            patch["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
        }
        return nodes
            .patch(&config.node, &PatchParams::default(), &Patch::Merge(patch))
            .await;
    }
    let mut object = json!({
        "metadata": {"name": config.node, "labels": status::labels(&config.node)},
        "spec": {},
    });
    if let Some(range) = &config.pod_cidr {
        object["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
    }
    let node = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    nodes.create(&PostParams::default(), &node).await
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
