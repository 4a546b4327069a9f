//! The service proxy: Services and EndpointSlices as nf_tables state.
//!
//! Owns one nf_tables table for each family of addresses that the cluster has, and the routes to the ranges of
//! services; started by the node. Everything is read from informers.
//! Always true:
//! - A batch of changes is one transaction in each family: packets see all of it or nothing.
//! - What is wrong with one family keeps nothing from the other. A Service of a family that the cluster lacks is
//!   not served, and costs nothing.
//! - A change costs what changed; a packet costs the same with one service or ten thousand.
//! - Foreign tables are never touched; what others do to ours is undone.
//! - What could not be written is tried again until it works.
//! - The daemon's own ports and the node's addresses are never led elsewhere by what a Service says; the
//!   addresses only by what the cluster's own controller of load balancers says of it (`addresses/balancing.rs`).
//!
//! `model.rs` says what a Service asks for, `hints.rs` which of its endpoints are near, `listening.rs`
//! which ports the node's programs have, `health.rs` answers load balancers, `crate::loopback` passes on connections to
//! node ports of loopback addresses, `elements.rs` says which elements that is, `chains.rs` numbers the chains that they
//! lead to, `render.rs` has all of them and `step.rs` what changes, `table.rs` has the rules, `family_table.rs` brings
//! the kernel's table to them, `routes.rs` its routes, `sync.rs` all of these.
//! Node ports answer on every address of the node but IPv6 link-local ones, whose clients the kernel does not let
//! go elsewhere; on loopback addresses over TCP alone.

mod chains;
mod elements;
mod family_table;
mod health;
mod hints;
mod listening;
mod model;
mod render;
mod routes;
mod slots;
mod step;
mod sync;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node as NodeObject, ObjectReference},
    discovery::v1::EndpointSlice,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    health::HealthChecks,
    listening::Listening,
    model::{Node, Plan},
    step::Notice,
    sync::{Shared, Writer},
};
use crate::{
    addresses::{
        balancing,
        family::{Family, OfFamily, PerFamily},
        may_be_proxied_to,
    },
    events::{Level, Recorder, Source},
    informer::{
        Informer, Informers, Key,
        service_ranges::ServiceRanges,
        services::{Joined, Services},
    },
    loopback::{Forwarder, Way},
    own_ports::OwnPorts,
    repair,
    served::Served,
    supervision::{caught_here, pulse},
};

/// The bit of the packet mark that asks for masquerade, where nothing else is chosen.
pub const DEFAULT_MARK: u32 = 0x4000;

#[derive(Clone, Debug)]
pub struct Config {
    /// The nf_tables table, e.g. `vetch-proxy`; not that of the pod network.
    pub table: String,
    /// This node's name, as endpoints carry it.
    pub node: String,
    /// Clients inside are pods: they are not masqueraded. Services are served of the families of these.
    pub cluster_cidrs: PerFamily<IpNet>,
    /// The configured ranges of services.
    pub services: PerFamily<IpNet>,
    /// The link (the pods' bridge) that the node's own packets to these are routed to, so that they leave with an
    /// address that pods can answer. Without it they go by the routes that the node has.
    pub service_link: Option<String>,
    /// One bit of the packet mark: [`DEFAULT_MARK`].
    pub mark: u32,
    /// The node's addresses: no Service takes traffic for them, but by node ports and as a load balancer of the
    /// cluster's own.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that no Service takes.
    pub own_ports: OwnPorts,
}

impl Config {
    fn node(&self) -> Node {
        let services = self.services.iter();
        Node {
            name: self.node.clone(),
            cluster: services.chain(self.cluster_cidrs.iter()).copied().collect(),
            addresses: self.addresses.clone(),
            known_as: BTreeSet::new(),
            zone: None,
            own_ports: self.own_ports.clone(),
            listening: Listening::default(),
        }
    }
}

