//! The pod network as state that others may break: what is looked at, and how it is restored.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::Ordering,
};

use netns::{
    monitor::{Changes, Subject},
    route::{self, Link, Prefix, RouteKind, Socket, WantedRoute},
    sysctl,
};

use super::{
    BridgeNetwork, Error, Shared, blocking, during,
    guard::Port,
    lock, prefixes,
    settings::{ALSO_AS_ROUTER, FORWARD, FORWARD_IPV6},
    size,
    tables::Tables,
    wiring,
};
use crate::{addresses::family::Family, repair::HostState, runtime::Runtime};

/// A pod network with the means to wire a pod again.
#[derive(Debug)]
pub struct Kept {
    network: BridgeNetwork,
    runtime: Runtime,
}

impl Kept {
    pub fn new(network: BridgeNetwork, runtime: Runtime) -> Self {
        Self { network, runtime }
    }
}

impl HostState for Kept {
    type Error = Error;

    fn subject(&self) -> Subject {
        self.network.shared.subject()
    }

    fn notice(&self, changes: &Changes) -> bool {
        self.network.shared.notice(changes)
    }

    fn has_silent_settings(&self) -> bool {
        if self.network.shared.subject().ipv6 {
            return true;
        }
        // While the tables are being written: rather one look too many.
        let tables = self.network.shared.tables.try_lock();
        tables.map_or(true, |tables| tables.has_ports())
    }

    fn has_drifted(&self) -> bool {
        let shared = &self.network.shared;
        // While the tables are being written: next time.
        let settings = shared
            .tables
            .try_lock()
            .map(|tables| shared.settings(&tables));
        settings.unwrap_or_default().iter().any(|(name, value)| {
            // One that cannot be read is the repair's to tell of.
            sysctl::read(name).ok().flatten().as_deref() != Some(value)
        })
    }

    fn complaints(&self) -> Vec<String> {
        let size = lock(&self.network.shared.size);
        size.plan.complaint.clone().into_iter().collect()
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let shared = self.network.shared.clone();
        let Repaired {
            mut restored,
            unwired,
            resized,
        } = blocking(move || shared.repair()).await?;
        for uid in unwired {
            // Without its namespace the pod itself is gone, which others see to.
            let Ok(Some(netns)) = self.runtime.netns(&uid).await else {
                continue;
            };
            let (shared, pod) = (self.network.shared.clone(), uid.clone());
            if blocking(move || shared.rewire(&pod, netns.as_fd())).await? {
                restored.push(format!("the link of pod {uid}"));
            }
        }
        for uid in resized {
            let Ok(Some(netns)) = self.runtime.netns(&uid).await else {
                continue;
            };
            let shared = self.network.shared.clone();
            blocking(move || shared.resize(&uid, netns.as_fd())).await?;
        }
        Ok(restored)
    }
}

/// What was restored, and what takes the pods' namespaces.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Repaired {
    /// In words.
    pub restored: Vec<String>,
    /// Pods whose wires are gone.
    pub unwired: Vec<String>,
    /// Pods whose wires take packets of another size than they should.
    pub resized: Vec<String>,
}

impl Shared {
    /// What must be told for the pod network to be kept.
    pub(super) fn subject(&self) -> Subject {
        Subject {
            ipv6: self.config.pod_cidrs.of(Family::V6).is_some(),
            neighbours: true,
        }
    }

    pub(super) fn notice(&self, changes: &Changes) -> bool {
        let bridge = self.bridge();
        let mut tables = self.tables();
        let lost_table = tables.notice(changes);
        let is_lost = |name: &str, is_right: &dyn Fn(&Link) -> bool| {
            let link = changes.links.get(name);
            link.is_some_and(|link| !link.as_ref().is_some_and(is_right))
        };
        let is_bridge =
            |link: &Link| link.index == bridge.index && link.up && link.mac == bridge.mac;
        let size = lock(&self.size);
        let mtu = size.plan.mtu;
        let is_port = |link: &Link| link.master == Some(bridge.index) && link.up && link.mtu == mtu;
        let is_other_size = |link: &Link| size.uplinks.differs(link.index, link.mtu);
        let is_lost_neighbour = |(link, address): &(u32, IpAddr)| {
            let mut ports = tables.links();
            *link == bridge.index
                && ports.any(|(_, port)| port.addresses.iter().any(|one| one == address))
        };
        changes.overrun
            || lost_table
            || changes.forwarding_of_all() == Some(false)
            || changes.forwarding_of(bridge.index) == Some(false)
            || changes.ipv6_forwarding_of_all() == Some(false)
            || changes.ipv6_forwarding_of(bridge.index) == Some(false)
            || changes.links.values().flatten().any(is_other_size)
            || changes
                .lost_routes
                .iter()
                .any(|link| *link == bridge.index || size.uplinks.has(*link))
            || changes.lost_neighbours.iter().any(is_lost_neighbour)
            || changes
                .lost_addresses
                .iter()
                .any(|(link, _)| *link == bridge.index)
            || is_lost(&self.config.bridge, &is_bridge)
            || !changes.links.is_empty()
                && tables
                    .links()
                    .any(|(_, port)| is_lost(&port.link, &is_port))
            || changes
                .ports
                .values()
                .any(|port| *port != route::Port::Fixed)
                && self.wired().values().any(|wired| {
                    let now = changes.ports.get(&wired.link);
                    now.is_some_and(|port| *port != route::Port::Fixed)
                })
    }

