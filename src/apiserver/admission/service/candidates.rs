//! Which addresses of a range are tried, and in which order. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Of a large range only so many addresses are used.
const MOST: u128 = 1 << 20;

/// A range in two parts: the lower one is left to those who ask for an address while the upper one lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bands {
    network: IpAddr,
    /// How many addresses are in the lower part, which begins at the first.
    lower: u128,
    /// The last address, counted from the network's own.
    last: u128,
}

impl Bands {
    pub fn of(range: &IpNet) -> Self {
        let bits = u32::from(range.max_prefix_len() - range.prefix_len());
        let size = 1u128.checked_shl(bits).unwrap_or(MOST).min(MOST);
        // Neither the network's own address nor IPv4's broadcast address.
        let last = size.saturating_sub(if range.max_prefix_len() == 32 { 2 } else { 1 });
        let lower = if size <= 16 {
            0
        } else {
            (size / 16).clamp(16, 256)
        };
        Self {
            network: range.network(),
            lower,
            last,
        }
    }

    /// Some address of the upper part.
    pub fn some(&self, seed: u64) -> Option<IpAddr> {
        self.upper(seed).next()
    }

    /// Every address once: the upper part from a random place on, then the lower one likewise.
    pub fn all(&self, seed: u64) -> impl Iterator<Item = IpAddr> {
        self.upper(seed).chain(self.part(1, self.lower, seed))
    }

    fn upper(&self, seed: u64) -> impl Iterator<Item = IpAddr> + use<> {
        self.part(self.lower + 1, self.last, seed)
    }

    fn part(&self, first: u128, last: u128, seed: u64) -> impl Iterator<Item = IpAddr> + use<> {
        let (network, count) = (self.network, (last + 1).saturating_sub(first));
        (0..count).map(move |step| plus(network, first + (u128::from(seed) + step) % count))
    }
}

fn plus(network: IpAddr, offset: u128) -> IpAddr {
    match network {
        IpAddr::V4(ip) => {
            Ipv4Addr::from_bits(ip.to_bits() + u32::try_from(offset).unwrap_or_default()).into()
        }
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + offset).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::addresses::ranges::offers;

    #[test]
    fn upper_part_first_and_every_address_once() {
        for (range, upper, lower) in [
            ("10.0.0.0/24", 238, 16),
            ("10.0.0.0/16", 65278, 256),
            ("10.0.0.0/27", 14, 16),
            ("10.0.0.0/28", 14, 0),
            ("10.0.0.0/29", 6, 0),
            ("10.0.0.0/30", 2, 0),
            ("10.0.0.0/31", 0, 0),
            ("10.0.0.0/32", 0, 0),
            ("fd00::/120", 239, 16),
            ("fd00::/127", 1, 0),
            ("fd00::/128", 0, 0),
            ("fd00::/64", 1_048_319, 256),
        ] {
            let net: IpNet = range.parse().unwrap();
            let bands = Bands::of(&net);
            let all: Vec<IpAddr> = bands.all(12345).collect();
            let distinct: HashSet<&IpAddr> = all.iter().collect();
            let counts = (all.len(), distinct.len());
            assert_eq!(counts, (upper + lower, upper + lower), "{range}");
            assert!(all.iter().all(|ip| offers(&net, *ip)), "{range}");
            let is_low = |ip: &IpAddr| bands.part(1, bands.lower, 0).any(|low| low == *ip);
            assert!(!all[..upper].iter().take(300).any(is_low), "{range}");
            assert!(all[upper..].iter().all(is_low), "{range}");
            let some = bands.some(u64::MAX);
            assert_eq!(some.is_some(), upper > 0, "{range}");
            assert!(some.is_none_or(|ip| distinct.contains(&ip)), "{range}");
        }
    }
}
