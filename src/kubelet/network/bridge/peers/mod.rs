//! Routes to the pods of other nodes: by the other machine's address where it is on a link with this one, else
//! by a tunnel; by an encrypted tunnel to all of them where the cluster is told so.
//!
//! `requested.rs` knows whether it is. `plan.rs` says whose ranges are where and how they are reached, `tunnel.rs` makes
//! the tunnels and `wireguard` the encrypted one; here the kernel is brought there, and back when others change it. How
//! large packets may be on these ways is told to the pods' links. Started by the node beside the kubelet, with a client
//! that may watch all Nodes.
//! Always true:
//! - Only routes that bear our mark and lie inside of the cluster's range are ever removed, so what the host and others
//!   route stays.
//! - Where encryption is requested, the pods of a node that cannot be reached encrypted are not reached.

mod messages;
mod plan;
mod publish;
pub mod requested;
mod tunnel;
mod wireguard;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::Client;
use netns::{
    monitor::{Changes, Subject},
    nft,
    route::{Change, Link, Prefix, Route, RouteKind, Socket, WantedRoute},
    wireguard::PublicKey,
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    messages::{Refusal, Told},
    plan::{NodeKey, Peer, Peers, Reach, Way, machines, plan, tunnelled, way},
    publish::Published,
    requested::{Encryption, Requested},
    tunnel::{End, Tunnel},
    wireguard::WireGuard,
};
pub use self::{
    plan::{Own, PUBLIC_KEY},
    tunnel::Config as TunnelConfig,
    wireguard::Config as WireGuardConfig,
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

/// What the tunnels are made with.
#[derive(Clone, Debug)]
pub struct Config {
    pub tunnel: TunnelConfig,
    pub wireguard: WireGuardConfig,
}

/// Keeps the routes as the Nodes say, until `shutdown`; they stay then, for running pods. What packets on the
/// ways to other nodes may have in them is told `ways`. `node` acts as the node, whose Node tells its public key.
pub async fn run(
    informers: Informers,
    node: Client,
    own: Own,
    config: Config,
    ways: ToPeers,
    shutdown: CancellationToken,
) -> Result<(), Error> {
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
    let name = own.name.clone();
    let opened = Routes::open(own, &config, ways, events.clone(), about.clone())
        .and_then(|routes| Ok((routes.own_port()?, Arc::new(routes))));
    let (own_port, routes) = opened.map_err(during("open a socket for the tunnel".into()))?;
    // What is on record holds before anything else is known: pods may run already.
    let early = routes.clone();
    let failed = during("keep packets of pods from going in plain".into());
    blocking(move || early.inner().guard().map_err(failed)).await?;

    let nodes: Informer<Node> = informers.get();
    let mut changes = nodes.changes();
    let requested = requested::watch(informers.client().clone(), informers.watch_config());
    let mut requested = std::pin::pin!(requested);
    let (_, first) = tokio::join!(nodes.synced(), requested.next());
    routes.request(first.flatten());
    routes.want(&nodes.list());
    let again = Arc::new(Notify::new());
    let follow = async {
        loop {
            let is_other = tokio::select! {
                change = changes.next() => match change {
                    Some(_) => routes.want(&nodes.list()),
                    None => return,
                },
                Some(told) = requested.next() => routes.request(told),
            };
            if is_other {
                again.notify_one();
            }
        }
    };
    let kept = Kept {
        routes: routes.clone(),
        again: again.clone(),
        later: Mutex::default(),
    };
    let keeping = repair::keep(Arc::new(kept), own_port, &again, tell, shutdown.clone());
    // The first look comes at once.
    again.notify_one();
    tokio::select! {
        () = follow => {}
        () = publish::keep(node, &nodes, &name, routes.published.subscribe()) => {}
        () = keeping => {}
    }
    Ok(())
}

/// Takes the routes to pods inside of the cluster's range away, and the tunnels (for `reset`).
pub async fn remove(
    ranges: PerFamily<IpNet>,
    clusters: PerFamily<IpNet>,
    config: Config,
) -> Result<(), Error> {
    blocking(move || {
        let failed = || during("remove the routes to the pods of other nodes".into());
        let mut socket = Socket::open().map_err(failed())?;
        let mut tables = nft::Socket::open().map_err(failed())?;
        for cluster in clusters.iter() {
            remove_others(&mut socket, cluster, &BTreeSet::new()).map_err(failed())?;
            let mut tunnel =
                Tunnel::new(config.tunnel.clone(), clusters.families(), cluster.family());
            tunnel.remove(&mut socket, &mut tables).map_err(failed())?;
        }
        let mut sealed = WireGuard::new(config.wireguard, ranges, clusters);
        sealed.remove(&mut socket, &mut tables).map_err(failed())
    })
    .await
}

/// The routes and what is known of them.
pub(super) struct Routes {
    own: Own,
    ways: ToPeers,
    events: Recorder,
    about: ObjectReference,
    wireguard_port: u16,
    /// The public key that this node's Node is to tell.
    published: watch::Sender<Published>,
    inner: Mutex<Inner>,
}

struct Inner {
    requested: Requested,
    /// By which all tables are written: what one's own changes start is no look.
    tables: nft::Socket,
    /// One per family of machines' addresses, the one that is rather taken first.
    tunnels: Vec<Tunnel>,
    sealed: WireGuard,
    peers: Peers,
    /// What the kernel had when it was looked at last.
    routed: BTreeSet<IpNet>,
    links: BTreeSet<u32>,
    /// Why nodes are not reached.
    told: Told,
}

impl Inner {
    /// Keeps packets of pods from going in plain, if that is requested.
    fn guard(&mut self) -> Result<(), netns::Error> {
        match self.requested.current() {
            Encryption::None => Ok(()),
            _ => self.sealed.guard(&mut self.tables, &self.peers.others),
        }
    }
}

impl Routes {
    pub(super) fn open(
        own: Own,
        config: &Config,
        ways: ToPeers,
        events: Recorder,
        about: ObjectReference,
    ) -> Result<Self, netns::Error> {
        let tunnel = |outer| Tunnel::new(config.tunnel.clone(), own.clusters.families(), outer);
        let sealed = WireGuard::new(config.wireguard.clone(), own.ranges, own.clusters);
        Ok(Self {
            ways,
            events,
            about,
            wireguard_port: config.wireguard.port,
            published: watch::Sender::default(),
            inner: Mutex::new(Inner {
                requested: Requested::recorded(&config.wireguard.folder),
                tables: nft::Socket::open()?,
                tunnels: own.outer().map(tunnel).collect(),
                sealed,
                peers: Peers::default(),
                routed: BTreeSet::new(),
                links: BTreeSet::new(),
                told: Told::default(),
            }),
            own,
        })
    }

    /// The port of the socket by which the tables are written.
    fn own_port(&self) -> Result<u32, netns::Error> {
        self.inner().tables.port()
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

    /// Takes over which encryption the cluster requests; whether it is another one than before.
    pub(super) fn request(&self, told: Option<Encryption>) -> bool {
        self.inner().requested.take(told)
    }

    /// Brings the kernel there; what others had taken away, in words.
    pub(super) fn settle(&self) -> Result<Vec<String>, netns::Error> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        // Before any route changes.
        inner.guard()?;
        let mut socket = Socket::open()?;
        let requested = inner.requested.current().clone();
        let mut found = self.ways(&mut socket, &inner.peers, &requested)?;
        let mut undone = Vec::new();
        let mut wanted = std::mem::take(&mut found.direct);
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
            let link = tunnel.settle(&mut socket, &mut inner.tables, own, far, mtu)?;
            let inside = far
                .iter()
                .map(|(range, end)| (range, Tunnel::inside(range, &end.node)));
            let by = |(range, via): (&IpNet, _)| {
                (*range, wanted_route(range, link, RouteKind::Via(via)))
            };
            wanted.extend(inside.map(by));
        }
        let mut published = Published::Nothing;
        if requested == Encryption::WireGuard {
            let peers = std::mem::take(&mut found.sealed);
            let ranges = std::mem::take(&mut found.sealed_ranges);
            let mtu = found
                .sealed_mtu
                .unwrap_or(MOST - wireguard::overhead(Family::V6));
            match inner.sealed.settle(&mut socket, peers, mtu)? {
                Some(settled) => {
                    undone = settled.undone;
                    published = Published::Key(settled.public_key);
                    let link = settled.link;
                    let by = |range: IpNet| (range, wanted_route(&range, link, RouteKind::Tunnel));
                    wanted.extend(ranges.into_iter().map(by));
                }
                None => {
                    found.sizes.clear();
                    found.refused = [Refusal::no_wireguard()].into();
                }
            }
        }
        let routes: Vec<WantedRoute> = wanted.iter().map(|(_, route)| *route).collect();
        let made = socket.ensure_routes(&routes)?;
        let keep: BTreeSet<Key> = routes.iter().map(|route| key(&route.to)).collect();
        for cluster in self.own.clusters.iter() {
            remove_others(&mut socket, cluster, &keep)?;
        }
        for tunnel in &mut inner.tunnels {
            if !found.far.contains_key(&tunnel.outer()) {
                tunnel.remove(&mut socket, &mut inner.tables)?;
            }
        }
        if requested == Encryption::None {
            inner.sealed.remove(&mut socket, &mut inner.tables)?;
        }
        let lost = wanted
            .iter()
            .filter(|(range, route)| made.contains(&route.to) && inner.routed.contains(range));
        undone.extend(lost.map(|(range, _)| format!("the route to the pods in {range}")));
        inner.routed = wanted.iter().map(|(range, _)| *range).collect();
        inner.links = found.links;
        inner.links.extend(routes.iter().map(|route| route.link));
        self.ways.set(found.sizes);
        self.published.send_if_modified(|before| {
            let is_other = *before != published;
            *before = published;
            is_other
        });
        for message in inner.told.news(found.refused, Instant::now()) {
            tracing::warn!("{message}");
            self.events.record_ref(
                self.about.clone(),
                Level::Warning,
                "PodsNotReached",
                message,
            );
        }
        Ok(undone)
    }

    /// How the ranges are reached now.
    fn ways(
        &self,
        socket: &mut Socket,
        peers: &Peers,
        requested: &Encryption,
    ) -> Result<Found, netns::Error> {
        if let Encryption::Unknown(what) = requested {
            return Ok(Found {
                refused: [Refusal::unknown_encryption(what)].into(),
                ..Found::default()
            });
        }
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
        let refused = peers.refused.iter();
        let mut found = Found {
            refused: refused.map(|(node, why)| Refusal::of(node, why)).collect(),
            ..Found::default()
        };
        for (range, peer) in &peers.by_range {
            let way = match requested {
                Encryption::None => way(range.family(), peer, &families, &reached),
                _ => tunnelled(peer, &families, &reached),
            };
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
                    let route = wanted_route(range, link, RouteKind::Via(via));
                    found.direct.push((*range, route));
                    found.sizes.insert(format!("the link {name}"), mtu);
                }
                Way::Tunnel { machine, .. } => {
                    let mtu = match requested {
                        Encryption::None => found.tunnel(range, peer, machine, mtu),
                        _ => match self.seal(&mut found, range, peer, machine, mtu) {
                            Some(mtu) => mtu,
                            None => continue,
                        },
                    };
                    let named = format!("the tunnel to other nodes over the link {name}");
                    let size = found.sizes.entry(named).or_insert(mtu);
                    *size = mtu.min(*size);
                }
                Way::None(why) => {
                    found.refused.insert(Refusal::of(&peer.node, &why));
                }
            }
        }
        Ok(found)
    }

    /// The range is reached by the encrypted tunnel, if its node has a key; how large packets may be in it.
    fn seal(
        &self,
        found: &mut Found,
        range: &IpNet,
        peer: &Peer,
        machine: IpAddr,
        mtu: u32,
    ) -> Option<u32> {
        let key = match &peer.key {
            NodeKey::Known(key) => *key,
            NodeKey::Missing => {
                found.refused.insert(Refusal::no_key(&peer.node));
                return None;
            }
            NodeKey::Of(other) => {
                found.refused.insert(Refusal::same_key(&peer.node, other));
                return None;
            }
        };
        let mtu = mtu.saturating_sub(wireguard::overhead(machine.family()));
        let port = self.wireguard_port;
        let sealed = found.sealed.entry(key).or_insert_with(|| wireguard::Peer {
            node: peer.node.clone(),
            endpoint: SocketAddr::new(machine, port),
            allowed: BTreeSet::new(),
        });
        sealed.allowed.insert((range.network(), range.prefix_len()));
        found.sealed_ranges.push(*range);
        found.sealed_mtu = Some(found.sealed_mtu.map_or(mtu, |least| mtu.min(least)));
        Some(mtu)
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
    /// By the encrypted tunnel, by key,
    sealed: BTreeMap<PublicKey, wireguard::Peer>,
    sealed_ranges: Vec<IpNet>,
    /// and what that takes in one packet.
    sealed_mtu: Option<u32>,
    /// That lead to other machines.
    links: BTreeSet<u32>,
    sizes: Ways,
    /// Nodes that are not reached, and why.
    refused: BTreeSet<Refusal>,
}

