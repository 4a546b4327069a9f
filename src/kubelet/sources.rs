//! Where pods come from: the API (only this node's) and the folder of manifests.
//!
//! Each source sends whole lists and single changes to the kubelet's loop, which compares.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::sync::mpsc;

/// Changes that wait for the loop.
const BACKLOG: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Api,
    Static,
}

#[derive(Debug)]
pub enum Change {
    /// All that there is.
    List(Vec<Pod>),
    Applied(Pod),
    Deleted(Pod),
}

pub type Changes = mpsc::Receiver<(Source, Change)>;
pub type Sender = mpsc::Sender<(Source, Change)>;

pub fn channel() -> (Sender, Changes) {
    mpsc::channel(BACKLOG)
}

/// Sends the API's pods of `node` until nobody listens.
pub async fn watch(client: Client, node: String, changes: Sender) {
    let config = watcher::Config::default()
        .streaming_lists()
        .fields(&format!("spec.nodeName={node}"));
    let events = watcher::watcher(Api::<Pod>::all(client), config).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listing = Vec::new();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(Event::Apply(pod)) => Change::Applied(pod),
            Ok(Event::Delete(pod)) => Change::Deleted(pod),
            Ok(Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(Event::InitApply(pod)) => {
                listing.push(pod);
                continue;
            }
            Ok(Event::InitDone) => Change::List(std::mem::take(&mut listing)),
            Err(error) => {
                tracing::warn!(%error, "watching this node's pods failed, will retry");
                continue;
            }
        };
        if changes.send((Source::Api, change)).await.is_err() {
            return;
        }
    }
}
