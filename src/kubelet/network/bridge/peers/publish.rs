//! The node's public key on its Node, from where other nodes have it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use netns::wireguard::PublicKey;
use serde_json::json;
use tokio::sync::watch;

use super::plan::{PUBLIC_KEY, written};
use crate::{
    backoff::Backoff,
    informer::{Informer, Key},
};

/// What the Node is to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Published {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// No key.
    Nothing,
    Key(PublicKey),
}

impl Published {
    /// The annotation's value where another one must be written; pure.
    fn over(&self, node: &Node) -> Option<Option<String>> {
        let wanted = match self {
            Self::Unknown => return None,
            Self::Nothing => None,
            Self::Key(key) => Some(written(key)),
        };
        (node.annotations().get(PUBLIC_KEY) != wanted.as_ref()).then_some(wanted)
    }
}

/// Keeps the annotation, also when the Node is made anew. `client` acts as the node, which may write its own.
pub async fn keep(
    client: Client,
    nodes: &Informer<Node>,
    name: &str,
    mut wanted: watch::Receiver<Published>,
) {
    let nodes_of = Api::<Node>::all(client);
    let mut changes = nodes.changes();
    let key = Key::new("", name);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let published = *wanted.borrow_and_update();
        let write = nodes.get(&key).and_then(|node| published.over(&node));
        if let Some(value) = write {
            let patch = Patch::Merge(json!({"metadata": {"annotations": {PUBLIC_KEY: value}}}));
            match nodes_of.patch(name, &PatchParams::default(), &patch).await {
                Ok(_) => backoff.reset(),
                // It was deleted meanwhile; a new one is a change.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => {
                    // What users have set up may refuse it.
                    tracing::warn!(%error, "the node's public key is not told, will retry");
                    tokio::time::sleep(backoff.next_wait()).await;
                    continue;
                }
            }
        }
        tokio::select! {
            change = changes.next() => if change.is_none() { return },
            told = wanted.changed() => if told.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written() {
        let node = |value: Option<&str>| -> Node {
            let annotations = value.map(|value| json!({PUBLIC_KEY: value}));
            let object = json!({"metadata": {"name": "a", "annotations": annotations}});
            serde_json::from_value(object).unwrap()
        };
        let key = PublicKey([1; 32]);
        let text = written(&key);
        for (published, told, want) in [
            (Published::Unknown, Some("old"), None),
            (Published::Nothing, None, None),
            (Published::Nothing, Some("old"), Some(None)),
            (Published::Key(key), None, Some(Some(text.clone()))),
            (Published::Key(key), Some("old"), Some(Some(text.clone()))),
            (Published::Key(key), Some(text.as_str()), None),
        ] {
            assert_eq!(published.over(&node(told)), want, "{published:?} {told:?}");
        }
    }
}
