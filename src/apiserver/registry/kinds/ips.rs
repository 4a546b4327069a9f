//! Addresses to which a Service's traffic may be sent, and those it may be taken for: of the cluster or
//! of elsewhere, never the inside of the host that sends it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    addresses::{Scope, scope},
    apiserver::registry::Causes,
};

/// An address behind or before a Service, in any spelling.
pub fn endpoint(text: &str, path: &str, causes: &mut Causes) {
    match text.parse::<IpAddr>() {
        Ok(ip) => not_special(ip, text, path, causes),
        Err(_) => causes.invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
    }
}

/// Neither of the host itself nor of what is only on its links.
pub fn not_special(ip: IpAddr, text: &str, path: &str, causes: &mut Causes) {
    let why = match scope(ip) {
        Scope::Private | Scope::Global => return,
        Scope::Unspecified => format!("may not be unspecified ({text})"),
        Scope::Loopback => "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        Scope::LinkLocal => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
        }
        Scope::Multicast if is_link_local_multicast(ip) => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
        }
        Scope::Multicast => "may not be in the multicast range (224.0.0.0/4, ff00::/8)".to_owned(),
        Scope::Broadcast => "may not be the broadcast address (255.255.255.255)".to_owned(),
    };
    causes.invalid(path, text, &why);
}

/// An address of a field that never took another spelling than the canonical one.
pub fn strict_address(text: &str) -> Result<IpAddr, String> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return Err(match without_zeros(text).parse::<IpAddr>() {
            Ok(_) => "must not have leading 0s".to_owned(),
            Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned(),
        });
    };
    if is_mapped(ip) {
        return Err("must not be an IPv4-mapped IPv6 address".to_owned());
    }
    match ip.to_string() {
        canonical if canonical != text => Err(format!("must be in canonical form ({canonical:?})")),
        _ => Ok(ip),
    }
}

/// A range of a field that never took another spelling than the canonical one.
pub fn strict_range(text: &str) -> Result<IpNet, String> {
    const INVALID: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let (address, length) = text.split_once('/').ok_or(INVALID)?;
    let plain = format!("{}/{}", without_zeros(address), without_zeros(length));
    let range: IpNet = plain.parse().map_err(|_| INVALID)?;
    if is_mapped(range.addr()) {
        return Err("must not have an IPv4-mapped IPv6 address".to_owned());
    }
    if plain != text {
        return Err("must not have leading 0s in IP or prefix length".to_owned());
    }
    if range.addr() != range.network() {
        return Err("must not have bits set beyond the prefix length".to_owned());
    }
    match range.to_string() {
        canonical if canonical != text => Err(format!("must be in canonical form ({canonical:?})")),
        _ => Ok(range),
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The decimal numbers of an IPv4 address, or of a length, as they are usually written.
fn without_zeros(text: &str) -> String {
    if text.contains(':') {
        return text.to_owned();
    }
    let plain = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_owned(),
        plain => plain.to_owned(),
    };
    text.split('.').map(plain).collect::<Vec<_>>().join(".")
}

fn is_link_local_multicast(ip: IpAddr) -> bool {
    match crate::addresses::canonical(ip) {
        IpAddr::V4(v4) => v4.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_traffic_may_be_sent() {
        for (text, want) in [
            ("10.1.0.2", ""),
            ("192.0.2.1", ""),
            ("fd00::1", ""),
            ("::ffff:10.1.0.2", ""),
            ("127.0.0.1", "loopback"),
            ("127.9.9.9", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:7f00:1", "loopback"),
            ("64:ff9b::7f00:1", "loopback"),
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("169.254.169.254", "link-local range"),
            ("::ffff:169.254.169.254", "link-local range"),
            ("fe80::1", "link-local range"),
            ("224.0.0.251", "link-local multicast"),
            ("ff02::1", "link-local multicast"),
            ("239.1.1.1", "multicast range"),
            ("255.255.255.255", "broadcast"),
            ("127.1", "valid IP"),
            ("localhost", "valid IP"),
            ("", "valid IP"),
        ] {
            let mut causes = Causes::default();
            endpoint(text, "ip", &mut causes);
            let said = causes.0.first().map_or("", |cause| &cause.message);
            assert_eq!(said.is_empty(), want.is_empty(), "{text}: {said}");
            assert!(said.contains(want), "{text}: {said}");
        }
    }
}
