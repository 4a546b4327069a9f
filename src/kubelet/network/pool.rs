//! Which addresses of the pod range are free, and which one is next.
//!
//! Pure: knows no disk and no kernel. Addresses are given out in turn, so that one given back
//! rests as long as others are free: stale connection tracking and DNS answers die meanwhile.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;

/// Owners by address, over one IPv4 range.
#[derive(Debug)]
pub struct Pool {
    first: u32,
    last: u32,
    /// Where the search for the next free address begins.
    next: u32,
    by_address: HashMap<u32, String>,
    by_owner: HashMap<String, u32>,
}

impl Pool {
    /// Network, gateway (the first address) and broadcast are never given out.
    pub fn new(range: Ipv4Net) -> Self {
        let first = u32::from(range.network()) + 2;
        let last = u32::from(range.broadcast()).saturating_sub(1);
        Self {
            first,
            last,
            next: first,
            by_address: HashMap::new(),
            by_owner: HashMap::new(),
        }
    }

    /// Puts a recorded owner back; false if the address is not of this range or has an owner.
    pub fn restore(&mut self, owner: &str, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        let fits = (self.first..=self.last).contains(&number)
            && !self.by_address.contains_key(&number)
            && !self.by_owner.contains_key(owner);
        if fits {
            self.insert(owner, number);
        }
        fits
    }

    /// Makes the search go on after this address.
    pub fn resume_after(&mut self, address: Ipv4Addr) {
        let number = u32::from(address);
        if (self.first..self.last).contains(&number) {
            self.next = number + 1;
        }
    }

    /// The owner's address, a new one if it has none; `None` when all are taken.
    pub fn take(&mut self, owner: &str) -> Option<Ipv4Addr> {
        if let Some(number) = self.by_owner.get(owner) {
            return Some(Ipv4Addr::from(*number));
        }
        let number = (self.next..=self.last)
            .chain(self.first..self.next)
            .find(|number| !self.by_address.contains_key(number))?;
        self.next = match number {
            last if last == self.last => self.first,
            number => number + 1,
        };
        self.insert(owner, number);
        Some(Ipv4Addr::from(number))
    }

    pub fn give_back(&mut self, owner: &str) -> Option<Ipv4Addr> {
        let number = self.by_owner.remove(owner)?;
        self.by_address.remove(&number);
        Some(Ipv4Addr::from(number))
    }

    pub fn of(&self, owner: &str) -> Option<IpAddr> {
        let number = self.by_owner.get(owner)?;
        Some(Ipv4Addr::from(*number).into())
    }

    pub fn owners(&self) -> Vec<String> {
        self.by_owner.keys().cloned().collect()
    }

    fn insert(&mut self, owner: &str, number: u32) {
        self.by_address.insert(number, owner.to_owned());
        self.by_owner.insert(owner.to_owned(), number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_round_and_come_back_last() {
        let range = "10.1.0.0/29".parse().expect("a literal range");
        let mut pool = Pool::new(range);
        let take = |pool: &mut Pool, owner: &str| pool.take(owner).map(|a| a.octets()[3]);
        assert_eq!(take(&mut pool, "a"), Some(2)); // .0 network, .1 gateway
        assert_eq!(take(&mut pool, "a"), Some(2)); // an owner keeps its address
        assert_eq!(take(&mut pool, "b"), Some(3));
        pool.give_back("a");
        assert_eq!(take(&mut pool, "c"), Some(4)); // .2 rests
        assert_eq!(take(&mut pool, "d"), Some(5));
        assert_eq!(take(&mut pool, "e"), Some(6));
        assert_eq!(take(&mut pool, "f"), Some(2)); // .7 is the broadcast
        assert_eq!(take(&mut pool, "g"), None);
    }

    #[test]
    fn records_of_another_range_are_not_taken_over() {
        let mut pool = Pool::new("10.1.0.0/24".parse().expect("a literal range"));
        assert!(pool.restore("a", [10, 1, 0, 9].into()));
        assert!(!pool.restore("b", [10, 1, 0, 9].into())); // taken
        assert!(!pool.restore("b", [10, 2, 0, 9].into())); // outside
        pool.resume_after([10, 1, 0, 9].into());
        assert_eq!(pool.take("b"), Some([10, 1, 0, 10].into()));
    }
}
