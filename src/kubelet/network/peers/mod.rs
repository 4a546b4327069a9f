//! Routes to the pods of other nodes, whose machines are on a link with this one.
//!
//! `plan.rs` says whose ranges are where; here the kernel is brought there, and back when others change
//! it. Started by the node beside the kubelet, with a client that may watch all Nodes.
//! Always true: only routes that bear our mark and lie inside of the cluster's range are ever removed, so
//! what the host and others route stays.

mod plan;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use netns::{
    monitor::Changes,
    route::{Change, Prefix, RouteKind, Socket, WantedRoute},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::plan::Own;
use self::plan::{Peer, Peers, plan};
use super::{Error, blocking, during};
use crate::{
    events::{Level, Recorder, Source},
    informer::{Informer, Informers},
    repair::{self, HostState},
};

/// Keeps the routes as the Nodes say, until `shutdown`; they stay then, for running pods.
pub async fn run(informers: Informers, own: Own, shutdown: CancellationToken) -> Result<(), Error> {
    let nodes: Informer<Node> = informers.get();
    let mut changes = nodes.changes();
    nodes.synced().await;
    let source = Source {
        component: "vetch-pod-routes",
        host: Some(own.name.clone()),
    };
    let events = Recorder::start(informers.client().clone(), source);
    let about = ObjectReference {
        kind: Some("Node".into()),
        name: Some(own.name.clone()),
        uid: Some(own.name.clone()),
        ..ObjectReference::default()
    };
    let tell = |told: repair::Told<'_, Error>| {
        let (reason, message) = repair::event(&told);
        events.record_ref(about.clone(), Level::Warning, reason, message);
    };
    let routes = Arc::new(Routes::new(own, events.clone(), about.clone()));
    let again = Notify::new();
    routes.want(&nodes.list());
    let follow = async {
        while changes.next().await.is_some() {
            if routes.want(&nodes.list()) {
                again.notify_one();
            }
        }
    };
    // It changes no tables, so none of their changes is its own.
    let keeping = repair::keep(
        Arc::new(Kept(routes.clone())),
        0,
        &again,
        tell,
        shutdown.clone(),
    );
    // The first look comes at once.
    again.notify_one();
    tokio::select! {
        () = follow => {}
        () = keeping => {}
    }
    Ok(())
}

/// Takes the routes to pods inside of the cluster's range away (for `reset`).
pub async fn remove(cluster: IpNet) -> Result<(), Error> {
    blocking(move || {
        let failed = || during("remove the routes to the pods of other nodes".into());
        let mut socket = Socket::open().map_err(failed())?;
        remove_others(&mut socket, cluster, &BTreeSet::new()).map_err(failed())
    })
    .await
}

/// The routes and what is known of them.
struct Routes {
    own: Own,
    events: Recorder,
    about: ObjectReference,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    peers: Peers,
    /// What the kernel had when it was looked at last.
    routed: BTreeSet<Ipv4Net>,
    links: BTreeSet<u32>,
    /// Why nodes are not reached, as told last.
    told: BTreeSet<(String, String)>,
}

