//! Routes to the pods of other nodes: by the other machine's address where it is on a link with this one, else
//! by a tunnel.
//!
//! `plan.rs` says whose ranges are where and how they are reached, `tunnel.rs` makes the tunnels; here the kernel
//! is brought there, and back when others change it. How large packets may be on these ways is told to the pods'
//! links. Started by the node beside the kubelet, with a client that may watch all Nodes.
//! Always true: only routes that bear our mark and lie inside of the cluster's range are ever removed, so
//! what the host and others route stays.

mod plan;
mod tunnel;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use netns::{
    monitor::{Changes, Subject},
    route::{Change, Link, Prefix, Route, RouteKind, Socket, WantedRoute},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::{plan::Own, tunnel::Config as TunnelConfig};
use self::{
    plan::{Peers, Reach, Way, machines, plan, way},
    tunnel::{End, Tunnel, overhead},
};
use super::{
    Error, ToPeers, blocking, during,
    mtu::{MOST, Ways},
};
use crate::{
    addresses::family::{Family, OfFamily, PerFamily},
    events::{Level, Recorder, Source},
    informer::{Informer, Informers},
    repair::{self, HostState},
};

/// Keeps the routes as the Nodes say, until `shutdown`; they stay then, for running pods. What packets on the
/// ways to other nodes may have in them is told `ways`.
pub async fn run(
    informers: Informers,
    own: Own,
    tunnel: TunnelConfig,
    ways: ToPeers,
    shutdown: CancellationToken,
) -> Result<(), Error> {
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
    let opened = Routes::open(own, &tunnel, ways, events.clone(), about.clone())
        .and_then(|routes| Ok((routes.own_port()?, Arc::new(routes))));
    let (own_port, routes) = opened.map_err(during("open a socket for the tunnel".into()))?;
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
        for cluster in clusters.iter() {
            remove_others(&mut socket, cluster, &BTreeSet::new()).map_err(failed())?;
            let opened = Tunnel::open(tunnel.clone(), clusters.families(), cluster.family());
            let removed = opened.and_then(|mut tunnel| tunnel.remove(&mut socket));
            removed.map_err(failed())?;
        }
        Ok(())
    })
    .await
}

/// The routes and what is known of them.
pub(super) struct Routes {
    own: Own,
    ways: ToPeers,
    events: Recorder,
    about: ObjectReference,
    inner: Mutex<Inner>,
}

struct Inner {
    /// One per family of machines' addresses, the one that is rather taken first.
    tunnels: Vec<Tunnel>,
    peers: Peers,
    /// What the kernel had when it was looked at last.
    routed: BTreeSet<IpNet>,
    links: BTreeSet<u32>,
    /// Why nodes are not reached, as told last.
    told: BTreeSet<(String, String)>,
}

