//! Addresses of the pool on links of this host. Blocking.
//!
//! They are lent: the kernel takes each away by itself when it is not lent again in time. So nothing needs to be
//! recorded on disk, and a process that was killed or is held up leaves none behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netns::{
    announce::announce,
    route::{Change, Link, Prefix, Socket},
};

use crate::addresses::family::OfFamily;

/// Longer than a Lease lasts, and more than two renewals.
const LENT_SECONDS: u32 = 3;
/// How often neighbours are told, each time that addresses are lent: a frame may get lost.
const ANNOUNCEMENTS: u8 = 3;

/// What this node has on its links.
#[derive(Debug)]
pub struct Links {
    /// The node's own addresses.
    own: Vec<IpAddr>,
    held: BTreeMap<IpAddr, Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    link: u32,
    announced: u8,
}

/// How it went.
#[derive(Debug, Default)]
pub struct Settled {
    /// What others had taken away.
    pub restored: Vec<String>,
    /// What this host cannot have, and why.
    pub failed: Vec<(IpAddr, String)>,
}

impl Links {
    pub fn new(own: Vec<IpAddr>) -> Self {
        Self {
            own,
            held: BTreeMap::new(),
        }
    }

    /// Lends the wanted addresses to their links anew and takes all others away.
    pub fn settle(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<Settled, netns::Error> {
        let mut settled = Settled::default();
        if wanted.is_empty() && self.held.is_empty() {
            return Ok(settled);
        }
        let mut socket = Socket::open()?;
        let (links, there) = (socket.links()?, socket.addresses()?);
        let before = self.held.clone();
        for (address, held) in &before {
            let link = link_of(*address, &self.own, &links, &there);
            let moved = link.is_none_or(|link| link.index != held.link);
            if !wanted.contains(address) || moved {
                remove(&mut socket, held.link, *address)?;
                self.held.remove(address);
            }
        }
        for address in wanted {
            let Some(link) = link_of(*address, &self.own, &links, &there) else {
                let why = format!(
                    "no link of it that is up has {} addresses",
                    address.family()
                );
                settled.failed.push((*address, why));
                continue;
            };
            let prefix = Prefix::host(*address);
            let is_there = there.contains(&(link.index, prefix));
            let lent = Change::lend_address(link.index, prefix, LENT_SECONDS);
            if let Err(error) = socket.apply(vec![lent]) {
                settled.failed.push((*address, error.to_string()));
                continue;
            }
            let new = Held {
                link: link.index,
                announced: 0,
            };
            let held = self.held.entry(*address).or_insert(new);
            if !is_there && before.contains_key(address) {
                settled
                    .restored
                    .push(format!("the address {prefix} on the link {}", link.name));
                held.announced = 0;
            }
            if let Some(mac) = link.mac.filter(|_| held.announced < ANNOUNCEMENTS) {
                match announce(link.index, mac, *address) {
                    Ok(()) => held.announced += 1,
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, %address, "the neighbours were not told");
                    }
                }
            }
        }
        Ok(settled)
    }
}

/// One that is gone already, with its link perhaps, is as good.
fn remove(socket: &mut Socket, link: u32, address: IpAddr) -> Result<(), netns::Error> {
    match socket.apply(vec![Change::delete_address(link, Prefix::host(address))]) {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// Where the address belongs: to the link whose network it is in, if there is one that is up, or else to that of the
/// node's own address of its family. Of two, the one with an address of the node comes first.
fn link_of<'a>(
    address: IpAddr,
    own: &[IpAddr],
    links: &'a [Link],
    there: &[(u32, Prefix)],
) -> Option<&'a Link> {
    let is_in = |prefix: &Prefix| {
        let network = IpNet::new(prefix.address, prefix.length);
        network.is_ok_and(|network| network.prefix_len() > 0 && network.contains(&address))
    };
    let is_own = |prefix: &Prefix| own.contains(&prefix.address);
    let fits = there.iter().filter(|(_, prefix)| {
        prefix.address != address && prefix.address.family() == address.family()
    });
    let rank = |prefix: &Prefix| match (is_in(prefix), is_own(prefix)) {
        (true, true) => Some(0),
        (true, false) => Some(1),
        (false, true) => Some(2),
        (false, false) => None,
    };
    let mut places: Vec<(u8, u32)> = fits
        .filter_map(|(link, prefix)| Some((rank(prefix)?, *link)))
        .collect();
    places.sort_unstable();
    let mut places = places.into_iter().map(|(_, link)| link);
    places.find_map(|index| links.iter().find(|link| link.index == index && link.up))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, up: bool) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up,
            master: None,
            kind: None,
            port: None,
            vxlan: None,
        }
    }

    #[test]
    fn where_an_address_belongs() {
        let prefix = |text: &str| {
            let network: IpNet = text.parse().unwrap();
            Prefix::new(network.addr(), network.prefix_len())
        };
        let there = [
            (1, prefix("127.0.0.1/8")),
            (2, prefix("192.0.2.1/24")),
            (3, prefix("198.51.100.1/24")),
            (4, prefix("192.0.2.77/25")),
            (2, prefix("2001:db8::1/64")),
            (2, prefix("203.0.113.5/32")),
        ];
        let own = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        let links = [link(1, true), link(2, true), link(3, true), link(4, true)];
        let mut down = links.clone();
        down[1].up = false;
        for (address, links, want) in [
            // In the network of the node's own address, though another link's is narrower.
            ("192.0.2.9", &links, Some(2)),
            ("192.0.2.9", &down, Some(4)),
            ("198.51.100.9", &links, Some(3)),
            // In none: routers lead it to the node's own link.
            ("203.0.113.9", &links, Some(2)),
            ("203.0.113.9", &down, None),
            // What is there of it already says nothing.
            ("203.0.113.5", &links, Some(2)),
            ("2001:db8::9", &links, Some(2)),
            ("2001:db8:1::9", &links, Some(2)),
        ] {
            let found = link_of(address.parse().unwrap(), &own, links, &there);
            assert_eq!(found.map(|link| link.index), want, "{address}");
        }
        assert!(link_of("192.0.2.9".parse().unwrap(), &own, &links, &[]).is_none());
    }
}
