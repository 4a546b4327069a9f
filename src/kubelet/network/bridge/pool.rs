//! Which addresses of the pod ranges are free, and which ones are next.
//!
//! Pure: knows no disk and no kernel. Addresses are given out in turn, so that one given back
//! rests as long as others are free: stale connection tracking and DNS answers die meanwhile. What is kept
//! grows with the pods, not with the ranges.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::addresses::family::{Family, OfFamily, PerFamily};

/// A pool per family: a pod has an address of each, or none.
#[derive(Debug)]
pub struct Pools(Vec<Pool>);

impl Pools {
    pub fn new(ranges: &PerFamily<IpNet>) -> Self {
        Self(ranges.iter().map(Pool::new).collect())
    }

    /// Puts a recorded owner back; false if the address is not of these ranges or has an owner.
    pub fn restore(&mut self, owner: &str, address: IpAddr) -> bool {
        self.of_family(address)
            .is_some_and(|pool| pool.restore(owner, address))
    }

    /// Makes the search in the address' family go on after it.
    pub fn resume_after(&mut self, address: IpAddr) {
        if let Some(pool) = self.of_family(address) {
            pool.resume_after(address);
        }
    }

    /// The owner's addresses, new ones as far as it has none; `None`, and nothing taken, when all of a family
    /// are.
    pub fn take(&mut self, owner: &str) -> Option<PerFamily<IpAddr>> {
        let had = self.of(owner);
        let taken: Vec<_> = self.0.iter_mut().map(|pool| pool.take(owner)).collect();
        let taken: Option<Vec<IpAddr>> = taken.into_iter().collect();
        if taken.is_none() {
            for pool in &mut self.0 {
                let kept = had
                    .as_ref()
                    .is_some_and(|had| had.of(pool.family).is_some());
                if !kept {
                    pool.give_back(owner);
                }
            }
        }
        PerFamily::of_list(taken?).ok()
    }

    pub fn give_back(&mut self, owner: &str) -> Vec<IpAddr> {
        let pools = self.0.iter_mut();
        pools.filter_map(|pool| pool.give_back(owner)).collect()
    }

    /// Of one that had its addresses before a family was added, those it has.
    pub fn of(&self, owner: &str) -> Option<PerFamily<IpAddr>> {
        PerFamily::of_list(self.0.iter().filter_map(|pool| pool.of(owner))).ok()
    }

    /// Whether the owner has an address of each family.
    pub fn is_complete(&self, owner: &str) -> bool {
        self.0.iter().all(|pool| pool.of(owner).is_some())
    }

    pub fn owners(&self) -> Vec<String> {
        let owners = self.0.iter().flat_map(|pool| pool.by_owner.keys());
        let owners: BTreeSet<&String> = owners.collect();
        owners.into_iter().cloned().collect()
    }

    fn of_family(&mut self, address: IpAddr) -> Option<&mut Pool> {
        let family = address.family();
        self.0.iter_mut().find(|pool| pool.family == family)
    }
}

/// Owners by address, over one range.
#[derive(Debug)]
struct Pool {
    family: Family,
    first: u128,
    last: u128,
    /// Where the search for the next free address begins.
    next: u128,
    by_address: HashMap<u128, String>,
    by_owner: HashMap<String, u128>,
}

impl Pool {
    /// The network's own address, the gateway (the first after it) and the last one, IPv4's broadcast, are never
    /// given out.
    fn new(range: &IpNet) -> Self {
        let first = number(range.network()) + 2;
        let last = number(range.broadcast()).saturating_sub(1);
        Self {
            family: range.family(),
            first,
            last,
            next: first,
            by_address: HashMap::new(),
            by_owner: HashMap::new(),
        }
    }

    fn restore(&mut self, owner: &str, address: IpAddr) -> bool {
        let number = number(address);
        let fits = (self.first..=self.last).contains(&number)
            && !self.by_address.contains_key(&number)
            && !self.by_owner.contains_key(owner);
        if fits {
            self.insert(owner, number);
        }
        fits
    }

    fn resume_after(&mut self, address: IpAddr) {
        let number = number(address);
        if (self.first..self.last).contains(&number) {
            self.next = number + 1;
        }
    }