impl Routes {
    fn new(own: Own, events: Recorder, about: ObjectReference) -> Self {
        Self {
            own,
            events,
            about,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the Nodes say; whether it is something else than before.
    fn want(&self, nodes: &[Arc<Node>]) -> bool {
        let peers = plan(nodes, &self.own);
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.peers, peers);
        before != inner.peers
    }

    /// Brings the kernel there; the ranges that had a route, which somebody else had taken away.
    fn settle(&self) -> Result<Vec<Ipv4Net>, netns::Error> {
        let mut inner = self.inner();
        let mut socket = Socket::open()?;
        let mut refused: BTreeSet<(String, String)> =
            inner.peers.refused.clone().into_iter().collect();
        let mut wanted = Vec::new();
        for (range, peer) in &inner.peers.by_range {
            match link(&mut socket, peer)? {
                Ok(link) => wanted.push((*range, wanted_route(*range, link, peer))),
                Err(why) => {
                    refused.insert((peer.node.clone(), why));
                }
            }
        }
        let routes: Vec<WantedRoute> = wanted.iter().map(|(_, route)| *route).collect();
        let made = socket.ensure_routes(&routes)?;
        let keep: BTreeSet<Key> = routes.iter().map(|route| key(&route.to)).collect();
        remove_others(&mut socket, self.own.cluster, &keep)?;
        let undone = wanted
            .iter()
            .filter(|(range, route)| made.contains(&route.to) && inner.routed.contains(range))
            .map(|(range, _)| *range)
            .collect();
        inner.routed = wanted.iter().map(|(range, _)| *range).collect();
        inner.links = routes.iter().map(|route| route.link).collect();
        for (node, why) in refused.difference(&inner.told) {
            let message = format!("Pods of the node {node} cannot be reached from here: {why}");
            tracing::warn!("{message}");
            self.events.record_ref(
                self.about.clone(),
                Level::Warning,
                "PodsNotReached",
                message,
            );
        }
        inner.told = refused;
        Ok(undone)
    }
}

struct Kept(Arc<Routes>);

impl HostState for Kept {
    type Error = Error;

    fn notice(&self, changes: &Changes) -> bool {
        let inner = self.0.inner();
        let is_used = |link: &u32| inner.links.contains(link);
        changes.overrun
            || changes.lost_routes.iter().any(is_used)
            || changes.lost_addresses.iter().any(|(link, _)| is_used(link))
            // One that came up may lead to a machine that no link led to.
            || !inner.told.is_empty() && !changes.links.is_empty()
            || changes
                .links
                .values()
                .any(|link| link.as_ref().is_none_or(|link| is_used(&link.index)))
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let (routes, failed) = (
            self.0.clone(),
            during("route to the pods of other nodes".into()),
        );
        let undone = blocking(move || routes.settle().map_err(failed)).await?;
        let name = |range: Ipv4Net| format!("the route to the pods in {range}");
        Ok(undone.into_iter().map(name).collect())
    }
}

/// The link that the peer's machine is on, or why there is none.
fn link(socket: &mut Socket, peer: &Peer) -> Result<Result<u32, String>, netns::Error> {
    let address = IpAddr::V4(peer.address);
    if socket
        .addresses()?
        .iter()
        .any(|(_, own)| own.address == address)
    {
        return Ok(Err(format!("its address {address} is this machine's")));
    }
    let route = socket.route_to(address)?;
    Ok(match route {
        Some(route) => match (route.link, route.via) {
            (Some(link), None) => Ok(link),
            _ => Err(format!(
                "its address {address} is behind a router, and only machines on one link reach each \
                 other's pods so far"
            )),
        },
        None => Err(format!("there is no route to its address {address}")),
    })
}

fn wanted_route(range: Ipv4Net, link: u32, peer: &Peer) -> WantedRoute {
    WantedRoute {
        to: Prefix::new(range.network().into(), range.prefix_len()),
        link,
        kind: RouteKind::Via(peer.address.into()),
    }
}

/// Ordered, as a prefix is not.
type Key = (IpAddr, u8);

fn key(prefix: &Prefix) -> Key {
    (prefix.address, prefix.length)
}

/// Removes routes of ours inside of the cluster's range but those to `keep`.
fn remove_others(
    socket: &mut Socket,
    cluster: IpNet,
    keep: &BTreeSet<Key>,
) -> Result<(), netns::Error> {
    let mut stale = socket.routes_via()?;
    stale.retain(|route| {
        cluster.contains(&route.to.address)
            && route.to.length >= cluster.prefix_len()
            && !keep.contains(&key(&route.to))
    });
    let delete = |route: netns::route::Route| Some(Change::delete_route(route.link?, route.to));
    let changes: Vec<Change> = stale.into_iter().filter_map(delete).collect();
    match changes.is_empty() {
        true => Ok(()),
        false => socket.apply(changes),
    }
}