/// Keeps the table as the API says, until `shutdown`; the table stays then, for running pods.
pub async fn run(
    informers: Informers,
    config: Config,
    served: Served,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut node = config.node();
    let configured = node.cluster.clone();
    let mut ranges = ServiceRanges::start(&informers).await;
    node.cluster.extend(ranges.told());
    let nodes: Informer<NodeObject> = informers.get();
    let mut node_changes = nodes.changes();
    nodes.synced().await;
    let own_node = Key::new("", config.node.as_str());
    node.take(nodes.get(&own_node).as_deref());
    let source = Source {
        component: "kube-proxy",
        host: Some(config.node.clone()),
    };
    let events = Recorder::start(informers.client().clone(), source);
    let mut services = Services::start(&informers).await;
    let all = services.all();
    let ready = ready_pods(&all, &node.name);
    let families: Vec<Family> = config.cluster_cidrs.families().collect();
    let first = plans(all, &mut node, &families);
    let mut health = HealthChecks::default();
    check(&mut health, &first, &events).await;
    let told = ranges.told().clone();
    let loopback = forwarders(&config, &families);
    let led: Vec<(Family, u16)> = loopback
        .iter()
        .map(|one| (one.family(), one.port()))
        .collect();
    let run = |forwarder: Forwarder| async move { forwarder.run().await };
    let mut loopback: JoinSet<()> = loopback.into_iter().map(run).collect();
    let (own, writer, notices) = blocking(move || {
        let (mut writer, notices) = Writer::open(&config, &led, first)?;
        writer.set_ranges(&told);
        Ok((writer.own_port()?, writer, notices))
    })
    .await?;
    tell(&events, notices);
    tell_served(&served, ready);
    let writer = Shared::new(writer);
    // Of what failed to be written.
    let again = Notify::new();
    let restored = restorations(events.clone(), &node.name);
    let keeping = repair::keep(
        Arc::new(writer.clone()),
        own,
        &again,
        restored,
        shutdown.clone(),
    );
    let serving = async {
        loop {
            let changed = tokio::select! {
                () = pulse::asked() => continue,
                changed = services.next() => changed,
                changed = ranges.changed() => match changed {
                    Some(ranges) => {
                        node.cluster = configured.iter().chain(ranges).copied().collect();
                        writer.lock().set_ranges(ranges);
                        again.notify_one();
                        Some(services.all())
                    }
                    None => None,
                },
                changed = node_changes.next() => match changed {
                    Some(_) if !node.take(nodes.get(&own_node).as_deref()) => continue,
                    Some(_) => Some(services.all()),
                    None => None,
                },
            };
            let Some(changed) = changed else { return };
            let ready = ready_pods(&changed, &node.name);
            let changed = plans(changed, &mut node, &families);
            check(&mut health, &changed, &events).await;
            let writer = writer.clone();
            let applied = blocking(move || Ok(writer.lock().apply(changed))).await;
            let (notices, written) = applied.unwrap_or_else(|error| (Vec::new(), Err(error)));
            tell(&events, notices);
            if let Err(error) = written {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "services are not up to date, will retry");
                again.notify_one();
            }
            // What is not written now is on its way: nobody is to wait for it for ever.
            tell_served(&served, ready);
        }
    };
    tokio::select! {
        () = serving => {}
        () = keeping => {}
        Some(ended) = loopback.join_next() => return Err(Error::Loopback(ended.err())),
    }
    Ok(())
}

/// Who passes on connections to node ports of the loopback addresses; where that is impossible, node ports are
/// served without.
fn forwarders(config: &Config, families: &[Family]) -> Vec<Forwarder> {
    let forwarder = |family: &Family| {
        let mut own = config.addresses.iter();
        let node = own.find(|address| address.family() == *family && may_be_proxied_to(**address));
        Forwarder::listen(Way::To(*node?))
            .inspect_err(|error| {
                tracing::warn!(%error, %family, "node ports are not served on loopback addresses");
            })
            .ok()
    };
    families.iter().filter_map(forwarder).collect()
}

