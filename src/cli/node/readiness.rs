//! Whether the node can run pods, and why it cannot.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeObject, NodeCondition};
use kube::{Api, runtime::wait};
use tokio::sync::watch;

use crate::{
    cli::Error,
    kubelet::{network, node::Refused},
};

/// A node that is not ready by then says why.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(60);
/// What refuses the node's own writes for so long will go on to: who serves a webhook from a pod of
/// this node needs a moment after a start.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(5);

/// How it went with a node that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The API server works and the node would, but what it says of itself is refused.
    Refused(String),
    /// Everything works but the network of its pods, which others have yet to bring.
    NoNetwork(String),
}

/// What helps where webhooks keep the node from being one.
const REMEDY: &str = "A webhook that refuses it can be deleted or changed: kubectl get \
                      validatingwebhookconfigurations,mutatingwebhookconfigurations";

impl Readiness {
    /// What keeps the node `name` from running pods, and what to do about it.
    pub fn obstacle(self, name: &str) -> Option<String> {
        let (why, remedy) = match self {
            Self::Ready => return None,
            Self::Refused(why) => (why, REMEDY),
            Self::NoNetwork(why) => (why, "It is ready as soon as that is mended"),
        };
        Some(format!(
            "node {name} is not ready, and runs no new pods: {why}. {remedy}"
        ))
    }
}

/// Resolves when the API has refused for a while what the node says of itself.
pub(super) async fn refused(mut told: watch::Receiver<Refused>, time: Duration) -> String {
    loop {
        let waited = told.wait_for(|refused| why(refused).is_some()).await;
        if waited.map(drop).is_err() {
            return std::future::pending().await; // there is no kubelet
        }
        tokio::time::sleep(time).await;
        if let Some(why) = why(&told.borrow()) {
            return why;
        }
    }
}

/// Resolves when pods have had no network for a while.
pub(super) async fn lacking(
    mut network: watch::Receiver<network::Readiness>,
    time: Duration,
) -> String {
    let is_lacking =
        |network: &network::Readiness| matches!(network, network::Readiness::NotReady(_));
    loop {
        if network.wait_for(is_lacking).await.is_err() {
            return std::future::pending().await; // it is there for good
        }
        tokio::time::sleep(time).await;
        if let network::Readiness::NotReady(why) = &*network.borrow() {
            return why.clone();
        }
    }
}

fn why(refused: &Refused) -> Option<String> {
    let Refused { node, lease } = refused;
    let of_node = node.as_ref().map(|why| ("Node", why));
    let (what, why) = of_node.or(lease.as_ref().map(|why| ("Lease", why)))?;
    Some(format!("the API does not take its {what}: {why}"))
}

/// Waits until the node is Ready.
pub(super) async fn reached(nodes: &Api<NodeObject>, name: &str) -> Result<(), Error> {
    let is_ready = |node: Option<&NodeObject>| node.is_some_and(is_ready);
    let ready = wait::await_condition(nodes.clone(), name, is_ready);
    Ok(ready.await.map(drop)?)
}

fn is_ready(node: &NodeObject) -> bool {
    ready_condition(node).is_some_and(|condition| condition.status == "True")
}

fn ready_condition(node: &NodeObject) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
}

pub(super) async fn not_ready(nodes: &Api<NodeObject>, name: &str) -> Error {
    let node = nodes.get_opt(name).await.ok().flatten();
    let message = node
        .as_ref()
        .and_then(ready_condition)
        .and_then(|condition| condition.message.clone());
    let message = message.unwrap_or_else(|| "it has not reported".into());
    format!("the node is not ready after {READY_WITHIN:?}: {message}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_refused_for_a_while_is_refused() {
        let told = watch::Sender::<Refused>::default();
        let time = Duration::from_millis(200);
        let mut waits = std::pin::pin!(refused(told.subscribe(), time));
        // Once is nothing yet.
        told.send_modify(|refused| refused.node = Some("failed calling webhook \"w\"".into()));
        tokio::select! {
            why = &mut waits => panic!("{why}"),
            () = tokio::time::sleep(time / 20) => {}
        }
        told.send_modify(|refused| refused.node = None);
        tokio::select! {
            why = &mut waits => panic!("{why}"),
            () = tokio::time::sleep(2 * time) => {}
        }
        told.send_modify(|refused| refused.lease = Some("denied".into()));
        assert_eq!(waits.await, "the API does not take its Lease: denied");
    }
}
