//! Addresses that an object may name for traffic: none of those that always mean something else.
//!
//! The original's `ValidateNonSpecialIP`, over every spelling of an address; it lets multicast
//! addresses beyond the link pass, which nothing here could ever serve.

use std::net::IpAddr;

use crate::{
    addresses::{Scope, canonical, scope},
    apiserver::registry::Causes,
};

pub const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// Reports what is no address, or one that cannot be anybody's.
pub fn check(ip: &str, path: &str, causes: &mut Causes) {
    let Ok(address) = ip.parse::<IpAddr>() else {
        return causes.invalid(path, ip, NO_IP);
    };
    let why = match scope(address) {
        Scope::Private | Scope::Global => return,
        Scope::Unspecified => format!("may not be unspecified ({ip})"),
        Scope::Loopback => "may not be in the loopback range (127.0.0.0/8, ::1/128)".into(),
        Scope::LinkLocal => "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into(),
        Scope::Multicast if on_link(canonical(address)) => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()
        }
        Scope::Multicast => "may not be in the multicast range (224.0.0.0/4, ff00::/8)".into(),
        Scope::Broadcast => "may not be the broadcast address (255.255.255.255)".into(),
    };
    causes.invalid(path, ip, &why);
}

fn on_link(multicast: IpAddr) -> bool {
    match multicast {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_judged_by_what_it_reaches() {
        for (ip, want) in [
            ("192.0.2.1", None),
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("no", Some(NO_IP)),
            ("0.0.0.0", Some("may not be unspecified (0.0.0.0)")),
            ("::", Some("may not be unspecified (::)")),
            (
                "127.0.0.1",
                Some("may not be in the loopback range (127.0.0.0/8, ::1/128)"),
            ),
            (
                "::ffff:127.0.0.1",
                Some("may not be in the loopback range (127.0.0.0/8, ::1/128)"),
            ),
            (
                "169.254.169.254",
                Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
            ),
            (
                "224.0.0.1",
                Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
            ),
            (
                "239.1.1.1",
                Some("may not be in the multicast range (224.0.0.0/4, ff00::/8)"),
            ),
            (
                "255.255.255.255",
                Some("may not be the broadcast address (255.255.255.255)"),
            ),
        ] {
            let mut causes = Causes::default();
            check(ip, "spec.ip", &mut causes);
            let got = causes.0.first().map(|cause| cause.message.clone());
            let got = got.map(|message| message.split_once(": ").unwrap().1.to_owned());
            let want = want.map(|want| format!("\"{ip}\": {want}"));
            assert_eq!(got, want, "{ip}");
        }
    }
}
