//! Addresses of the pool for load balancers, as far as this node answers for them on its network.
//!
//! `plan.rs` says which node has which address, `leases.rs` who of them is there, `links.rs` puts the addresses on
//! links and tells the neighbours. Services and their addresses come from informers; started by the node, beside the
//! proxy, which serves what arrives.
//! Always true:
//! - An address is on a link of this node only as long as its own Lease counts, by what was answered and by what it
//!   has seen of it in the watch by which it judges others. The kernel takes it away by itself soon after, whatever
//!   becomes of this process.
//! - Who is passed over has let go before: it counts the time of its Lease from before it wrote it, others from
//!   after they have read it.
//! - Without a Service that has such an address nothing is written, watched or timed here.

mod leases;
mod links;
mod plan;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use k8s_openapi::api::{
    core::v1::{Node, ObjectReference, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Client, Resource, ResourceExt, runtime::watcher};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use self::{
    leases::{Leases, Sights, Tenure},
    links::{Links, Settled},
    plan::Candidates,
};
use crate::{
    addresses::balancing,
    causes::causes,
    events::{Level, Recorder, Source},
    informer::{Change, Informer, Informers, Key, services::SERVICE_NAME},
    queue::LOOK_AGAIN,
    repair::{self, Told},
    supervision::pulse,
    ticks,
};

/// How often a Lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// A Lease that was not renewed for so long counts no more.
const LASTS: Duration = Duration::from_millis(2500);
/// Others let go of an address before who comes before them takes it.
const SETTLES: Duration = Duration::from_millis(300);
/// How often all is looked at, told or not, while there is anything.
const WHOLE_EVERY: Duration = Duration::from_secs(60);
/// What has not been answered by then is asked anew.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// Its addresses: addresses of the pool are on the links of these.
    pub addresses: Vec<IpAddr>,
    /// Acts as the node: its Lease is its own.
    pub client: Client,
}

/// Why addresses could not be announced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bring the addresses of load balancers to this host's links")]
    Links(#[source] netns::Error),
    #[error("run a blocking call")]
    Task(#[source] tokio::task::JoinError),
}

/// Announces what is this node's to announce, until `shutdown`; nothing of it stays then.
pub async fn run(
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let announcer = Announcer::new(&informers, config);
    let mut changes = announcer.services.changes();
    announcer.services.synced().await;
    let mut again = ticks::every(LOOK_AGAIN);
    loop {
        if announcer.is_anything_pooled() {
            announcer.nodes.synced().await;
            announcer.slices.synced().await;
            let mut term = Term::default();
            let ended = announcer.serve(&mut term, &shutdown).await;
            announcer.leave(&term).await;
            ended?;
        }
        loop {
            let change = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = pulse::asked() => continue,
                change = changes.next() => change,
                _ = again.tick() => Some(Change::Resync),
            };
            match change {
                None => return Ok(()),
                Some(Change::Applied { new, .. }) if is_pooled(&new) => break,
                Some(Change::Resync) => break,
                Some(_) => {}
            }
        }
    }
}

fn is_pooled(service: &Service) -> bool {
    balancing::is_pooled(service) && !balancing::pool_addresses(service).is_empty()
}

struct Announcer {
    config: Config,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    leases: Leases,
    /// Held while the kernel is changed.
    links: Arc<Mutex<Links>>,
    events: Recorder,
}

/// What is known while there are Services with addresses of the pool.
#[derive(Default)]
struct Term {
    sights: Sights,
    own: Tenure,
    /// What this node has taken.
    taken: BTreeSet<IpAddr>,
    /// Why it could not have some of it, as told last.
    told: BTreeSet<String>,
    /// Its Lease may be there.
    has_lease: bool,
    /// The last renewal failed.
    is_late: bool,
}

impl Announcer {
    fn new(informers: &Informers, config: Config) -> Self {
        let source = Source {
            component: "vetch-load-balancers",
            host: Some(config.node.clone()),
        };
        Self {
            services: informers.get(),
            nodes: informers.get(),
            slices: informers.get(),
            leases: Leases::new(config.client.clone(), &config.node),
            links: Arc::new(Mutex::new(Links::new(config.addresses.clone()))),
            events: Recorder::start(informers.client().clone(), source),
            config,
        }
    }

