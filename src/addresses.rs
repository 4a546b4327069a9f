//! What kind of address an IP address is, in whatever form it is written. Pure.
//!
//! Called wherever a client, an object or a registry names an address that we would connect to or
//! take traffic for. IPv4-mapped, IPv4-compatible and NAT64 forms are judged as the IPv4 address that
//! they stand for, so that `::ffff:127.0.0.1` is loopback everywhere.

pub mod balancing;
pub mod family;
pub mod pool;
pub mod ranges;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The scope of an address, the most restrictive one that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `0.0.0.0`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16` (cloud metadata among them), `fe80::/10`.
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// RFC 1918, RFC 6598 and `fc00::/7`.
    Private,
    Global,
}

/// The IPv4 address that an IPv6 form stands for; any other address unchanged.
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let embedded = match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some((high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
        // IPv4-compatible; `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => {
            Some((high, low))
        }
        _ => None,
    };
    embedded.map_or(IpAddr::V6(v6), |(high, low)| {
        IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
    })
}

pub fn scope(address: IpAddr) -> Scope {
    match canonical(address) {
        IpAddr::V4(v4) => scope_v4(v4),
        IpAddr::V6(v6) => scope_v6(v6),
    }
}

/// Whether a server of ours may be sent there on somebody else's word: not to this host itself, nor
/// to what is only on its links.
pub fn may_be_proxied_to(address: IpAddr) -> bool {
    matches!(scope(address), Scope::Private | Scope::Global)
}

fn scope_v4(v4: Ipv4Addr) -> Scope {
    match v4.octets() {
        // All of 0.0.0.0/8 reaches the host itself on Linux.
        [0, ..] => Scope::Unspecified,
        [127, ..] => Scope::Loopback,
        [169, 254, ..] => Scope::LinkLocal,
        [224..=239, ..] => Scope::Multicast,
        [255, 255, 255, 255] => Scope::Broadcast,
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] | [100, 64..=127, ..] => Scope::Private,
        _ => Scope::Global,
    }
}

fn scope_v6(v6: Ipv6Addr) -> Scope {
    match v6.segments()[0] {
        _ if v6.is_unspecified() => Scope::Unspecified,
        _ if v6.is_loopback() => Scope::Loopback,
        first if first & 0xffc0 == 0xfe80 => Scope::LinkLocal,
        first if first & 0xff00 == 0xff00 => Scope::Multicast,
        first if first & 0xfe00 == 0xfc00 => Scope::Private,
        _ => Scope::Global,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_the_scope_of_what_it_reaches() {
        for (text, want) in [
            ("0.0.0.0", Scope::Unspecified),
            ("0.0.0.5", Scope::Unspecified), // the host itself, as 0.0.0.0 is
            ("::", Scope::Unspecified),
            ("127.0.0.1", Scope::Loopback),
            ("127.255.0.9", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("::127.0.0.1", Scope::Loopback),
            ("64:ff9b::7f00:1", Scope::Loopback),
            ("169.254.169.254", Scope::LinkLocal),
            ("::ffff:a9fe:a9fe", Scope::LinkLocal),
            ("fe80::1", Scope::LinkLocal),
            ("224.0.0.1", Scope::Multicast),
            ("ff02::1", Scope::Multicast),
            ("255.255.255.255", Scope::Broadcast),
            ("10.1.2.3", Scope::Private),
            ("172.31.0.1", Scope::Private),
            ("172.32.0.1", Scope::Global),
            ("192.168.0.1", Scope::Private),
            ("100.64.0.1", Scope::Private),
            ("fd00::1", Scope::Private),
            ("8.8.8.8", Scope::Global),
            ("2001:db8::1", Scope::Global),
        ] {
            assert_eq!(scope(text.parse().unwrap()), want, "{text}");
        }
    }
}