    fn take(&mut self, owner: &str) -> Option<IpAddr> {
        if let Some(number) = self.by_owner.get(owner) {
            return Some(self.address(*number));
        }
        let number = (self.next..=self.last)
            .chain(self.first..self.next)
            .find(|number| !self.by_address.contains_key(number))?;
        self.next = match number {
            last if last == self.last => self.first,
            number => number + 1,
        };
        self.insert(owner, number);
        Some(self.address(number))
    }

    fn give_back(&mut self, owner: &str) -> Option<IpAddr> {
        let number = self.by_owner.remove(owner)?;
        self.by_address.remove(&number);
        Some(self.address(number))
    }

    fn of(&self, owner: &str) -> Option<IpAddr> {
        let number = self.by_owner.get(owner)?;
        Some(self.address(*number))
    }

    fn insert(&mut self, owner: &str, number: u128) {
        self.by_address.insert(number, owner.to_owned());
        self.by_owner.insert(owner.to_owned(), number);
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.family {
            // An IPv4 range has no greater ones.
            Family::V4 => Ipv4Addr::from(number as u32).into(),
            Family::V6 => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(ranges: &str) -> Pools {
        Pools::new(&ranges.parse().expect("literal ranges"))
    }

    fn take(pools: &mut Pools, owner: &str) -> Option<String> {
        pools.take(owner).map(|addresses| addresses.to_string())
    }

    #[test]
    fn addresses_go_round_and_come_back_last() {
        for (range, base) in [("10.1.0.0/29", "10.1.0."), ("fd42::/125", "fd42::")] {
            let mut pool = pools(range);
            let mut check = |owner: &str, want: Option<u8>| {
                let want = want.map(|last| format!("{base}{last}"));
                assert_eq!(take(&mut pool, owner), want, "{owner} of {range}");
                if owner == "b" {
                    pool.give_back("a");
                }
            };
            check("a", Some(2)); // .0 network, .1 gateway
            check("a", Some(2)); // an owner keeps its address
            check("b", Some(3));
            check("c", Some(4)); // .2 rests
            check("d", Some(5));
            check("e", Some(6));
            check("f", Some(2)); // .7 is the broadcast
            check("g", None);
        }
    }

    #[test]
    fn a_large_range_costs_nothing() {
        let mut pool = pools("fd42::/64");
        for pod in 0..300 {
            let owner = format!("pod {pod}");
            let want = format!("fd42::{:x}", pod + 2);
            assert_eq!(take(&mut pool, &owner), Some(want));
            pool.give_back(&owner);
        }
        pool.resume_after("fd42::ffff:ffff:ffff:fffd".parse().unwrap());
        assert_eq!(take(&mut pool, "a").unwrap(), "fd42::ffff:ffff:ffff:fffe");
        assert_eq!(take(&mut pool, "b").unwrap(), "fd42::2");
    }

    #[test]
    fn records_of_another_range_are_not_taken_over() {
        let mut pool = pools("10.1.0.0/24,fd42::/64");
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(pool.restore("a", address("10.1.0.9")));
        assert!(!pool.restore("b", address("10.1.0.9"))); // taken
        assert!(!pool.restore("b", address("10.2.0.9"))); // outside
        assert!(!pool.restore("b", address("fd43::9")));
        assert!(!pools("10.1.0.0/24").restore("b", address("fd42::9")));
        pool.resume_after(address("10.1.0.9"));
        pool.resume_after(address("fd42::5"));
        assert_eq!(take(&mut pool, "b").unwrap(), "10.1.0.10,fd42::6");
        // One from before there was a second family has what it has, until it takes more.
        assert_eq!(pool.of("a").unwrap().to_string(), "10.1.0.9");
        assert!(pool.is_complete("b") && !pool.is_complete("a"));
        assert_eq!(take(&mut pool, "a").unwrap(), "10.1.0.9,fd42::7");
        assert_eq!(pool.owners(), ["a", "b"]);
    }

    #[test]
    fn none_of_a_family_is_none_at_all() {
        let mut pool = pools("fd42::/64,10.1.0.0/30");
        assert_eq!(take(&mut pool, "a").unwrap(), "fd42::2,10.1.0.2");
        assert_eq!(take(&mut pool, "b"), None);
        assert_eq!(pool.of("b"), None);
        assert_eq!(pool.owners(), ["a"]);
        assert_eq!(pool.give_back("a").len(), 2);
        assert_eq!(take(&mut pool, "c").unwrap(), "fd42::4,10.1.0.2");
    }
}