    fn is_anything_pooled(&self) -> bool {
        self.services
            .list()
            .iter()
            .any(|service| is_pooled(service))
    }

    /// As long as there is any Service with an address of the pool.
    async fn serve(&self, term: &mut Term, shutdown: &CancellationToken) -> Result<(), Error> {
        let (mut of_services, mut of_nodes, mut of_slices) = (
            self.services.changes(),
            self.nodes.changes(),
            self.slices.changes(),
        );
        let mut seen = pin!(self.leases.watch());
        let mut renew = interval(RENEW_EVERY);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut whole = interval(WHOLE_EVERY);
        whole.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewing: Option<BoxFuture<'_, (Instant, Result<(), kube::Error>)>> = None;
        let mut candidates = self.candidates();
        let mut is_due = false;
        while !candidates.is_empty() {
            let now = Instant::now();
            let known = candidates.nodes().filter(|node| **node != self.config.node);
            term.sights.consider(known, now);
            let is_seen = term.sights.is_alive(&self.config.node, now);
            term.own.look(is_seen, now);
            let wanted = match term.own.is_settled(now) {
                true => candidates.of(&self.config.node, |node| term.sights.is_alive(node, now)),
                false => BTreeSet::new(),
            };
            if wanted != term.taken || is_due {
                self.take(term, wanted, &candidates).await?;
                is_due = false;
            }
            let is_candidate = candidates.has(&self.config.node);
            let next = [term.sights.next_end(now), term.own.next(now)];
            let next = next.into_iter().flatten().min();
            let mut is_changed = false;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = pulse::asked() => {}
                change = of_services.next() => match change {
                    Some(change) => is_changed = is_met(&change, is_pooled),
                    None => return Ok(()),
                },
                change = of_nodes.next() => match change {
                    Some(change) => is_changed = is_other(&change, balancing::is_open),
                    None => return Ok(()),
                },
                change = of_slices.next() => match change {
                    Some(change) => is_changed = self.is_of_pooled(&change),
                    None => return Ok(()),
                },
                event = seen.next() => match event {
                    Some(Ok(event)) => term.sights.take(&event, Instant::now()),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "Leases of other nodes are not watched, will retry");
                    }
                    None => return Ok(()),
                },
                _ = renew.tick(), if is_candidate && renewing.is_none() => {
                    term.has_lease = true;
                    renewing = Some(self.renew().boxed());
                }
                (begun, renewed) = ended(&mut renewing) => {
                    renewing = None;
                    match renewed {
                        // What is taken is lent for as long again.
                        Ok(()) => {
                            term.own.renewed(begun);
                            term.is_late = false;
                            is_due = !term.taken.is_empty();
                        }
                        // Once: it is tried again and again.
                        Err(error) if !term.is_late => {
                            term.is_late = true;
                            let error = causes(&error);
                            tracing::warn!(error, "the Lease for load balancers' addresses was not renewed");
                        }
                        Err(_) => {}
                    }
                }
                _ = whole.tick() => is_changed = true,
                () = until(next) => {}
            }
            if is_changed {
                candidates = self.candidates();
            }
        }
        Ok(())
    }

    fn candidates(&self) -> Candidates {
        let serving = |service: &Service| {
            let key = Key::of(service);
            let slices = self.slices.list_in(&key.namespace);
            let own = slices
                .iter()
                .filter(|slice| name_of(slice) == Some(&key.name));
            let nodes = own.flat_map(|slice| balancing::serving_nodes(slice));
            nodes.cloned().collect()
        };
        plan::candidates(&self.services.list(), &self.nodes.list(), &serving)
    }

    /// Whether it says where endpoints of a Service with an address of the pool are.
    fn is_of_pooled(&self, change: &Change<EndpointSlice>) -> bool {
        let slice = match change {
            Change::Applied { new, .. } => new,
            Change::Deleted(old) => old,
            Change::Resync => return true,
        };
        let name = name_of(slice).map(String::as_str).unwrap_or_default();
        let key = Key::new(slice.namespace().unwrap_or_default(), name);
        self.services
            .get(&key)
            .is_some_and(|service| is_pooled(&service))
    }

    /// Renews this node's Lease; when that was begun.
    async fn renew(&self) -> (Instant, Result<(), kube::Error>) {
        let begun = Instant::now();
        let node = self.nodes.get(&Key::new("", self.config.node.as_str()));
        let renewing = self.leases.renew(node.as_deref());
        let renewed = tokio::time::timeout(ANSWERED_WITHIN, renewing).await;
        let late = |_| kube::Error::Service("the API server does not answer".into());
        (begun, renewed.unwrap_or_else(|elapsed| Err(late(elapsed))))
    }

    /// Has these addresses on links, and no others.
    async fn take(
        &self,
        term: &mut Term,
        wanted: BTreeSet<IpAddr>,
        candidates: &Candidates,
    ) -> Result<(), Error> {
        let settled = self.settle(wanted.clone()).await?;
        let is_there =
            |address: &&IpAddr| settled.failed.iter().all(|(failed, _)| failed != *address);
        for address in wanted.difference(&term.taken).filter(is_there) {
            tracing::info!(%address, "this node answers for the load balancer's address");
            let message = format!("the node {} answers for {address}", self.config.node);
            self.tell(
                candidates,
                *address,
                Level::Normal,
                "AddressAnnounced",
                &message,
            );
        }
        for address in term.taken.difference(&wanted) {
            tracing::info!(%address, "this node has let go of the load balancer's address");
        }
        if !settled.restored.is_empty() {
            let (reason, message) = repair::event(&Told::<Error>::Restored(&settled.restored));
            self.events
                .record_ref(self.node(), Level::Warning, reason, message);
        }
        let mut told = BTreeSet::new();
        for (address, why) in settled.failed {
            let message = format!(
                "the node {} cannot answer for {address}: {why}",
                self.config.node
            );
            if !term.told.contains(&message) {
                tracing::warn!("{message}");
                self.tell(
                    candidates,
                    address,
                    Level::Warning,
                    "AddressNotAnnounced",
                    &message,
                );
            }
            told.insert(message);
        }
        (term.told, term.taken) = (told, wanted);
        Ok(())
    }

    async fn settle(&self, wanted: BTreeSet<IpAddr>) -> Result<Settled, Error> {
        let links = self.links.clone();
        let settling = tokio::task::spawn_blocking(move || {
            let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
            links.settle(&wanted)
        });
        settling.await.map_err(Error::Task)?.map_err(Error::Links)
    }

    /// Lets go of everything; then others need not wait for the Lease's end.
    async fn leave(&self, term: &Term) {
        if let Err(error) = self.settle(BTreeSet::new()).await {
            // The kernel takes them away in a moment.
            tracing::warn!(
                error = causes(&error),
                "addresses of load balancers stay for a moment"
            );
        }
        if term.has_lease {
            let leaving = tokio::time::timeout(ANSWERED_WITHIN, self.leases.give_up());
            if let Ok(Err(error)) = leaving.await {
                tracing::debug!(error = causes(&error), "the Lease ends by itself");
            }
        }
    }

    /// On the Services that have the address.
    fn tell(
        &self,
        candidates: &Candidates,
        address: IpAddr,
        level: Level,
        reason: &'static str,
        message: &str,
    ) {
        for key in candidates.services(address) {
            if let Some(service) = self.services.get(key) {
                let about = service.object_ref(&());
                self.events.record_ref(about, level, reason, message);
            }
        }
    }

    fn node(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.config.node.clone()),
            uid: Some(self.config.node.clone()),
            ..ObjectReference::default()
        }
    }
}

fn name_of(slice: &EndpointSlice) -> Option<&String> {
    slice.labels().get(SERVICE_NAME)
}

/// Whether the object is such a one, or was before.
fn is_met<K>(change: &Change<K>, is: impl Fn(&K) -> bool) -> bool {
    match change {
        Change::Applied { old, new } => is(new) || old.as_deref().is_some_and(is),
        Change::Deleted(old) => is(old),
        Change::Resync => true,
    }
}

/// Whether the object is such a one and was not, or the other way round.
fn is_other<K>(change: &Change<K>, is: impl Fn(&K) -> bool) -> bool {
    match change {
        Change::Applied { old, new } => is(new) != old.as_deref().is_some_and(is),
        Change::Deleted(old) => is(old),
        Change::Resync => true,
    }
}

/// Pending where there is nothing to wait for.
async fn ended<T>(task: &mut Option<BoxFuture<'_, T>>) -> T {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// What the watch of Leases tells.
type Seen = watcher::Event<k8s_openapi::api::coordination::v1::Lease>;
