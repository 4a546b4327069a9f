//! The node's own object, Lease and measurements.
//!
//! Owns the Node object's status and `kube-node-lease/<node>`. Called by the kubelet's `run`.

mod api;
mod host;
pub mod reserved;
mod status;

pub use self::api::introduce;
pub use host::processes;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Node, Taint},
    jiff::Timestamp,
};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{host::Host, reserved::Budget, status::Seen};
use super::{
    container::Facts,
    events::{Level, Recorder},
    eviction::{Pressures, node_ref},
    stats::Space,
};
use crate::{
    addresses::family::PerFamily,
    informer::{Informer, Informers, Key, revision_of},
    runtime::image::{Image, Images},
    supervision::pulse,
    ticks::Ticks,
};

/// How often the host is looked at, and the Lease renewed.
const EVERY: Duration = Duration::from_secs(10);
/// The size of the disk is measured again after this.
const MEASURE_AFTER: Duration = Duration::from_secs(60);
/// A status that did not change is sent again after this.
const SEND_AFTER: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub max_pods: u32,
    pub state_dir: std::path::PathBuf,
    /// The addresses that its pods have.
    pub pod_cidrs: PerFamily<IpNet>,
    pub dns: DnsAt,
    pub description: Description,
}

/// Where the node's cluster DNS listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsAt {
    /// At the first address of its range of pods.
    #[default]
    Range,
    /// At the node's own addresses.
    Node,
}

/// What the user says of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// Put on the Node at every start.
    pub labels: BTreeMap<String, String>,
    /// Of a Node that is made. A node may not change those of one that is there.
    pub taints: Vec<Taint>,
}

/// A write of the node's own that has no answer by then counts as refused until it has one.
const LATE: Duration = Duration::from_secs(10);

/// Why the API does not take what the node says of itself: users' webhooks may refuse that as they may
/// refuse anything. `None` for what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Of the Node and its status.
    pub node: Option<String>,
    pub lease: Option<String>,
}

/// Awaits the answer to a write of `which`, and tells what it is.
async fn answered<T>(
    refused: &watch::Sender<Refused>,
    which: fn(&mut Refused) -> &mut Option<String>,
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    answered_by(LATE, refused, which, write).await
}

