//! The pool that load balancers get addresses of their own from: ranges that an administrator names. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    family::{Family, OfFamily},
    may_be_proxied_to,
};

/// A pool has so many ranges; each may be as large as it likes.
pub const MOST_RANGES: usize = 32;

/// Addresses from the first to the last, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no [`Range`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("must be CIDR or FIRST-LAST, as 192.0.2.64/27 or 192.0.2.64-192.0.2.95")]
    Syntax,
    #[error("must begin and end in the same family")]
    Families,
    #[error("ends before it begins")]
    Order,
    #[error("has {0}, which is no address that others can reach")]
    Unreachable(IpAddr),
}

impl Range {
    fn new(first: IpAddr, last: IpAddr) -> Result<Self, Invalid> {
        if first.family() != last.family() {
            return Err(Invalid::Families);
        }
        if first > last {
            return Err(Invalid::Order);
        }
        match [first, last]
            .into_iter()
            .find(|address| !may_be_proxied_to(*address))
        {
            Some(address) => Err(Invalid::Unreachable(address)),
            None => Ok(Self { first, last }),
        }
    }

    pub fn contains(&self, address: &IpAddr) -> bool {
        self.first <= *address && *address <= self.last && self.family() == address.family()
    }

    fn meets(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// In rising order, one after the other as they are asked for.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, last, family) = (number(self.first), number(self.last), self.family());
        (first..=last).map(move |number| match family {
            // It is the number of an IPv4 address.
            Family::V4 => Ipv4Addr::from(number as u32).into(),
            Family::V6 => Ipv6Addr::from(number).into(),
        })
    }
}

impl OfFamily for Range {
    fn family(&self) -> Family {
        self.first.family()
    }
}

impl From<IpNet> for Range {
    fn from(network: IpNet) -> Self {
        Self {
            first: network.network(),
            last: network.broadcast(),
        }
    }
}

impl FromStr for Range {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let address = |text: &str| text.trim().parse().map_err(|_| Invalid::Syntax);
        match text.split_once('-') {
            Some((first, last)) => Self::new(address(first)?, address(last)?),
            None => {
                let network: IpNet = text.trim().parse().map_err(|_| Invalid::Syntax)?;
                Self::new(network.network(), network.broadcast())
            }
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.first, self.last)
    }
}

/// Why ranges are no [`Pool`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    #[error("a pool has at most {MOST_RANGES} ranges, and these are {0}")]
    TooMany(usize),
    #[error("{0} and {1} overlap")]
    Ranges(Range, Range),
    #[error("{range} overlaps {other}, from which {of} have addresses")]
    Other {
        range: Range,
        other: IpNet,
        of: &'static str,
    },
}

/// Ranges without an address in common. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool(Arc<[Range]>);

impl Pool {
    /// `others`: the ranges that the cluster has for something else, and for whom.
    pub fn new(ranges: Vec<Range>, others: &[(IpNet, &'static str)]) -> Result<Self, Clash> {
        if ranges.len() > MOST_RANGES {
            return Err(Clash::TooMany(ranges.len()));
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..at].iter().find(|other| range.meets(other)) {
                return Err(Clash::Ranges(*other, *range));
            }
            let is_met = |other: &&(IpNet, _)| range.meets(&other.0.into());
            if let Some((other, of)) = others.iter().find(is_met) {
                let (range, other) = (*range, *other);
                return Err(Clash::Other { range, other, of });
            }
        }
        Ok(Self(ranges.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, address: &IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    pub fn has(&self, family: Family) -> bool {
        self.0.iter().any(|range| range.family() == family)
    }

    /// What is given to who asks for none in particular, in this order. Those that look like a network's own
    /// or its broadcast address are not: some clients would not send to them.
    pub fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let ranges = self.0.iter().filter(move |range| range.family() == family);
        ranges
            .flat_map(Range::addresses)
            .filter(|address| match address {
                IpAddr::V4(address) => !matches!(address.octets()[3], 0 | 255),
                IpAddr::V6(address) => address.octets()[8..] != [0; 8],
            })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(out, "{comma}{range}")?;
        }
        Ok(())
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

    #[test]
    fn ranges_are_written_in_two_ways() {
        let bad = |text: &str| Invalid::Unreachable(text.parse().unwrap());
        for (text, want) in [
            ("192.0.2.64/30", Ok("192.0.2.64-192.0.2.67")),
            ("192.0.2.65/30", Ok("192.0.2.64-192.0.2.67")),
            ("192.0.2.9-192.0.2.9", Ok("192.0.2.9-192.0.2.9")),
            ("192.0.2.9 - 192.0.2.12", Ok("192.0.2.9-192.0.2.12")),
            ("2001:db8::/126", Ok("2001:db8::-2001:db8::3")),
            ("2001:db8::9-2001:db8::f", Ok("2001:db8::9-2001:db8::f")),
            ("192.0.2.9", Err(Invalid::Syntax)),
            ("192.0.2.9-", Err(Invalid::Syntax)),
            ("", Err(Invalid::Syntax)),
            ("192.0.2.9/33", Err(Invalid::Syntax)),
            ("192.0.2.9-2001:db8::1", Err(Invalid::Families)),
            ("192.0.2.9-192.0.2.8", Err(Invalid::Order)),
            ("127.0.0.1-127.0.0.9", Err(bad("127.0.0.1"))),
            ("224.0.0.0/30", Err(bad("224.0.0.0"))),
            ("fe80::/120", Err(bad("fe80::"))),
        ] {
            let range = text.parse::<Range>().map(|range| range.to_string());
            assert_eq!(range, want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn what_a_pool_may_have() {
        let others = [
            ("10.42.0.0/16".parse().unwrap(), "pods"),
            ("fd96::/112".parse().unwrap(), "Services"),
        ];
        for (ranges, want) in [
            (&["192.0.2.0/28", "192.0.2.16/28", "2001:db8::/64"][..], ""),
            (&[], ""),
            (&["192.0.2.0/28", "192.0.2.15-192.0.2.20"], "overlap"),
            (&["10.41.255.0-10.42.0.0"], "from which pods have addresses"),
            (&["fd96::9-fd96::a"], "from which Services have addresses"),
            (&["192.0.2.1-192.0.2.1"; 33], "at most 32 ranges"),
        ] {
            let list = ranges.iter().map(|text| text.parse().unwrap()).collect();
            match (Pool::new(list, &others), want) {
                (Ok(_), "") => {}
                (Err(clash), want) if !want.is_empty() => {
                    assert!(clash.to_string().contains(want), "{clash}");
                }
                (other, _) => panic!("{ranges:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn addresses_come_in_order() {
        let ranges = [
            "192.0.2.254-192.0.3.2",
            "2001:db8::/64",
            "10.0.0.9-10.0.0.9",
        ];
        let ranges = ranges.map(|text| text.parse().unwrap());
        let pool = Pool::new(ranges.to_vec(), &[]).unwrap();
        let of = |family, count| -> Vec<String> {
            let addresses = pool.addresses(family).take(count);
            addresses.map(|address| address.to_string()).collect()
        };
        assert_eq!(
            of(Family::V4, 9),
            ["192.0.2.254", "192.0.3.1", "192.0.3.2", "10.0.0.9"]
        );
        assert_eq!(of(Family::V6, 2), ["2001:db8::1", "2001:db8::2"]);
        assert!(pool.contains(&"192.0.2.255".parse().unwrap()));
        assert!(!pool.contains(&"192.0.3.3".parse().unwrap()));
        assert!(pool.has(Family::V6) && !Pool::default().has(Family::V4));
    }
}
