//! Blocks of addresses without their exceptions, as ranges that do not overlap. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// First and last address, of one family.
pub type Range = (IpAddr, IpAddr);

/// Addresses of one family as ranges: sorted, apart from each other by more than nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// The block without the exceptions that lie in it.
    pub fn of(block: IpNet, except: &[IpNet]) -> Self {
        let mut left = vec![bounds(block)];
        let same_family = |hole: &&IpNet| is_v6(hole.addr()) == is_v6(block.addr());
        for hole in except.iter().filter(same_family) {
            let (from, to) = bounds(*hole);
            left = left
                .into_iter()
                .flat_map(|(first, last)| {
                    let before = from.checked_sub(1).map(|end| (first, last.min(end)));
                    let after = to.checked_add(1).map(|start| (first.max(start), last));
                    [before, after]
                })
                .flatten()
                .filter(|(first, last)| first <= last)
                .collect();
        }
        Self(left)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, other: &Self) {
        self.0.extend(&other.0);
        self.0.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(self.0.len());
        for &(first, last) in &self.0 {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        self.0 = merged;
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = number(address);
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.0[after - 1].1
    }

    /// As addresses of that family.
    pub fn iter(&self, ipv6: bool) -> impl Iterator<Item = Range> {
        let as_address = move |number: u128| match ipv6 {
            true => IpAddr::V6(Ipv6Addr::from(number)),
            // They came from addresses of 32 bits.
            false => IpAddr::V4(Ipv4Addr::from(number as u32)),
        };
        let ranges = self.0.iter();
        ranges.map(move |(first, last)| (as_address(*first), as_address(*last)))
    }
}

fn bounds(block: IpNet) -> (u128, u128) {
    (number(block.network()), number(block.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

pub fn is_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn text(ranges: &Ranges) -> String {
        let one = |(first, last): Range| format!("{first}-{last}");
        ranges.iter(false).map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn blocks_without_their_exceptions() {
        for (of, except, want) in [
            ("10.0.0.0/24", &[][..], "10.0.0.0-10.0.0.255"),
            ("10.0.0.0/24", &["10.0.0.0/24"], ""),
            ("10.0.0.0/24", &["10.0.0.0/25"], "10.0.0.128-10.0.0.255"),
            ("10.0.0.0/24", &["10.0.0.128/25"], "10.0.0.0-10.0.0.127"),
            ("10.0.0.0/24", &["10.0.1.0/24"], "10.0.0.0-10.0.0.255"),
            ("10.0.0.0/24", &["::/0"], "10.0.0.0-10.0.0.255"),
            (
                "0.0.0.0/0",
                &["10.0.0.0/8", "10.1.0.0/16", "255.255.255.255/32"],
                "0.0.0.0-9.255.255.255 11.0.0.0-255.255.255.254",
            ),
        ] {
            let except: Vec<IpNet> = except.iter().map(|text| block(text)).collect();
            assert_eq!(text(&Ranges::of(block(of), &except)), want, "{of}");
        }
    }

    #[test]
    fn what_touches_is_one() {
        let mut ranges = Ranges::default();
        for of in ["10.0.1.0/24", "10.0.0.0/24", "10.0.3.0/24", "10.0.0.0/32"] {
            ranges.add(&Ranges::of(block(of), &[]));
        }
        assert_eq!(text(&ranges), "10.0.0.0-10.0.1.255 10.0.3.0-10.0.3.255");
        for (address, inside) in [
            ("10.0.0.0", true),
            ("10.0.1.255", true),
            ("10.0.2.0", false),
            ("9.255.255.255", false),
            ("10.0.3.1", true),
            ("10.0.4.0", false),
        ] {
            assert_eq!(
                ranges.contains(address.parse().unwrap()),
                inside,
                "{address}"
            );
        }
        let whole = Ranges::of(block("::/0"), &[]);
        assert!(whole.contains("ffff::1".parse().unwrap()));
    }
}