async fn answered_by<T>(
    late: Duration,
    refused: &watch::Sender<Refused>,
    which: fn(&mut Refused) -> &mut Option<String>,
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let tell = |why: Option<String>| {
        refused.send_if_modified(|refused| {
            let before = which(refused);
            let changed = *before != why;
            *before = why;
            changed
        });
    };
    let mut write = std::pin::pin!(write);
    let answer = match tokio::time::timeout(late, &mut write).await {
        Ok(answer) => answer,
        Err(_) => {
            tell(Some(format!("no answer after {late:?}")));
            write.await
        }
    };
    tell(answer.as_ref().err().map(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }));
    answer
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
    parts: Parts,
    informers: &Informers,
    mut health: watch::Receiver<Health>,
    mut pressures: watch::Receiver<Pressures>,
    shutdown: CancellationToken,
) -> Result<(), super::Error> {
    let Parts {
        config,
        budget,
        images,
        events,
        refused,
    } = parts;
    let host = Host::read().map_err(|source| super::Error::Io {
        action: "read what the host has".into(),
        source,
    })?;
    let client = informers.client().clone();
    let own = format!("metadata.name={}", config.node);
    let registered = tokio::select! {
        node = api::register(&config, &client, &refused) => node,
        () = shutdown.cancelled() => return Ok(()),
    };
    let mut keeper = Keeper {
        config,
        client,
        images,
        host,
        node: registered,
        budget,
        events,
        pressures: *pressures.borrow_and_update(),
        sent: None,
        basis: None,
        refused,
        own: informers.some(&own),
        disk: None,
    };
    let own = keeper.own.clone();
    let mut changes = own.changes();
    let mut ticks = Ticks::new(EVERY);
    loop {
        tokio::select! {
            () = pulse::asked() => {}
            () = ticks.tick() => {
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
            Ok(()) = pressures.changed() => {
                keeper.pressures = *pressures.borrow_and_update();
                let now = health.borrow().clone();
                keeper.status(&now).await;
            }
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

/// What the node's object is made from.
pub struct Parts {
    pub config: Config,
    pub budget: Budget,
    pub images: Images,
    pub events: Recorder,
    pub refused: watch::Sender<Refused>,
}

struct Keeper {
    config: Config,
    client: kube::Client,
    images: Images,
    host: Host,
    /// As last written or read.
    node: Node,
    budget: Budget,
    events: Recorder,
    pressures: Pressures,
    /// What was sent last, without heartbeats, and when.
    sent: Option<(Value, Instant)>,
    /// What that was found to say again.
    basis: Option<Basis>,
    refused: watch::Sender<Refused>,
    /// The node's object, as it is watched.
    own: Informer<Node>,
    /// How large the node's disk was when it was measured last.
    disk: Option<(u64, Instant)>,
}

/// What a status is made of, but for what is the same until the daemon ends: as long as this is the same, the
/// status is, too.
struct Basis {
    /// The revision of the node's object.
    node: u64,
    pressures: Pressures,
    disk_bytes: u64,
    health: Health,
    images: Vec<Arc<Image>>,
}

impl PartialEq for Basis {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<Image>, &Arc<Image>)| Arc::ptr_eq(a, b);
        self.node == other.node
            && self.pressures == other.pressures
            && self.disk_bytes == other.disk_bytes
            && self.health == other.health
            && self.images.len() == other.images.len()
            && self.images.iter().zip(&other.images).all(same)
    }
}

impl Keeper {
    /// Somebody wrote what the status must take over.
    fn has_news(&self, node: &Node) -> bool {
        status::extended(node) != status::extended(&self.node)
    }

    /// Sends the status if it changed or is old. A failure is tried again with the next look.
    async fn status(&mut self, health: &Health) {
        let Some(disk_bytes) = self.disk_bytes().await else {
            tracing::warn!("the node's disk cannot be measured");
            return;
        };
        // Others write conditions too, and somebody may have deleted the object.
        match self.own.get(&Key::new("", &self.config.node)) {
            // What is watched may be older than the answer to the last write.
            Some(node) if revision_of(node.as_ref()) > revision_of(&self.node) => {
                self.node = (*node).clone();
            }
            Some(_) => {}
            None => self.read().await,
        }
        let basis = Basis {
            node: revision_of(&self.node),
            pressures: self.pressures,
            disk_bytes,
            health: health.clone(),
            images: self.images.list(),
        };
        let is_recent = |(_, at): &(Value, Instant)| at.elapsed() < SEND_AFTER;
        if self.sent.as_ref().is_some_and(is_recent) && self.basis.as_ref() == Some(&basis) {
            return;
        }
        let seen = Seen {
            config: &self.config,
            host: &self.host,
            pressures: self.pressures,
            budget: &self.budget,
            disk_bytes,
            health,
            images: &basis.images,
            before: &self.node,
        };
        let status = status::status(&seen, Timestamp::now());
        let plain = status::without_heartbeats(status.clone());
        let fresh = self
            .sent
            .as_ref()
            .is_some_and(|(sent, at)| *sent == plain && at.elapsed() < SEND_AFTER);
        if fresh && status::is_held(&self.node, &status) {
            self.basis = Some(basis);
            return;
        }
        let write = api::write_status(&self.client, &self.config.node, &status);
        match answered(&self.refused, |refused| &mut refused.node, write).await {
            Ok(node) => {
                for reason in status::news(&self.node, &node) {
                    let name = &self.config.node;
                    let message = format!("Node {name} status is now: {reason}");
                    let about = node_ref(name);
                    self.events.about(about, Level::Normal, reason, message);
                }
                self.node = node;
                self.sent = Some((plain, Instant::now()));
            }
            Err(error) => tracing::warn!(%error, "the node's status was not written"),
        }
    }

    /// Takes the object over as the API has it; registers the node if it has none.
    async fn read(&mut self) {
        match api::read(&self.client, &self.config.node).await {
            Ok(Some(node)) => self.node = node,
            Ok(None) => {
                self.node = api::register(&self.config, &self.client, &self.refused).await;
                self.sent = None;
            }
            Err(error) => tracing::debug!(%error, "the node's object was not read"),
        }
    }

    async fn disk_bytes(&mut self) -> Option<u64> {
        if let Some((bytes, at)) = self.disk
            && at.elapsed() < MEASURE_AFTER
        {
            return Some(bytes);
        }
        let dir = self.config.state_dir.clone();
        let space = tokio::task::spawn_blocking(move || Space::of(&dir)).await;
        let bytes = space.ok()?.ok()?.capacity_bytes;
        self.disk = Some((bytes, Instant::now()));
        Some(bytes)
    }

    async fn renew(&self) {
        let write = api::renew(&self.client, &self.node);
        if let Err(error) = answered(&self.refused, |refused| &mut refused.lease, write).await {
            tracing::warn!(%error, "the node's lease was not renewed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_is_made_of() {
        let basis = || Basis {
            node: 7,
            pressures: Pressures::default(),
            disk_bytes: 1000,
            health: Health::Ready,
            images: Vec::new(),
        };
        assert!(basis() == basis());
        let under_pressure = Pressures {
            disk: true,
            ..Pressures::default()
        };
        for other in [
            Basis { node: 8, ..basis() },
            Basis {
                pressures: under_pressure,
                ..basis()
            },
            Basis {
                disk_bytes: 2000,
                ..basis()
            },
            Basis {
                health: Health::NotReady("why".into()),
                ..basis()
            },
        ] {
            assert!(other != basis());
        }
    }

    #[tokio::test]
    async fn what_the_api_refuses_is_told_until_it_takes_it() {
        let (refused, told) = watch::channel(Refused::default());
        let status = kube::core::Status::failure("denied by x", "Forbidden").boxed();
        let no = async { Err::<(), _>(kube::Error::Api(status)) };
        let answer = answered(&refused, |refused| &mut refused.lease, no).await;
        assert!(answer.is_err());
        assert_eq!(told.borrow().lease.as_deref(), Some("denied by x"));
        // A slow one is not given up, and not passed over in silence.
        let (answer, late) = (tokio::sync::Notify::new(), Duration::from_millis(5));
        let slow = async {
            answer.notified().await;
            Ok::<_, kube::Error>(1)
        };
        let slow = answered_by(late, &refused, |refused| &mut refused.node, slow);
        let mut waiting = told.clone();
        let noticed = async {
            let noticed = waiting.wait_for(|refused| refused.node.is_some()).await;
            let said = noticed.unwrap().node.clone();
            answer.notify_one();
            said
        };
        let (answered_late, said) = tokio::join!(slow, noticed);
        assert_eq!(said.as_deref(), Some("no answer after 5ms"));
        assert_eq!(answered_late.unwrap(), 1);
        assert_eq!(told.borrow().node, None);
        let yes = async { Ok::<_, kube::Error>(()) };
        let answer = answered(&refused, |refused| &mut refused.lease, yes).await;
        assert!(answer.is_ok());
        assert_eq!(*told.borrow(), Refused::default());
    }
}
