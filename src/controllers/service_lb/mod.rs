//! Services of the type LoadBalancer get the addresses of nodes, or some of their own from a pool; the proxies
//! serve them.
//!
//! `plan.rs` says which nodes', `pool.rs` which of the pool, `status.rs` how that is written. Proxies serve a node's
//! own address only for what this controller has written, and nodes announce addresses of the pool by it
//! (`addresses/balancing.rs`).
//! Always true:
//! - A Service whose finalizer is this controller's has its condition in the status until the finalizer is gone, so
//!   that another controller's is never removed.
//! - What was decided of the pool counts at once, whatever the cache says by then: two Services that are looked at in
//!   the same moment do not get the same address.

mod plan;
mod pool;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use self::plan::Reserved;
use self::{
    plan::{Cluster, Place, Refusal, Share},
    status::{FINALIZER, Wanted},
};
use super::{
    error::{Doing, Error, OrGone},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    addresses::{
        balancing::{self, serving_nodes},
        pool::Pool,
    },
    events::{Level, Recorder},
    informer::{Informer, Informers, Key, services::SERVICE_NAME},
};

const WORKERS: usize = 2;

/// Who gives addresses to Services of the type LoadBalancer.
#[derive(Clone, Debug)]
pub enum Balancing {
    /// This controller, but no port of these of a node; from the pool rather than those of nodes, if it has any.
    Ours { reserved: Vec<Reserved>, pool: Pool },
    /// Somebody else: what this controller gave before is taken back, and nothing else is touched.
    Others,
}

/// Runs until `shutdown`. No machine has an address of `ranges`.
pub async fn run(
    informers: Informers,
    balancing: Balancing,
    ranges: Vec<ipnet::IpNet>,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let services: Informer<Service> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let slices: Informer<EndpointSlice> = informers.get();
    let cluster = match balancing {
        Balancing::Ours { reserved, pool } => Some(Cluster {
            ports: reserved,
            pool,
            ranges,
        }),
        Balancing::Others => None,
    };
    let controller = Balancers {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), Balancers::NAME),
        services: services.clone(),
        nodes: nodes.clone(),
        slices: slices.clone(),
        cluster,
        told: Mutex::default(),
        promised: Mutex::default(),
    };
    let (all, of_slices, of_nodes) = (services.clone(), services.clone(), services.clone());
    Loop::new(controller, &services)
        .watch_changes(
            &services,
            |old, new| {
                old.spec == new.spec
                    && plan::is_wanted(old) == plan::is_wanted(new)
                    && balancing::pool_addresses(old) == balancing::pool_addresses(new)
            },
            move |service| touched(service, &all),
        )
        .watch_changes(
            &nodes,
            |old, new| plan::of_node(old, &[]) == plan::of_node(new, &[]),
            move |_| {
                let services = of_nodes.list().into_iter();
                let wanted = services.filter(|service| plan::is_wanted(service));
                wanted.map(|service| Key::of(&*service)).collect()
            },
        )
        .watch_changes(
            &slices,
            |old, new| serving_nodes(old).eq(serving_nodes(new)) && key_of(old) == key_of(new),
            move |slice| {
                let service = key_of(slice).and_then(|key| of_slices.get(&key));
                match service.filter(|service| is_local(service)) {
                    Some(service) => touched(&service, &of_slices),
                    None => Vec::new(),
                }
            },
        )
        .run(WORKERS, shutdown)
        .await
}

/// The Services that `service` may give something to, or take it from.
fn touched(service: &Service, all: &Informer<Service>) -> Vec<Key> {
    let ports = plan::ports_of_nodes(service);
    let is_balanced = service.spec.as_ref().is_some_and(balancing::is_asked_for)
        || !balancing::pool_addresses(service).is_empty();
    if ports.is_empty() && !is_balanced {
        return Vec::new();
    }
    let all = all.list();
    let mut touched = plan::touched(ports, &all);
    if is_balanced {
        touched.extend(pool::waiting(&all));
    }
    touched.into_iter().map(Key::of).collect()
}

fn is_local(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| balancing::is_asked_for(spec) && balancing::is_local(spec))
}

/// The Service that a slice belongs to.
fn key_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}

/// Uid and addresses of Services.
type Promised = HashMap<Key, (Option<String>, Vec<IpAddr>)>;

struct Balancers {
    client: Client,
    events: Recorder,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    /// `None`: somebody else gives the addresses.
    cluster: Option<Cluster>,
    /// The refusals of Services that their owners have heard of.
    told: Mutex<HashMap<Key, Vec<Refusal>>>,
    /// What Services were given of the pool: their statuses may not say so yet.
    promised: Mutex<Promised>,
}

impl Controller for Balancers {
    const NAME: &'static str = "service-lb-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let service = self.services.get(key);
        let wanted = service.as_ref().filter(|service| plan::is_wanted(service));
        if let (Some(service), Some(cluster)) = (wanted, &self.cluster) {
            let places = plan::places(&self.nodes.list(), &cluster.ranges);
            let serving = |service: &Service| self.serving(service);
            let all = self.services.list();
            let share = match pool::is_asked(service, &cluster.pool, &places) {
                true => self.share_of_pool(service, &all, &places, &cluster.pool),
                false => {
                    self.promised().remove(key);
                    plan::share(service, &all, &places, cluster, &serving)
                }
            };
            self.give(key, service, &share).await?;
            return Ok(Next::Settled);
        }
        // What its status says counts until that is taken back.
        self.promised().remove(key);
        self.tell(key, None, &[]);
        if let Some(service) = service.filter(|service| status::is_known(service)) {
            self.release(&service).await?;
        }
        Ok(Next::Settled)
    }
}

