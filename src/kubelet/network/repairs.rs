//! The pod network as state that others may break: what is looked at, and how it is restored.

use std::{collections::HashMap, net::IpAddr, os::fd::AsFd, sync::atomic::Ordering};

use netns::{
    monitor::Changes,
    route::{self, Link, Prefix, RouteKind, Socket, WantedRoute},
    sysctl,
};

use super::{
    Error, FORWARD, PodNetwork, Shared, blocking, during, guard::Port, lock, tables::Tables, wiring,
};
use crate::{repair::HostState, runtime::Runtime};

/// A pod network with the means to wire a pod again.
#[derive(Debug)]
pub struct Kept {
    network: PodNetwork,
    runtime: Runtime,
}

impl Kept {
    pub fn new(network: PodNetwork, runtime: Runtime) -> Self {
        Self { network, runtime }
    }
}

impl HostState for Kept {
    type Error = Error;

    fn notice(&self, changes: &Changes) -> bool {
        self.network.shared.notice(changes)
    }

    fn has_silent_settings(&self) -> bool {
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
        settings.unwrap_or_default().iter().any(|name| {
            // One that cannot be read is the repair's to tell of.
            sysctl::read(name).ok().flatten().as_deref() != Some("1")
        })
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let shared = self.network.shared.clone();
        let (mut restored, unwired) = blocking(move || shared.repair()).await?;
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
        Ok(restored)
    }
}

impl Shared {
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
        let is_port = |link: &Link| link.master == Some(bridge.index) && link.up;
        changes.overrun
            || lost_table
            || changes.forwarding_of_all() == Some(false)
            || changes.forwarding_of(bridge.index) == Some(false)
            || changes.lost_routes.contains(&bridge.index)
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

    /// Kernel settings that must be 1, as long as the bridge is there.
    fn settings(&self, tables: &Tables) -> Vec<String> {
        let of_bridge = |setting| format!("net/ipv4/conf/{}/{setting}", self.config.bridge);
        let mut settings = vec![FORWARD.to_owned(), of_bridge("forwarding")];
        // The node's own packets from 127.0.0.1 must find the pods. The kernel tells nobody of this one.
        if tables.has_ports() {
            settings.push(of_bridge("route_localnet"));
        }
        settings
    }

    /// Restores everything but wires that are gone: the pods that have none are returned too.
    pub(super) fn repair(&self) -> Result<(Vec<String>, Vec<String>), Error> {
        let _alone = self.alone();
        let mut restored = Vec::new();
        self.repair_bridge(&mut restored)?;
        let settings = self.settings(&self.tables());
        for name in settings {
            let found = sysctl::read(&name).map_err(during(format!("read {name}")))?;
            if found.as_deref() != Some("1") {
                sysctl::write(&name, "1").map_err(during(format!("set {name}")))?;
                restored.push(format!("the setting {}", name.replace('/', ".")));
            }
        }
        let unwired = self.repair_ports(&mut restored)?;
        let settled = self.tables().settle();
        restored.extend(settled.map_err(during("write the tables of the pod network".into()))?);
        Ok((restored, unwired))
    }

    fn repair_bridge(&self, restored: &mut Vec<String>) -> Result<(), Error> {
        let failed = || during(format!("restore the bridge {}", self.config.bridge));
        let (known, range) = (self.bridge(), self.range);
        let gateway = Prefix::new(self.gateway, range.prefix_len());
        let mut socket = Socket::open().map_err(failed())?;
        let found = match socket.link(&self.config.bridge) {
            Ok(link) => Some(link),
            Err(error) if error.is_absent() => None,
            Err(error) => return Err(failed()(error)),
        };
        let same = found
            .as_ref()
            .is_some_and(|link| link.index == known.index && link.up && link.mac == known.mac);
        let mut has_address = || {
            let addresses = socket.addresses()?;
            Ok(addresses.contains(&(known.index, gateway)))
        };
        if !same || !has_address().map_err(failed())? {
            let IpAddr::V4(address) = self.gateway else {
                return Ok(());
            };
            // Neighbours go with the last address, and when the bridge goes down.
            self.neighbours_lost.store(true, Ordering::Relaxed);
            let made = wiring::ensure_bridge(&self.config.bridge, address, range);
            self.set_bridge(made.map_err(failed())?);
            restored.push(match same {
                true => format!("the address {gateway} of {}", self.config.bridge),
                false => format!("the bridge {}", self.config.bridge),
            });
        }
        let link = self.bridge().index;
        let routes = [
            WantedRoute {
                to: Prefix::host(self.gateway),
                link,
                kind: RouteKind::Local,
            },
            WantedRoute {
                to: Prefix::new(range.network().into(), range.prefix_len()),
                link,
                kind: RouteKind::Connected(self.gateway),
            },
        ];
        let made = socket.ensure_routes(&routes).map_err(failed())?;
        restored.extend(made.iter().map(|to| format!("the route to {to}")));
        Ok(())
    }

    /// Brings the wires that are there to the bridge; returns the pods whose wires are not there.
    fn repair_ports(&self, restored: &mut Vec<String>) -> Result<Vec<String>, Error> {
        let failed = || during("restore the links of pods".into());
        let bridge = self.bridge();
        let wired = self.wired();
        if wired.is_empty() {
            return Ok(Vec::new());
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
        let there: Vec<_> = there.into_iter().map(|(_, port)| port).collect();
        let is_astray = |port: &&Port| {
            let link = &links[&port.link];
            link.master != Some(bridge.index) || !link.up || link.port != Some(route::Port::Fixed)
        };
        let astray: Vec<Port> = there.iter().filter(is_astray).cloned().collect();
        if !astray.is_empty() {
            wiring::reconnect(&bridge, &astray).map_err(failed())?;
            restored.push(format!("the links of {} pods", astray.len()));
        }
        if self.neighbours_lost.load(Ordering::Relaxed) {
            wiring::adopt(&bridge, &there).map_err(failed())?;
            self.neighbours_lost.store(false, Ordering::Relaxed);
        }
        Ok(gone.into_iter().map(|(uid, _)| uid).collect())
    }

    /// Wires a pod again whose link is gone; false if it is being unwired.
    pub(super) fn rewire(
        &self,
        uid: &str,
        netns: std::os::fd::BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        let _alone = self.alone();
        let Some((_, port)) = self.wired().into_iter().find(|(wired, _)| wired == uid) else {
            return Ok(false);
        };
        wiring::attach(
            &self.bridge(),
            self.gateway,
            uid,
            port.address.into(),
            netns,
        )
        .map_err(during(format!("wire pod {uid} again")))?;
        let bandwidth = lock(&self.shaped).get(uid).copied().unwrap_or_default();
        wiring::shape(uid, netns, bandwidth)
            .map_err(during(format!("limit the bandwidth of pod {uid} again")))?;
        Ok(true)
    }
}
