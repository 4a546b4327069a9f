//! Ranges of addresses, of Services above all. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Whether a Service can have this address of the range: the network's own address and IPv4's broadcast
/// address belong to nobody.
pub fn offers(range: &IpNet, address: IpAddr) -> bool {
    let is_broadcast = matches!(range, IpNet::V4(_)) && range.broadcast() == address;
    range.contains(&address) && range.network() != address && !is_broadcast
}

/// Whether the two have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The address so far behind the range's first, if the range has a further one behind it.
pub fn nth(range: &IpNet, number: u8) -> Option<IpAddr> {
    match range {
        IpNet::V4(range) => {
            let address = Ipv4Addr::from(u32::from(range.network()).checked_add(number.into())?);
            (address < range.broadcast()).then_some(address.into())
        }
        IpNet::V6(range) => {
            let address = Ipv6Addr::from(u128::from(range.network()).checked_add(number.into())?);
            (address < range.broadcast()).then_some(address.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_addresses_belong_to_nobody() {
        for (range, address, want) in [
            ("10.0.0.0/28", "10.0.0.0", false),
            ("10.0.0.0/28", "10.0.0.1", true),
            ("10.0.0.0/28", "10.0.0.14", true),
            ("10.0.0.0/28", "10.0.0.15", false),
            ("10.0.0.0/28", "10.0.0.16", false),
            ("fd00::/124", "fd00::", false),
            ("fd00::/124", "fd00::f", true),
            ("fd00::/124", "10.0.0.1", false),
        ] {
            let range: IpNet = range.parse().unwrap();
            let got = offers(&range, address.parse().unwrap());
            assert_eq!(got, want, "{range} {address}");
        }
    }

    #[test]
    fn ranges_lie_inside_of_each_other_or_apart() {
        for (one, other, want) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.0.0.0/8", true),
            ("10.1.0.0/16", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.2.0.0/16", false),
            ("10.0.0.0/8", "fd00::/64", false),
        ] {
            let (one, other): (IpNet, IpNet) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(&one, &other), want, "{one} {other}");
        }
    }
}
