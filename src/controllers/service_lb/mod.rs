//! Services of the type LoadBalancer get the addresses of nodes, where the proxies serve them.
//!
//! `plan.rs` says which, `status.rs` how that is written. Proxies serve a node's own address only for what
//! this controller has written (`addresses/balancing.rs`).
//! Always true: a Service whose finalizer is this controller's has its condition in the status until the
//! finalizer is gone, so that another controller's is never removed.

mod plan;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
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
    plan::{Cluster, Refusal, Share},
    status::{FINALIZER, Wanted},
};
use super::{
    error::{Doing, Error, OrGone},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    addresses::balancing,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key, services::SERVICE_NAME},
};

const WORKERS: usize = 2;

/// Who gives addresses to Services of the type LoadBalancer.
#[derive(Clone, Debug)]
pub enum Balancing {
    /// This controller, but no port of these.
    Nodes(Vec<Reserved>),
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
        Balancing::Nodes(ports) => Some(Cluster { ports, ranges }),
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
    };
    let (all, of_slices, of_nodes) = (services.clone(), services.clone(), services.clone());
    Loop::new(controller, &services)
        .watch_changes(
            &services,
            |old, new| old.spec == new.spec && plan::is_wanted(old) == plan::is_wanted(new),
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
    if ports.is_empty() {
        return Vec::new();
    }
    let all = all.list();
    let touched = plan::touched(ports, &all).into_iter();
    touched.map(Key::of).collect()
}

fn is_local(service: &Service) -> bool {
    let spec = service
        .spec
        .as_ref()
        .filter(|spec| balancing::is_asked_for(spec));
    spec.is_some_and(|spec| spec.external_traffic_policy.as_deref() == Some("Local"))
}

/// The Service that a slice belongs to.
fn key_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}

/// The nodes with endpoints that take connections, as proxies see it: those that end may still serve.
fn serving_nodes(slice: &EndpointSlice) -> impl Iterator<Item = &String> {
    let endpoints = slice.endpoints.iter().flatten();
    let serving = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|all| all.ready).unwrap_or(true);
        ready || conditions.and_then(|all| all.serving).unwrap_or(false)
    });
    serving.filter_map(|endpoint| endpoint.node_name.as_ref())
}

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
            let share = plan::share(service, &all, &places, cluster, &serving);
            self.give(key, service, &share).await?;
            return Ok(Next::Settled);
        }
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
