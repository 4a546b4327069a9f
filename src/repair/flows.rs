//! Tracked flows that the rules of today would lead elsewhere, forgotten.
//!
//! NAT is decided when a flow begins. Whoever sends UDP from one port never begins anew, so after a
//! change of rules it would be led by the old ones for as long as it goes on sending. Whoever writes
//! such rules calls this after each change. TCP is left alone: ending backends drain. Blocking.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netns::conntrack::{self, Tuple};

use crate::addresses::family::{Family, OfFamily};

const UDP: u8 = 17;

/// Where senders write to: `None` for every address of this machine.
pub type Front = (Option<IpAddr>, u16);
/// Where UDP for a front shall arrive; nowhere if nobody serves it.
pub type Served = BTreeMap<Front, BTreeSet<(IpAddr, u16)>>;

/// Forgets the flows to these fronts that arrive elsewhere, in the families of whom they name: their own
/// addresses or those that serve them. A front that names nobody is one in both.
pub fn forget_stale(served: &Served) -> Result<(), netns::Error> {
    for family in Family::ALL {
        let asked = served
            .iter()
            .filter(|(front, backends)| is_about(family, front.0, backends))
            .map(|(front, backends)| (*front, backends.clone()))
            .collect();
        forget_stale_of(family, &asked)?;
    }
    Ok(())
}

fn is_about(family: Family, front: Option<IpAddr>, backends: &BTreeSet<(IpAddr, u16)>) -> bool {
    match front {
        Some(address) => address.family() == family,
        None => backends.is_empty() || backends.iter().any(|(to, _)| to.family() == family),
    }
}

/// The same in one family: fronts without an address are this family's alone.
pub fn forget_stale_of(family: Family, served: &Served) -> Result<(), netns::Error> {
    if served.is_empty() {
        return Ok(());
    }
    let local = match served.keys().any(|(address, _)| address.is_none()) {
        true => local_addresses()?,
        false => HashSet::new(),
    };
    forget(family, |original, reply| {
        is_stale(original, reply, served, &local)
    })
}

/// Forgets the flows of these pods to what is outside that keep the pod's own address as the sender's.
pub fn forget_unmasqueraded(pods: &[IpNet], cluster: &[IpNet]) -> Result<(), netns::Error> {
    let families: BTreeSet<Family> = pods.iter().map(OfFamily::family).collect();
    for family in families {
        forget(family, |original, reply| {
            let inside = |address: &IpAddr, ranges: &[IpNet]| {
                ranges.iter().any(|range| range.contains(address))
            };
            inside(&original.source.0, pods)
                && !inside(&reply.source.0, cluster)
                && reply.destination == original.source
        })?;
    }
    Ok(())
}

fn is_stale(original: &Tuple, reply: &Tuple, served: &Served, local: &HashSet<IpAddr>) -> bool {
    let (address, port) = original.destination;
    let anywhere = || {
        local
            .contains(&address)
            .then(|| served.get(&(None, port)))?
    };
    let backends = served.get(&(Some(address), port)).or_else(anywhere);
    backends.is_some_and(|backends| !backends.contains(&reply.source))
}

fn forget(family: Family, stale: impl Fn(&Tuple, &Tuple) -> bool) -> Result<(), netns::Error> {
    let mut entries = conntrack::list(family == Family::V6)?;
    entries.retain(|entry| entry.original.protocol == UDP && stale(&entry.original, &entry.reply));
    conntrack::delete(&entries)
}

fn local_addresses() -> Result<HashSet<IpAddr>, netns::Error> {
    let addresses = netns::route::Socket::open()?.addresses()?;
    Ok(addresses
        .into_iter()
        .map(|(_, prefix)| prefix.address)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_families_a_front_is_in() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), "fd00::1".parse().unwrap());
        for (front, backends, want) in [
            (Some(v4), &[][..], &[Family::V4][..]),
            (Some(v6), &[v6], &[Family::V6]),
            (None, &[v4], &[Family::V4]),
            (None, &[v6], &[Family::V6]),
            (None, &[v4, v6], &Family::ALL),
            (None, &[], &Family::ALL),
        ] {
            let backends = backends.iter().map(|address| (*address, 53)).collect();
            let families = Family::ALL.into_iter();
            let found: Vec<_> = families
                .filter(|family| is_about(*family, front, &backends))
                .collect();
            assert_eq!(found, want, "{front:?} {backends:?}");
        }
    }

    #[test]
    fn which_flows_are_stale() {
        let tuple = |source: ([u8; 4], u16), destination: ([u8; 4], u16)| Tuple {
            protocol: UDP,
            source: (source.0.into(), source.1),
            destination: (destination.0.into(), destination.1),
        };
        let client = ([192, 0, 2, 9], 5000);
        let served: Served = [
            ((None, 53), vec![([10, 1, 0, 2], 5353)]),
            ((Some([10, 0, 0, 1]), 54), vec![([10, 1, 0, 3], 54)]),
            ((Some([10, 0, 0, 1]), 55), vec![]),
        ]
        .into_iter()
        .map(|((address, port), backends)| {
            let backends = backends.into_iter().map(|(a, p)| (IpAddr::from(a), p));
            ((address.map(IpAddr::from), port), backends.collect())
        })
        .collect();
        let local = HashSet::from([IpAddr::from([10, 0, 0, 1])]);
        for (to, arrives, want) in [
            (([10, 0, 0, 1], 53), ([10, 1, 0, 2], 5353), false), // as wanted
            (([10, 0, 0, 1], 53), ([10, 1, 0, 9], 5353), true),  // the pod before
            (([10, 0, 0, 1], 53), ([10, 0, 0, 1], 53), true),    // begun without a rule
            (([8, 8, 8, 8], 53), ([8, 8, 8, 8], 53), false),     // not this machine
            (([10, 0, 0, 1], 54), ([10, 1, 0, 3], 54), false),
            (([10, 0, 0, 1], 55), ([10, 1, 0, 3], 55), true), // nobody serves it any more
            (([10, 0, 0, 1], 56), ([10, 1, 0, 3], 56), false), // not asked about
        ] {
            let (original, reply) = (tuple(client, to), tuple(arrives, client));
            assert_eq!(is_stale(&original, &reply, &served, &local), want, "{to:?}");
        }
    }
}
