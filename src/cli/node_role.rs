//! The label by which `kubectl get nodes` shows where the control plane is.
//!
//! A kubelet may not give itself a role (NodeRestriction): the label is written where the API server is, as
//! kubeadm does it. There is no taint with it: this node runs pods as any other.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    backoff::Backoff,
    informer::{Informers, Key},
    supervision::{Parts, Policy},
};

/// The label, whose value is empty.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Keeps the label on the node `name`, also when its Node is made anew.
pub fn keep(parts: &Parts, client: Client, informers: Informers, name: &str) {
    let role = Arc::new(Role {
        client,
        name: name.to_owned(),
    });
    parts.start_endless("part/node-role", Policy::Restart, move || {
        role.clone().keep(informers.clone())
    });
}

struct Role {
    client: Client,
    name: String,
}

impl Role {
    async fn keep(self: Arc<Self>, informers: Informers) {
        let nodes = informers.get::<Node>();
        let mut changes = nodes.changes();
        let key = Key::new("", &self.name);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            if nodes.get(&key).is_some_and(|node| is_missing(&node)) {
                match self.write().await {
                    Ok(()) => backoff.reset(),
                    Err(error) => {
                        // What users have set up may refuse it.
                        tracing::debug!(%error, "the node's role is not told");
                        tokio::time::sleep(backoff.next_wait()).await;
                        continue;
                    }
                }
            }
            if changes.next().await.is_none() {
                return;
            }
        }
    }

    async fn write(&self) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"metadata": {"labels": {CONTROL_PLANE: ""}}}));
        let nodes: Api<Node> = Api::all(self.client.clone());
        match nodes
            .patch(&self.name, &PatchParams::default(), &patch)
            .await
        {
            // It was deleted meanwhile; a new one is a change.
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            written => written.map(drop),
        }
    }
}

fn is_missing(node: &Node) -> bool {
    !node.labels().contains_key(CONTROL_PLANE)
}