/// Which pods of this node new connections to each Service may be led to.
fn ready_pods(services: &[Joined], node: &str) -> Vec<(Key, BTreeSet<IpAddr>)> {
    let of_service = |joined: &Joined| {
        let endpoints = joined.slices.iter();
        let endpoints = endpoints.flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|all| all.ready).unwrap_or(true);
            let is_ending = conditions.and_then(|all| all.terminating).unwrap_or(false);
            endpoint.node_name.as_deref() == Some(node) && is_ready && !is_ending
        });
        let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
        addresses
            .filter_map(|address| address.parse().ok())
            .collect()
    };
    let each = services.iter();
    each.map(|joined| (joined.key.clone(), of_service(joined)))
        .collect()
}

fn tell_served(served: &Served, ready: Vec<(Key, BTreeSet<IpAddr>)>) {
    for (service, pods) in ready {
        served.set(&service, pods);
    }
}

/// Tells on the Node what of services others had undone on this host.
fn restorations(events: Recorder, node: &str) -> impl Fn(repair::Told<'_, Error>) + use<> {
    let about = ObjectReference {
        kind: Some("Node".into()),
        name: Some(node.into()),
        uid: Some(node.into()),
        ..ObjectReference::default()
    };
    move |told| {
        let (reason, message) = repair::event(&told);
        events.record_ref(about.clone(), Level::Warning, reason, message);
    }
}

/// Takes the tables and the routes away (for `reset`).
pub async fn remove(config: Config) -> Result<(), Error> {
    blocking(move || sync::remove(&config)).await
}

/// Brings the servers for load balancers' health checks up to date.
async fn check(health: &mut HealthChecks, plans: &[(Key, Plan)], events: &Recorder) {
    for of_service in plans.chunk_by(|one, next| one.0 == next.0) {
        let families: Vec<&Plan> = of_service.iter().map(|(_, plan)| plan).collect();
        if let [(key, _), ..] = of_service {
            tell(events, health.update(key, &families).await);
        }
    }
}

/// Leaves what owners of Services should hear on the Services.
fn tell(events: &Recorder, notices: Vec<Notice>) {
    for notice in notices {
        let service = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(notice.service.namespace),
            name: Some(notice.service.name),
            uid: Some(notice.uid),
            ..ObjectReference::default()
        };
        events.record_ref(service, Level::Warning, "AddressNotServed", notice.message);
    }
}

/// One plan for each family of each Service, a Service's in a row.
fn plans(services: Vec<Joined>, node: &mut Node, families: &[Family]) -> Vec<(Key, Plan)> {
    let mut given = services.iter().filter_map(|joined| joined.service.as_ref());
    if given.any(|service| balancing::is_given(service)) {
        match Listening::read() {
            Ok(listening) => node.listening = listening,
            Err(error) => tracing::warn!(%error, "programs that listen are taken to be as before"),
        }
    }
    let node = &*node;
    let plan = |joined: &Joined, family: Family| match &joined.service {
        Some(service) => {
            let slices: Vec<&EndpointSlice> = joined.slices.iter().map(|slice| &**slice).collect();
            // A Service that cannot be served must not keep others from it.
            let plan = caught_here(|| model::plan(service, &slices, node, family));
            plan.unwrap_or_else(|panic| {
                tracing::error!(service = %joined.key, %family, %panic, "a Service is not served");
                Plan::nothing(family)
            })
        }
        None => Plan::nothing(family),
    };
    let mut plans = Vec::with_capacity(services.len() * families.len());
    for joined in &services {
        let of_service = families.iter().map(|family| plan(joined, *family));
        plans.extend(of_service.map(|plan| (joined.key.clone(), plan)));
    }
    plans
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Task(error)))
}

/// Why services could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a netlink socket for services")]
    Start(#[source] netns::Error),
    #[error("write services to nf_tables")]
    Commit(#[source] netns::Error),
    #[error("route the service range")]
    Route(#[source] netns::Error),
    #[error("forget stale UDP flows")]
    Conntrack(#[source] netns::Error),
    #[error("node ports on loopback addresses are no longer served")]
    Loopback(#[source] Option<tokio::task::JoinError>),
    #[error("run a blocking call")]
    Task(#[source] tokio::task::JoinError),
}
