//! How large the packets of pods may be: as large as every link on their ways takes, so that none is cut up
//! or lost.
//!
//! What packets leave the machine by says the host's default route, and how other nodes' pods are reached says
//! `peers`. The plan is pure.
//! Always true: where pods have IPv6 addresses they may send what IPv6 asks of every link.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use netns::route::Socket;
use tokio::sync::Notify;

use crate::addresses::family::Family;

/// The usual size, and the largest that pods' packets have.
pub const MOST: u32 = 1500;
/// The least that IPv6 asks of a link (RFC 8200, 5).
pub const LEAST_IPV6: u32 = 1280;
/// The same of IPv4, for what must be taken in one piece (RFC 791, 3.1).
pub const LEAST_IPV4: u32 = 576;

/// What the packets of pods pass on their way, and what that takes in one of them, by what users know it as.
pub type Ways = BTreeMap<String, u32>;

/// How large packets may be, and what is wrong with that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub mtu: u32,
    pub complaint: Option<String>,
}

/// For pods with addresses of these families.
pub fn plan<'a>(ways: impl Iterator<Item = (&'a String, &'a u32)>, has_ipv6: bool) -> Plan {
    let narrowest = ways.min_by_key(|(_, mtu)| **mtu);
    let least = match has_ipv6 {
        true => LEAST_IPV6,
        false => LEAST_IPV4,
    };
    let complaint = narrowest.filter(|(_, mtu)| has_ipv6 && **mtu < least);
    Plan {
        mtu: narrowest.map_or(MOST, |(_, mtu)| (*mtu).clamp(least, MOST)),
        complaint: complaint.map(|(way, mtu)| {
            format!(
                "MTU too small for IPv6: {way} takes packets of {mtu} bytes, and IPv6 needs {LEAST_IPV6}; larger \
                 ones are cut up or lost"
            )
        }),
    }
}

/// What is known of the ways to other nodes, told by `peers` to the pods' links; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ToPeers(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    ways: Mutex<Option<Ways>>,
    changed: Notify,
}

impl ToPeers {
    /// From now on these, until the next call.
    pub fn set(&self, ways: Ways) {
        let mut known = self.0.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() != Some(&ways) {
            *known = Some(ways);
            self.0.changed.notify_one();
        }
    }

    /// `None` as long as nobody has looked.
    pub fn get(&self) -> Option<Ways> {
        let known = self.0.ways.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

/// The links that packets for the rest of the world leave by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// By index: name and MTU.
    links: BTreeMap<u32, (String, u32)>,
}

impl Uplinks {
    pub fn look(
        socket: &mut Socket,
        families: impl Iterator<Item = Family>,
    ) -> Result<Self, netns::Error> {
        let mut leave_by = BTreeSet::new();
        for family in families {
            // Nothing is sent there: these are addresses that only a default route leads to.
            let anywhere: IpAddr = match family {
                Family::V4 => Ipv4Addr::new(192, 88, 99, 1).into(),
                Family::V6 => Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1).into(),
            };
            let route = socket.route_to(anywhere)?;
            leave_by.extend(route.and_then(|route| route.link));
        }
        if leave_by.is_empty() {
            return Ok(Self::default());
        }
        let links = socket.links()?.into_iter();
        let used = links.filter(|link| leave_by.contains(&link.index));
        Ok(Self {
            links: used
                .map(|link| (link.index, (link.name, link.mtu)))
                .collect(),
        })
    }

    pub fn ways(&self) -> Ways {
        let named = |(name, mtu): &(String, u32)| (format!("the link {name}"), *mtu);
        self.links.values().map(named).collect()
    }

    pub fn has(&self, link: u32) -> bool {
        self.links.contains_key(&link)
    }

    /// Whether the link is one of these, with another MTU.
    pub fn differs(&self, link: u32, mtu: u32) -> bool {
        let known = self.links.get(&link);
        known.is_some_and(|(_, known)| *known != mtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_way_counts() {
        for (ways, has_ipv6, mtu, complains) in [
            (&[][..], false, 1500, false),
            (&[("eth0", 1500)], true, 1500, false),
            (&[("eth0", 9000)], true, 1500, false), // no more than today
            (&[("eth0", 1400)], false, 1400, false),
            (&[("eth0", 1500), ("tunnel", 1450)], false, 1450, false),
            (&[("eth0", 1400), ("tunnel", 1330)], true, 1330, false),
            (&[("eth0", 1280)], true, 1280, false),
            // IPv6 cannot do with less.
            (&[("eth0", 1500), ("tunnel", 1210)], true, 1280, true),
            (&[("eth0", 1000)], false, 1000, false),
            (&[("eth0", 200)], false, 576, false),
        ] {
            let ways: Ways = ways
                .iter()
                .map(|(name, mtu)| ((*name).to_owned(), *mtu))
                .collect();
            let found = plan(ways.iter(), has_ipv6);
            assert_eq!(
                (found.mtu, found.complaint.is_some()),
                (mtu, complains),
                "{ways:?}"
            );
            if let Some(complaint) = found.complaint {
                let start = "MTU too small for IPv6: tunnel takes packets of 1210 bytes";
                assert!(complaint.starts_with(start), "{complaint}");
            }
        }
    }
}
