//! The node's own object, Lease and measurements.
//!
//! Owns the Node object's status and `kube-node-lease/<node>`. Called by the kubelet's `run`.

mod api;
mod host;
mod pressure;
mod status;

pub use host::processes;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use serde_json::Value;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::{
    host::Host,
    pressure::{Figures, Pressure},
    status::Seen,
};
use super::container::Facts;
use crate::{
    informer::{Informer, Informers, Key},
    runtime::image::Images,
};

/// How often the host is looked at, and the Lease renewed.
const EVERY: Duration = Duration::from_secs(10);
/// A status that did not change is sent again after this.
const SEND_AFTER: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub max_pods: u32,
    pub state_dir: std::path::PathBuf,
    pub pod_cidr: Option<String>,
}

/// Whether the node can run pods; the text says what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    NotReady(String),
}

/// What the host has, read once at start.
pub fn facts() -> std::io::Result<Facts> {
    host::facts()
}

/// Registers the node (or takes over its object), then keeps status and Lease fresh until told to
/// stop. Returns at once from waiting when `health` changes.
pub async fn run(
    config: Config,
    informers: &Informers,
    images: Images,
    mut health: watch::Receiver<Health>,
    shutdown: CancellationToken,
) -> Result<(), super::Error> {
    let host = Host::read().map_err(|source| super::Error::Io {
        action: "read what the host has".into(),
        source,
    })?;
    let client = informers.client().clone();
    let registered = tokio::select! {
        node = api::register(&config, &client) => node,
        () = shutdown.cancelled() => return Ok(()),
    };
    let mut keeper = Keeper {
        config,
        client,
        images,
        host,
        node: registered,
        pressure: Pressure::default(),
        sent: None,
    };
    let own: Informer<Node> = informers.some(&format!("metadata.name={}", keeper.config.node));
    let mut changes = own.changes();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = health.borrow_and_update().clone();
                keeper.status(&now).await;
                keeper.renew().await;
            }
            changed = health.changed() => match changed {
                Ok(()) => {
                    let now = health.borrow_and_update().clone();
                    keeper.status(&now).await;
                }
                // Nobody decides any more: the kubelet ends.
                Err(_) => return Ok(()),
            },
            Some(_) = changes.next() => {
                let now = health.borrow().clone();
                let key = Key::new("", &keeper.config.node);
                if own.get(&key).is_some_and(|node| keeper.has_news(&node)) {
                    keeper.status(&now).await;
                }
            }
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

struct Keeper {
    config: Config,
    client: kube::Client,
    images: Images,
    host: Host,
    /// As last written or read.
    node: Node,
    pressure: Pressure,
    /// What was sent last, without heartbeats, and when.
    sent: Option<(Value, Instant)>,
}

impl Keeper {
    /// Somebody wrote what the status must take over.
    fn has_news(&self, node: &Node) -> bool {
        status::extended(node) != status::extended(&self.node)
    }

    /// Sends the status if it changed or is old. A failure is tried again with the next look.
    async fn status(&mut self, health: &Health) {
        let figures = match Figures::read(&self.config.state_dir) {
            Ok(figures) => figures,
            Err(error) => {
                tracing::warn!(%error, "the host cannot be measured");
                return;
            }
        };
        let images = self.images.list().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the node's images cannot be listed");
            Vec::new()
        });
        // Others write conditions too, and somebody may have deleted the object.
        match api::read(&self.client, &self.config.node).await {
            Ok(Some(node)) => self.node = node,
            Ok(None) => {
                self.node = api::register(&self.config, &self.client).await;
                self.sent = None;
            }
            Err(error) => tracing::debug!(%error, "the node's object was not read"),
        }
        let seen = Seen {
            config: &self.config,
            host: &self.host,
            pressures: self.pressure.observe(&figures, Instant::now()),
            figures: &figures,
            health,
            images: &images,
            before: &self.node,
        };
        let status = status::status(&seen, Timestamp::now());
        let plain = status::without_heartbeats(status.clone());
        let fresh = self
            .sent
            .as_ref()
            .is_some_and(|(sent, at)| *sent == plain && at.elapsed() < SEND_AFTER);
        if fresh {
            return;
        }
        match api::write_status(&self.client, &self.config.node, &status).await {
            Ok(node) => {
                self.node = node;
                self.sent = Some((plain, Instant::now()));
            }
            Err(error) => tracing::warn!(%error, "the node's status was not written"),
        }
    }

    async fn renew(&self) {
        if let Err(error) = api::renew(&self.client, &self.node).await {
            tracing::warn!(%error, "the node's lease was not renewed");
        }
    }
}