impl Found {
    /// The range is reached by a tunnel to that machine; how large packets may be in it.
    fn tunnel(&mut self, range: &IpNet, peer: &Peer, machine: IpAddr, mtu: u32) -> u32 {
        let outer = machine.family();
        let mtu = mtu.saturating_sub(tunnel::overhead(outer));
        let node = peer.node.clone();
        let ends = self.far.entry(outer).or_default();
        ends.insert(*range, End { node, machine });
        let least = self.inside.entry(outer).or_insert(mtu);
        *least = mtu.min(*least);
        mtu
    }
}

struct Kept {
    routes: Arc<Routes>,
    again: Arc<Notify>,
    /// A look for what is told only if it stays.
    later: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Kept {
    fn look_later(&self) {
        let due = self.routes.inner().told.due();
        let look = due.map(|due| {
            let again = self.again.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep_until(due.into()).await;
                again.notify_one();
            }))
        });
        *self.later.lock().unwrap_or_else(PoisonError::into_inner) = look;
    }
}

impl HostState for Kept {
    type Error = Error;

    fn subject(&self) -> Subject {
        Subject {
            ipv6: self.routes.own.clusters.of(Family::V6).is_some(),
            neighbours: false,
        }
    }

    fn notice(&self, changes: &Changes) -> bool {
        let mut inner = self.routes.inner();
        let tunnels = inner.tunnels.iter_mut().map(|one| one.notice(changes));
        let tunnel = tunnels.fold(false, |noticed, one| noticed | one);
        let sealed = inner.sealed.notice(changes);
        let is_used = |link: &u32| inner.links.contains(link);
        tunnel
            || sealed
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

    /// Keys and peers of a WireGuard link.
    fn has_silent_settings(&self) -> bool {
        self.routes.inner().sealed.is_there()
    }

    fn has_drifted(&self) -> bool {
        self.routes.inner().sealed.has_drifted()
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let routes = self.routes.clone();
        let failed = during("route to the pods of other nodes".into());
        let undone = blocking(move || routes.settle().map_err(failed)).await?;
        self.look_later();
        Ok(undone)
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

fn wanted_route(range: &IpNet, link: u32, kind: RouteKind) -> WantedRoute {
    WantedRoute {
        to: Prefix::new(range.network(), range.prefix_len()),
        link,
        kind,
    }
}

fn absent_is_fine(done: Result<(), netns::Error>) -> Result<(), netns::Error> {
    match done {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
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
