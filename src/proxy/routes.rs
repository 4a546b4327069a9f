//! The routes of the node's own packets to services: by the pods' bridge, so that they leave with an
//! address that pods can answer. Blocking.
//!
//! The configured range is led there whatever others say. Ranges that ServiceCIDRs add must not take the
//! host from its networks: one in which the host has an address, or that somebody else routes, is left
//! alone. Services in it are served all the same, by the route that the host has.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netns::{
    Error,
    route::{Change, Prefix, RouteKind, Socket, WantedRoute},
};

use crate::addresses::ranges::overlap;

#[derive(Debug, Default)]
pub struct Routes {
    /// What ServiceCIDRs say.
    ranges: BTreeSet<IpNet>,
    /// Those that had their route, and those that could not, when they were last looked at.
    routed: BTreeSet<IpNet>,
    refused: BTreeSet<IpNet>,
    /// Nothing else is routed there: a daemon before this one may have left something.
    is_tidy: bool,
}

impl Routes {
    pub fn set(&mut self, ranges: BTreeSet<IpNet>) {
        self.ranges = ranges;
        self.is_tidy = false;
    }

    /// Brings the routes over `link` there; those that had been there and had to be made again.
    pub fn settle(
        &mut self,
        socket: &mut Socket,
        link: u32,
        configured: IpNet,
    ) -> Result<Vec<Prefix>, Error> {
        let (own, refused) = self.judged(socket, link, configured)?;
        for range in refused.difference(&self.refused) {
            self.is_tidy = false;
            tracing::warn!(
                %range,
                "this range of Services is not routed: the host has an address or a route in it"
            );
        }
        self.refused = refused;
        let own: BTreeSet<IpNet> = own.into_iter().chain([configured]).collect();
        let wanted: Vec<WantedRoute> = own.iter().map(|range| wanted(*range, link)).collect();
        let mut made = socket.ensure_routes(&wanted)?;
        made.retain(|to| {
            let mut before = self.routed.iter().chain([&configured]);
            before.any(|range| prefix(*range) == *to)
        });
        self.routed = own;
        if !self.is_tidy {
            let mut stale = socket.static_routes(link)?;
            stale.retain(|to| wanted.iter().all(|wanted| wanted.to != *to));
            if !stale.is_empty() {
                let delete = |to| Change::delete_route(link, to);
                socket.apply(stale.into_iter().map(delete).collect())?;
            }
            self.is_tidy = true;
        }
        Ok(made)
    }

    /// Which of the added ranges may be routed, and which may not. IPv4 only, as the proxy is; what is
    /// inside of the configured range has its route.
    fn judged(
        &self,
        socket: &mut Socket,
        link: u32,
        configured: IpNet,
    ) -> Result<(BTreeSet<IpNet>, BTreeSet<IpNet>), Error> {
        let (mut own, mut refused) = (BTreeSet::new(), BTreeSet::new());
        let is_v4 = |range: &&IpNet| matches!(range, IpNet::V4(_));
        let mut added = self
            .ranges
            .iter()
            .filter(is_v4)
            .copied()
            .collect::<Vec<_>>();
        added.retain(|range| !configured.contains(range));
        if added.is_empty() {
            return Ok((own, refused));
        }
        let addresses = socket.addresses()?.into_iter();
        let networks: Vec<IpNet> = addresses
            .filter_map(|(_, at)| IpNet::new(at.address, at.length).ok())
            .collect();
        for range in added {
            let found = socket.route_to(range.network())?;
            let is_others =
                found.is_some_and(|found| found.to == prefix(range) && found.link != Some(link));
            match is_others || networks.iter().any(|network| overlap(network, &range)) {
                true => refused.insert(range),
                false => own.insert(range),
            };
        }
        Ok((own, refused))
    }
}

fn prefix(range: IpNet) -> Prefix {
    Prefix::new(range.network(), range.prefix_len())
}

fn wanted(range: IpNet, link: u32) -> WantedRoute {
    WantedRoute {
        to: prefix(range),
        link,
        kind: RouteKind::Link,
    }
}
