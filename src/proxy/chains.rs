//! The chains that destinations lead to, and the numbers by which maps name them. Pure.
//!
//! Always true: as long as a chain is there it has one number, which no other chain has, and none has that
//! of packets that are dropped.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::elements::Door;
use crate::hex::hex;

/// The number of what is dropped; those of chains follow.
pub const DROPPED: u32 = 1;

/// A chain that deals connections to `places` places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dealer {
    pub door: Door,
    pub places: u32,
    pub affinity: Option<u32>,
}

impl Dealer {
    pub fn name(self) -> String {
        match self.affinity {
            None => format!("{}-{}", self.door.name(), self.places),
            Some(seconds) => format!("{}-{}-sticky-{seconds}", self.door.name(), self.places),
        }
    }
}

/// A chain that lets clients of these ranges through to a dealer, and drops all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gate {
    pub dealer: Dealer,
    pub sources: BTreeSet<IpNet>,
}

impl Gate {
    pub fn name(&self) -> String {
        let mut digest = Sha256::new();
        for range in &self.sources {
            digest.update(format!("{range} "));
        }
        let hash = hex(&digest.finalize()[..8]);
        format!("{}-from-{hash}", self.dealer.name())
    }
}

/// Chains never change; they go when the table is made anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    Dealer(Dealer),
    /// After its dealer.
    Gate(Gate),
}

impl Chain {
    pub fn name(&self) -> String {
        match self {
            Self::Dealer(dealer) => dealer.name(),
            Self::Gate(gate) => gate.name(),
        }
    }
}

/// Chains with their numbers, dealers before the gates that lead to them.
pub type Numbered = BTreeMap<Chain, u32>;

/// All chains that there are, used or not.
#[derive(Debug)]
pub struct Chains {
    numbered: Numbered,
    /// Numbers of chains that are no more.
    free: Vec<u32>,
    next: u32,
}

impl Default for Chains {
    fn default() -> Self {
        Self {
            numbered: Numbered::new(),
            free: Vec::new(),
            next: DROPPED + 1,
        }
    }
}

impl Chains {
    pub fn len(&self) -> usize {
        self.numbered.len()
    }

    pub fn all(&self) -> &Numbered {
        &self.numbered
    }

    /// `None` of one that was not added.
    pub fn number(&self, chain: &Chain) -> Option<u32> {
        self.numbered.get(chain).copied()
    }

    /// Those of them that are new.
    pub fn add(&mut self, chains: BTreeSet<Chain>) -> Numbered {
        let mut new = Numbered::new();
        for chain in chains {
            if self.numbered.contains_key(&chain) {
                continue;
            }
            let number = self.free.pop().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            });
            self.numbered.insert(chain.clone(), number);
            new.insert(chain, number);
        }
        new
    }

    /// Only these are left. The numbers of the others are given out again: the table must be made anew.
    pub fn retain(&mut self, used: &BTreeSet<Chain>) {
        let free = &mut self.free;
        self.numbered.retain(|chain, number| {
            let is_used = used.contains(chain);
            if !is_used {
                free.push(*number);
            }
            is_used
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_out_once() {
        let chain = |places| {
            Chain::Dealer(Dealer {
                door: Door::Addresses,
                places,
                affinity: None,
            })
        };
        let set =
            |places: &[u32]| -> BTreeSet<Chain> { places.iter().copied().map(chain).collect() };
        let mut chains = Chains::default();
        assert_eq!(
            chains.add(set(&[1, 2])),
            [(chain(1), 2), (chain(2), 3)].into()
        );
        assert_eq!(chains.add(set(&[2, 3])), [(chain(3), 4)].into());
        chains.retain(&set(&[1, 3]));
        assert_eq!(chains.number(&chain(2)), None);
        assert_eq!(
            chains.add(set(&[4, 5])),
            [(chain(4), 3), (chain(5), 5)].into()
        );
        assert_eq!(chains.number(&chain(1)), Some(2));
    }
}