    /// Kernel settings and what they must be, as long as the bridge is there.
    fn settings(&self, tables: &Tables) -> Vec<(String, &'static str)> {
        let mut settings = Vec::new();
        for family in self.config.pod_cidrs.families() {
            let folder = match family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            };
            let of_bridge = |name| format!("net/{folder}/conf/{}/{name}", self.config.bridge);
            let forward = match family {
                Family::V4 => FORWARD,
                Family::V6 => FORWARD_IPV6,
            };
            settings.push((forward.to_owned(), "1"));
            settings.push((of_bridge("forwarding"), "1"));
            match family {
                // The node's own packets from 127.0.0.1 must find the pods. The kernel tells nobody of this one,
                // nor of those of IPv6.
                Family::V4 if tables.has_ports() => {
                    settings.push((of_bridge("route_localnet"), "1"));
                }
                Family::V4 => {}
                Family::V6 => {
                    let own = wiring::IPV6_SETTINGS;
                    settings.extend(own.map(|(name, value)| (of_bridge(name), value)));
                }
            }
        }
        // A link may have gone meanwhile, or does it by a program now.
        let advertised = self.advertised.iter().filter(|name| {
            let value = sysctl::read(name).ok().flatten();
            value.as_deref() == Some("1")
        });
        settings.extend(advertised.map(|name| (name.clone(), ALSO_AS_ROUTER)));
        settings
    }

    /// Restores everything but wires that are gone or of the wrong size.
    pub(super) fn repair(&self) -> Result<Repaired, Error> {
        let _alone = self.alone();
        let mut repaired = Repaired::default();
        *lock(&self.size) = size(&self.config.pod_cidrs, &self.to_peers)?;
        self.repair_bridge(&mut repaired.restored)?;
        let settings = self.settings(&self.tables());
        for (name, value) in settings {
            let found = sysctl::read(&name).map_err(during(format!("read {name}")))?;
            if found.as_deref() != Some(value) {
                sysctl::write(&name, value).map_err(during(format!("set {name}")))?;
                let name = name.replace('/', ".");
                repaired.restored.push(format!("the setting {name}"));
            }
        }
        self.repair_ports(&mut repaired)?;
        let settled = self.tables().settle();
        let settled = settled.map_err(during("write the tables of the pod network".into()))?;
        repaired.restored.extend(settled);
        Ok(repaired)
    }

    fn repair_bridge(&self, restored: &mut Vec<String>) -> Result<(), Error> {
        let failed = || during(format!("restore the bridge {}", self.config.bridge));
        let (known, ranges) = (self.bridge(), &self.config.pod_cidrs);
        let gateways = prefixes(ranges, &self.gateways);
        let mut socket = Socket::open().map_err(failed())?;
        let found = match socket.link(&self.config.bridge) {
            Ok(link) => Some(link),
            Err(error) if error.is_absent() => None,
            Err(error) => return Err(failed()(error)),
        };
        let same = found
            .as_ref()
            .is_some_and(|link| link.index == known.index && link.up && link.mac == known.mac);
        let there = socket.addresses().map_err(failed())?;
        let lost = |gateway: &&Prefix| !there.contains(&(known.index, **gateway));
        let lost: Vec<&Prefix> = gateways.iter().filter(lost).collect();
        if !same || !lost.is_empty() {
            // Neighbours go with the last address, and when the bridge goes down.
            self.neighbours_lost.store(true, Ordering::Relaxed);
            let made = wiring::ensure_bridge(&self.config.bridge, &gateways);
            self.set_bridge(made.map_err(failed())?);
            let name = &self.config.bridge;
            match same {
                true => restored.extend(
                    lost.iter()
                        .map(|gateway| format!("the address {gateway} of {name}")),
                ),
                false => restored.push(format!("the bridge {name}")),
            }
        }
        let link = self.bridge().index;
        let both = ranges.iter().zip(self.gateways.iter());
        let routes: Vec<WantedRoute> = both
            .flat_map(|(range, gateway)| {
                [
                    WantedRoute {
                        to: Prefix::host(*gateway),
                        link,
                        kind: RouteKind::Local,
                    },
                    WantedRoute {
                        to: Prefix::new(range.network(), range.prefix_len()),
                        link,
                        kind: RouteKind::Connected(*gateway),
                    },
                ]
            })
            .collect();
        let made = socket.ensure_routes(&routes).map_err(failed())?;
        restored.extend(made.iter().map(|to| format!("the route to {to}")));
        Ok(())
    }

    /// Brings the wires that are there to the bridge, and finds those that are not there.
    fn repair_ports(&self, repaired: &mut Repaired) -> Result<(), Error> {
        let failed = || during("restore the links of pods".into());
        let bridge = self.bridge();
        let wired = self.wired();
        if wired.is_empty() {
            return Ok(());
        }
        let mut socket = Socket::open().map_err(failed())?;
        let links: HashMap<String, Link> = socket
            .links()
            .map_err(failed())?
            .into_iter()
            .map(|link| (link.name.clone(), link))
            .collect();
        let (there, gone): (Vec<_>, Vec<_>) = wired
            .into_iter()
            .partition(|(_, port)| links.contains_key(&port.link));
        let mtu = lock(&self.size).plan.mtu;
        let differs = |(_, port): &&(String, Port)| links[&port.link].mtu != mtu;
        let resized = there.iter().filter(differs).map(|(uid, _)| uid.clone());
        repaired.resized.extend(resized);
        repaired
            .unwired
            .extend(gone.into_iter().map(|(uid, _)| uid));
        let there: Vec<_> = there.into_iter().map(|(_, port)| port).collect();
        let is_astray = |port: &&Port| {
            let link = &links[&port.link];
            link.master != Some(bridge.index) || !link.up || link.port != Some(route::Port::Fixed)
        };
        let astray: Vec<Port> = there.iter().filter(is_astray).cloned().collect();
        if !astray.is_empty() {
            wiring::reconnect(&bridge, &astray).map_err(failed())?;
            let what = format!("the links of {} pods", astray.len());
            repaired.restored.push(what);
        }
        if self.neighbours_lost.load(Ordering::Relaxed) {
            wiring::adopt(&bridge, &there).map_err(failed())?;
            self.neighbours_lost.store(false, Ordering::Relaxed);
        }
        let known = socket
            .permanent_neighbours(bridge.index)
            .map_err(failed())?;
        let is_unknown = |port: &&Port| {
            let mut addresses = port.addresses.iter();
            addresses.any(|address| known.get(address) != Some(&port.mac))
        };
        let unknown: Vec<Port> = there.iter().filter(is_unknown).cloned().collect();
        if !unknown.is_empty() {
            wiring::adopt(&bridge, &unknown).map_err(failed())?;
            let what = format!("the hardware addresses of {} pods", unknown.len());
            repaired.restored.push(what);
        }
        Ok(())
    }

    /// Wires a pod again whose link is gone; false if it is being unwired.
    pub(super) fn rewire(&self, uid: &str, netns: BorrowedFd<'_>) -> Result<bool, Error> {
        let _alone = self.alone();
        let Some(port) = lock(&self.wired).get(uid).cloned() else {
            return Ok(false);
        };
        let bridge = self.bridge();
        wiring::attach(&self.wire(&bridge, port.addresses), uid, netns)
            .map_err(during(format!("wire pod {uid} again")))?;
        let bandwidth = lock(&self.shaped).get(uid).copied().unwrap_or_default();
        wiring::shape(uid, netns, bandwidth)
            .map_err(during(format!("limit the bandwidth of pod {uid} again")))?;
        Ok(true)
    }

    /// Has a pod's wire take packets of the size of today, if it is not being unwired.
    pub(super) fn resize(&self, uid: &str, netns: BorrowedFd<'_>) -> Result<(), Error> {
        let _alone = self.alone();
        if !lock(&self.wired).contains_key(uid) {
            return Ok(());
        }
        let mtu = lock(&self.size).plan.mtu;
        tracing::info!(
            pod = uid,
            mtu,
            "the pod's link takes packets of another size"
        );
        wiring::set_mtu(uid, netns, mtu).map_err(during(format!("set the MTU of pod {uid}")))
    }
}