impl Balancers {
    fn serving(&self, service: &Service) -> BTreeSet<String> {
        let key = Key::of(service);
        let slices = self.slices.list_in(&key.namespace);
        let own = slices
            .iter()
            .filter(|slice| key_of(slice).as_ref() == Some(&key));
        own.flat_map(|slice| serving_nodes(slice))
            .cloned()
            .collect()
    }

    fn promised(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its share of the pool, which is nobody else's from now on.
    fn share_of_pool(
        &self,
        service: &Service,
        all: &[Arc<Service>],
        places: &[Place],
        pool: &Pool,
    ) -> Share {
        let key = Key::of(service);
        let mut promised = self.promised();
        let held = |service: &Service| match promised.get(&Key::of(service)) {
            Some((uid, addresses)) if *uid == service.uid() => addresses.clone(),
            _ => balancing::pool_addresses(service),
        };
        let share = pool::allot(all, &held, pool, places).remove(&key);
        let share = share.unwrap_or_default();
        promised.insert(key, (service.uid(), share.addresses.clone()));
        share
    }

    /// The status first: it says whose the finalizer is.
    async fn give(&self, key: &Key, service: &Service, share: &Share) -> Result<(), Error> {
        self.tell(key, Some(service), &share.refusals);
        let record = |reason: &'static str, message: &str| {
            self.events.record(service, Level::Normal, reason, message);
        };
        let before = status::addresses(service);
        let moved = before != share.addresses && !share.addresses.is_empty();
        if moved && before.is_empty() {
            record("EnsuringLoadBalancer", "Ensuring load balancer");
        }
        let mut latest = service.clone();
        if let Some(wanted) = status::given(service, share) {
            match self.write_status(service, wanted).await? {
                Some(written) => latest = written,
                None => return Ok(()),
            }
        }
        if !status::is_protected(&latest) {
            let mut finalizers = latest.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            self.write_finalizers(&latest, finalizers).await?;
        }
        match (moved, before.is_empty()) {
            (true, true) => record("EnsuredLoadBalancer", "Ensured load balancer"),
            (true, false) => record(
                "UpdatedLoadBalancer",
                "Updated load balancer with new hosts",
            ),
            (false, _) => {}
        }
        Ok(())
    }

    /// The status last: it says whose the finalizer was.
    async fn release(&self, service: &Service) -> Result<(), Error> {
        let mut latest = service.clone();
        if status::is_protected(service) {
            let mut finalizers = service.finalizers().to_vec();
            finalizers.retain(|one| one != FINALIZER);
            match self.write_finalizers(service, finalizers).await? {
                Some(written) => latest = written,
                None => return Ok(()),
            }
        }
        if let Some(wanted) = status::released(&latest) {
            self.write_status(&latest, wanted).await?;
        }
        self.events.record(
            service,
            Level::Normal,
            "DeletedLoadBalancer",
            "Deleted load balancer",
        );
        Ok(())
    }

    /// Lets the owner of a Service hear of each refusal once.
    fn tell(&self, key: &Key, service: Option<&Service>, refusals: &[Refusal]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match refusals {
            [] => told.remove(key),
            some => told.insert(key.clone(), some.to_vec()),
        };
        let before = before.unwrap_or_default();
        let Some(service) = service else {
            return;
        };
        for refusal in refusals.iter().filter(|one| !before.contains(one)) {
            self.events.record(
                service,
                Level::Warning,
                "SyncLoadBalancerFailed",
                refusal.to_string(),
            );
        }
    }

    /// Only as it was judged; `None` if it is gone.
    async fn write_status(
        &self,
        service: &Service,
        wanted: Wanted,
    ) -> Result<Option<Service>, Error> {
        let ingress = match wanted.ingress.is_empty() {
            true => Value::Null,
            false => json!(wanted.ingress),
        };
        let patch = json!({
            "metadata": judged(service),
            "status": {"loadBalancer": {"ingress": ingress}, "conditions": wanted.conditions},
        });
        self.api(service)
            .patch_status(
                &service.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
            .or_gone()
            .doing(|| format!("write the addresses of Service {}", Key::of(service)))
    }

    /// Only as it was judged; `None` if it is gone.
    async fn write_finalizers(
        &self,
        service: &Service,
        finalizers: Vec<String>,
    ) -> Result<Option<Service>, Error> {
        let mut metadata = judged(service);
        metadata["finalizers"] = json!(finalizers);
        self.api(service)
            .patch(
                &service.name_any(),
                &PatchParams::default(),
                &Patch::Merge(json!({ "metadata": metadata })),
            )
            .await
            .or_gone()
            .doing(|| format!("write the finalizer of Service {}", Key::of(service)))
    }

    fn api(&self, service: &Service) -> Api<Service> {
        Api::namespaced(
            self.client.clone(),
            &service.namespace().unwrap_or_default(),
        )
    }
}

fn judged(service: &Service) -> Value {
    json!({"uid": service.uid(), "resourceVersion": service.resource_version()})
}
