//! The routes of the node's own packets to services of one family: by the pods' bridge, so that they leave
//! with an address that pods can answer. Blocking.
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

use crate::addresses::{
    family::{Family, OfFamily},
    ranges::overlap,
};

#[derive(Debug)]
pub struct Routes {
    configured: IpNet,
    /// What ServiceCIDRs say, of its family.
    ranges: BTreeSet<IpNet>,
    /// Those that had their route, and those that could not, when they were last looked at.
    routed: BTreeSet<IpNet>,
    refused: BTreeSet<IpNet>,
    /// Nothing else is routed there: a daemon before this one may have left something.
    is_tidy: bool,
}

impl Routes {
    pub fn new(configured: IpNet) -> Self {
        Self {
            configured,
            ranges: BTreeSet::new(),
            routed: BTreeSet::new(),
            refused: BTreeSet::new(),
            is_tidy: false,
        }
    }

    /// Of these ranges, those of its family.
    pub fn set(&mut self, ranges: &BTreeSet<IpNet>) {
        let family = self.configured.family();
        let of_family = ranges.iter().filter(|range| range.family() == family);
        self.ranges = of_family.copied().collect();
        self.is_tidy = false;
    }

    /// Brings the routes over `link` there; those that had been there and had to be made again.
    pub fn settle(&mut self, socket: &mut Socket, link: u32) -> Result<Vec<Prefix>, Error> {
        let configured = self.configured;
        let (own, refused) = self.judged(socket, link)?;
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
            let mut stale = static_routes(socket, link, configured.family())?;
            stale.retain(|to| wanted.iter().all(|wanted| wanted.to != *to));
            if !stale.is_empty() {
                let delete = |to| Change::delete_route(link, to);
                socket.apply(stale.into_iter().map(delete).collect())?;
            }
            self.is_tidy = true;
        }
        Ok(made)
    }

    /// Which of the added ranges may be routed, and which may not. What is inside of the configured range has
    /// its route.
    fn judged(
        &self,
        socket: &mut Socket,
        link: u32,
    ) -> Result<(BTreeSet<IpNet>, BTreeSet<IpNet>), Error> {
        let (mut own, mut refused) = (BTreeSet::new(), BTreeSet::new());
        let mut added: Vec<IpNet> = self.ranges.iter().copied().collect();
        added.retain(|range| !self.configured.contains(range));
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

/// Where packets of this family are led straight to this link because a program said so, not the kernel.
pub fn static_routes(socket: &mut Socket, link: u32, family: Family) -> Result<Vec<Prefix>, Error> {
    match family {
        Family::V4 => socket.static_routes(link),
        Family::V6 => netns::static_routes::ipv6(link),
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