impl Routes {
    pub(super) fn open(
        own: Own,
        tunnel: &TunnelConfig,
        ways: ToPeers,
        events: Recorder,
        about: ObjectReference,
    ) -> Result<Self, netns::Error> {
        let open = |outer| Tunnel::open(tunnel.clone(), own.clusters.families(), outer);
        let tunnels = own.outer().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            own,
            ways,
            events,
            about,
            inner: Mutex::new(Inner {
                tunnels,
                peers: Peers::default(),
                routed: BTreeSet::new(),
                links: BTreeSet::new(),
                told: BTreeSet::new(),
            }),
        })
    }

    /// The port of the socket by which the tables are written: of several tunnels the first one's. What the
    /// others' own changes start is a look that finds nothing.
    fn own_port(&self) -> Result<u32, netns::Error> {
        self.inner().tunnels.first().map_or(Ok(0), Tunnel::own_port)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the Nodes say; whether it is something else than before.
    pub(super) fn want(&self, nodes: &[Arc<Node>]) -> bool {
        let peers = plan(nodes, &self.own);
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.peers, peers);
        before != inner.peers
    }

    /// Brings the kernel there; the ranges that had a route, which somebody else had taken away.
    pub(super) fn settle(&self) -> Result<Vec<IpNet>, netns::Error> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let mut socket = Socket::open()?;
        let found = self.ways(&mut socket, &inner.peers)?;
        let mut wanted = found.direct;
        for tunnel in &mut inner.tunnels {
            let outer = tunnel.outer();
            let Some(far) = found.far.get(&outer) else {
                continue;
            };
            let local = match self.own.addresses.of(outer) {
                Some(IpAddr::V6(address)) => Some(*address),
                _ => None,
            };
            let mtu = found.inside.get(&outer).copied().unwrap_or(MOST);
            let own = (self.own.name.as_str(), &self.own.ranges, local);
            let link = tunnel.settle(&mut socket, own, far, mtu)?;
            let inside = far
                .iter()
                .map(|(range, end)| (range, Tunnel::inside(range, &end.node)));
            wanted.extend(inside.map(|(range, via)| (*range, wanted_route(range, link, via))));
        }
        let routes: Vec<WantedRoute> = wanted.iter().map(|(_, route)| *route).collect();
        let made = socket.ensure_routes(&routes)?;
        let keep: BTreeSet<Key> = routes.iter().map(|route| key(&route.to)).collect();
        for cluster in self.own.clusters.iter() {
            remove_others(&mut socket, cluster, &keep)?;
        }
        for tunnel in &mut inner.tunnels {
            if !found.far.contains_key(&tunnel.outer()) {
                tunnel.remove(&mut socket)?;
            }
        }
        let undone = wanted
            .iter()
            .filter(|(range, route)| made.contains(&route.to) && inner.routed.contains(range))
            .map(|(range, _)| *range)
            .collect();
        inner.routed = wanted.iter().map(|(range, _)| *range).collect();
        inner.links = found.links;
        inner.links.extend(routes.iter().map(|route| route.link));
        self.ways.set(found.sizes);
        for (node, why) in found.refused.difference(&inner.told) {
            let message = format!("Pods of the node {node} cannot be reached from here: {why}");
            tracing::warn!("{message}");
            self.events.record_ref(
                self.about.clone(),
                Level::Warning,
                "PodsNotReached",
                message,
            );
        }
        inner.told = found.refused;
        Ok(undone)
    }

    /// How the ranges are reached now.
    fn ways(&self, socket: &mut Socket, peers: &Peers) -> Result<Found, netns::Error> {
        let mut reached = BTreeMap::new();
        let own = socket.addresses()?;
        for machine in machines(peers) {
            let is_own = own.iter().any(|(_, own)| own.address == machine);
            reached.insert(machine, reach(socket, machine, is_own)?);
        }
        let families: Vec<Family> = self.own.outer().collect();
        let links: BTreeMap<u32, Link> = match peers.by_range.is_empty() {
            true => BTreeMap::new(),
            false => {
                let all = socket.links()?.into_iter();
                all.map(|link| (link.index, link)).collect()
            }
        };
        let mut found = Found {
            refused: peers.refused.clone().into_iter().collect(),
            ..Found::default()
        };
        for (range, peer) in &peers.by_range {
            let way = way(range.family(), peer, &families, &reached);
            let link = match &way {
                Way::Direct { link, .. } | Way::Tunnel { link, .. } => links.get(link),
                Way::None(_) => None,
            };
            let mtu = link.map_or(MOST, |link| link.mtu);
            let name = link.map_or("a link", |link| &link.name);
            if let Some(link) = link {
                found.links.insert(link.index);
            }
            match way {
                Way::Direct { link, via } => {
                    let route = wanted_route(range, link, via);
                    found.direct.push((*range, route));
                    found.sizes.insert(format!("the link {name}"), mtu);
                }
                Way::Tunnel { machine, .. } => {
                    let outer = machine.family();
                    let mtu = mtu.saturating_sub(overhead(outer));
                    let node = peer.node.clone();
                    let ends = found.far.entry(outer).or_default();
                    ends.insert(*range, End { node, machine });
                    let least = found.inside.entry(outer).or_insert(mtu);
                    *least = mtu.min(*least);
                    let named = format!("the tunnel to other nodes over the link {name}");
                    let size = found.sizes.entry(named).or_insert(mtu);
                    *size = mtu.min(*size);
                }
                Way::None(why) => {
                    found.refused.insert((peer.node.clone(), why));
                }
            }
        }
        Ok(found)
    }
}

/// How the ranges are reached.
#[derive(Default)]
struct Found {
    direct: Vec<(IpNet, WantedRoute)>,
    /// By tunnel, by the family that it runs over,
    far: BTreeMap<Family, BTreeMap<IpNet, End>>,
    /// and what it takes in one packet.
    inside: BTreeMap<Family, u32>,
    /// That lead to other machines.
    links: BTreeSet<u32>,
    sizes: Ways,
    /// Nodes that are not reached, and why.
    refused: BTreeSet<(String, String)>,
}

struct Kept(Arc<Routes>);

impl HostState for Kept {
    type Error = Error;

    fn subject(&self) -> Subject {
        Subject {
            ipv6: self.0.own.clusters.of(Family::V6).is_some(),
            neighbours: false,
        }
    }

    fn notice(&self, changes: &Changes) -> bool {
        let mut inner = self.0.inner();
        let tunnels = inner.tunnels.iter_mut().map(|one| one.notice(changes));
        let tunnel = tunnels.fold(false, |noticed, one| noticed | one);
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
        let name = |range: IpNet| format!("the route to the pods in {range}");
        Ok(undone.into_iter().map(name).collect())
    }
}

/// `is_own`: the address is this machine's.
fn reach(socket: &mut Socket, address: IpAddr, is_own: bool) -> Result<Reach, netns::Error> {
    if is_own {
        let why = format!("its address {address} is this machine's");
        return Ok(Reach::None(why));
    }
    Ok(match socket.route_to(address)? {
        Some(Route {
            link: Some(link),
            via: None,
            ..
        }) => Reach::Link(link),
        Some(Route {
            link: Some(link), ..
        }) => Reach::Router(link),
        Some(_) => Reach::None(format!(
            "the route to its address {address} leads by several links"
        )),
        None => Reach::None(format!("there is no route to its address {address}")),
    })
}

fn wanted_route(range: &IpNet, link: u32, via: IpAddr) -> WantedRoute {
    WantedRoute {
        to: Prefix::new(range.network(), range.prefix_len()),
        link,
        kind: RouteKind::Via(via),
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
    cluster: &IpNet,
    keep: &BTreeSet<Key>,
) -> Result<(), netns::Error> {
    let mut stale = socket.routes_via(cluster.family() == Family::V6)?;
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
