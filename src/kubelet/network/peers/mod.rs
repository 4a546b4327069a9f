//! Routes to the pods of other nodes: by the other machine's address where it is on a link with this one, else
//! by a tunnel.
//!
//! `plan.rs` says whose ranges are where, `tunnel.rs` makes the tunnel; here the kernel is brought there, and
//! back when others change it. Started by the node beside the kubelet, with a client that may watch all Nodes.
//! Always true: only routes that bear our mark and lie inside of the cluster's range are ever removed, so
//! what the host and others route stays.

mod plan;
mod tunnel;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use netns::{
    monitor::Changes,
    route::{Change, Prefix, Route, RouteKind, Socket, WantedRoute},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::{plan::Own, tunnel::Config as TunnelConfig};
use self::{
    plan::{Peer, Peers, plan},
    tunnel::Tunnel,
};
use super::{Error, blocking, during};
use crate::{
    addresses::family::PerFamily,
    events::{Level, Recorder, Source},
    informer::{Informer, Informers},
    repair::{self, HostState},
};

/// Keeps the routes as the Nodes say, until `shutdown`; they stay then, for running pods.
pub async fn run(
    informers: Informers,
    own: Own,
    tunnel: TunnelConfig,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let opened = Tunnel::open(tunnel).and_then(|tunnel| Ok((tunnel.own_port()?, tunnel)));
    let (own_port, tunnel) = opened.map_err(during("open a socket for the tunnel".into()))?;
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
    let routes = Arc::new(Routes::new(own, tunnel, events.clone(), about.clone()));
    let again = Notify::new();
    routes.want(&nodes.list());
    let follow = async {
        while changes.next().await.is_some() {
            if routes.want(&nodes.list()) {
                again.notify_one();
            }
        }
    };
    let keeping = repair::keep(
        Arc::new(Kept(routes.clone())),
        own_port,
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

/// Takes the routes to pods inside of the cluster's range away, and the tunnel (for `reset`).
pub async fn remove(clusters: PerFamily<IpNet>, tunnel: TunnelConfig) -> Result<(), Error> {
    blocking(move || {
        let failed = || during("remove the routes to the pods of other nodes".into());
        let mut socket = Socket::open().map_err(failed())?;
        remove_others(&mut socket, *clusters.primary(), &BTreeSet::new()).map_err(failed())?;
        let removed = Tunnel::open(tunnel).and_then(|mut tunnel| tunnel.remove(&mut socket));
        removed.map_err(failed())
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

struct Inner {
    tunnel: Tunnel,
    peers: Peers,
    /// What the kernel had when it was looked at last.
    routed: BTreeSet<Ipv4Net>,
    links: BTreeSet<u32>,
    /// Why nodes are not reached, as told last.
    told: BTreeSet<(String, String)>,
}

impl Routes {
    fn new(own: Own, tunnel: Tunnel, events: Recorder, about: ObjectReference) -> Self {
        Self {
            own,
            events,
            about,
            inner: Mutex::new(Inner {
                tunnel,
                peers: Peers::default(),
                routed: BTreeSet::new(),
                links: BTreeSet::new(),
                told: BTreeSet::new(),
            }),
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
        let inner = &mut *inner;
        let mut socket = Socket::open()?;
        let mut refused: BTreeSet<(String, String)> =
            inner.peers.refused.clone().into_iter().collect();
        let mut wanted = Vec::new();
        let (mut far, mut links) = (BTreeMap::new(), BTreeSet::new());
        for (range, peer) in &inner.peers.by_range {
            match way(&mut socket, peer)? {
                Way::Link(link) => wanted.push((*range, wanted_route(*range, link, peer.address))),
                Way::Router(link) => {
                    far.insert(*range, peer.clone());
                    links.insert(link);
                }
                Way::None(why) => {
                    refused.insert((peer.node.clone(), why));
                }
            }
        }
        if let (false, IpNet::V4(own)) = (far.is_empty(), *self.own.ranges.primary()) {
            let mtu = least_mtu(&mut socket, &links)?;
            let own = (self.own.name.as_str(), own);
            let link = inner.tunnel.settle(&mut socket, own, &far, mtu)?;
            let inside = far.keys().map(|range| (*range, Tunnel::inside(*range)));
            wanted.extend(inside.map(|(range, via)| (range, wanted_route(range, link, via))));
        }
        let routes: Vec<WantedRoute> = wanted.iter().map(|(_, route)| *route).collect();
        let made = socket.ensure_routes(&routes)?;
        let keep: BTreeSet<Key> = routes.iter().map(|route| key(&route.to)).collect();
        remove_others(&mut socket, *self.own.clusters.primary(), &keep)?;
        if far.is_empty() {
            inner.tunnel.remove(&mut socket)?;
        }
        let undone = wanted
            .iter()
            .filter(|(range, route)| made.contains(&route.to) && inner.routed.contains(range))
            .map(|(range, _)| *range)
            .collect();
        inner.routed = wanted.iter().map(|(range, _)| *range).collect();
        links.extend(routes.iter().map(|route| route.link));
        inner.links = links;
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
        let mut inner = self.0.inner();
        let tunnel = inner.tunnel.notice(changes);
        let is_used = |link: &u32| inner.links.contains(link);
        tunnel
            || changes.overrun
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

/// How a machine is reached.
enum Way {
    /// It is on that link.
    Link(u32),
    /// Behind a router on that link.
    Router(u32),
    None(String),
}

fn way(socket: &mut Socket, peer: &Peer) -> Result<Way, netns::Error> {
    let address = IpAddr::V4(peer.address);
    let own = socket.addresses()?;
    if own.iter().any(|(_, own)| own.address == address) {
        return Ok(Way::None(format!(
            "its address {address} is this machine's"
        )));
    }
    Ok(match socket.route_to(address)? {
        Some(Route {
            link: Some(link),
            via: None,
            ..
        }) => Way::Link(link),
        Some(Route {
            link: Some(link), ..
        }) => Way::Router(link),
        Some(_) => Way::None(format!(
            "the route to its address {address} leads by several links"
        )),
        None => Way::None(format!("there is no route to its address {address}")),
    })
}

/// The least that one of the links takes in a packet.
fn least_mtu(socket: &mut Socket, links: &BTreeSet<u32>) -> Result<u32, netns::Error> {
    const USUAL: u32 = 1500;
    let all = socket.links()?;
    let used = all.iter().filter(|link| links.contains(&link.index));
    Ok(used.map(|link| link.mtu).min().unwrap_or(USUAL))
}

fn wanted_route(range: Ipv4Net, link: u32, via: Ipv4Addr) -> WantedRoute {
    WantedRoute {
        to: Prefix::new(range.network().into(), range.prefix_len()),
        link,
        kind: RouteKind::Via(via.into()),
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
