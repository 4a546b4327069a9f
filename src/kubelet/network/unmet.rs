//! What a pod asks of its network and does not get. It runs all the same, and an event says what it lacks: nothing
//! that somebody wrote down is passed over without a word. Pure.

use std::net::IpAddr;

use super::{Forward, HostAddress};
use crate::addresses::family::{Family, OfFamily, PerFamily};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a pod asks for and its network does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// None of them.
    HostPorts,
    HostPort {
        port: Forward,
        why: NotLed,
    },
    Bandwidth,
}

/// Why nothing comes to the pod by a port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLed {
    /// The pod has no address of the family of this one.
    Family(IpAddr),
    /// The kernel routes nothing from `::1` to another link, and the daemon passes on TCP alone.
    LoopbackProtocol,
    /// The daemon could not listen on `::1`.
    LoopbackTaken,
}

/// Who brings what programs of the node ask from `::1` over TCP to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Loopback {
    /// The daemon.
    PassedOn,
    /// The daemon should, and cannot.
    Unserved,
    /// Plugins, in their own way.
    OfPlugins,
}

/// Which of its ports of the node do not lead to a pod with these addresses.
pub fn ports(
    addresses: &PerFamily<IpAddr>,
    forwards: &[Forward],
    loopback: Ipv6Loopback,
) -> Vec<Unmet> {
    let unmet = forwards.iter().filter_map(|port| {
        let why = not_led(addresses, port, loopback)?;
        let port = port.clone();
        Some(Unmet::HostPort { port, why })
    });
    unmet.collect()
}

fn not_led(
    addresses: &PerFamily<IpAddr>,
    port: &Forward,
    loopback: Ipv6Loopback,
) -> Option<NotLed> {
    let address = match port.address {
        HostAddress::Every => return None,
        HostAddress::EveryIpv6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        HostAddress::One(address) => address,
    };
    if addresses.of(address.family()).is_none() {
        return Some(NotLed::Family(address));
    }
    let is_loopback = address == Family::V6.loopback();
    match loopback {
        _ if !is_loopback => None,
        Ipv6Loopback::OfPlugins => None,
        _ if port.protocol != TCP => Some(NotLed::LoopbackProtocol),
        Ipv6Loopback::Unserved => Some(NotLed::LoopbackTaken),
        Ipv6Loopback::PassedOn => None,
    }
}

impl Unmet {
    /// The event's reason and message.
    pub fn told(&self) -> (&'static str, String) {
        match self {
            Self::HostPorts => (
                "HostPortNotSupported",
                "Host ports are not opened: no CNI plugin of this node's network has the capability portMappings"
                    .to_owned(),
            ),
            Self::HostPort { port, why } => ("HostPortNotSupported", not_opened(port, *why)),
            Self::Bandwidth => (
                "BandwidthNotSupported",
                "Bandwidth is not limited: no CNI plugin of this node's network has the capability bandwidth"
                    .to_owned(),
            ),
        }
    }
}

fn not_opened(port: &Forward, why: NotLed) -> String {
    let protocol = match port.protocol {
        TCP => "TCP",
        UDP => "UDP",
        _ => "SCTP",
    };
    let number = port.port;
    match why {
        NotLed::Family(address) => {
            let family = address.family();
            format!(
                "Host port {number}/{protocol} with hostIP {address} is not opened: the pod has no {family} address"
            )
        }
        NotLed::LoopbackProtocol => format!(
            "Host port {number}/{protocol} with hostIP ::1 cannot be reached by programs of the node: only TCP is \
             passed on from ::1; use the hostIP 127.0.0.1, another address of the node, or none"
        ),
        NotLed::LoopbackTaken => format!(
            "Host port {number}/{protocol} with hostIP ::1 cannot be reached by programs of the node: vetch could \
             not listen on ::1, and its log says why; use the hostIP 127.0.0.1, another address of the node, or none"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::network::host_address;

    #[test]
    fn which_ports_do_not_lead_to_a_pod() {
        use Ipv6Loopback::{OfPlugins, PassedOn, Unserved};
        const SCTP: u8 = 132;
        let (v4, v6, both) = ("10.42.0.2", "fd42::2", "10.42.0.2,fd42::2");
        for (pod, address, protocol, loopback, want) in [
            (both, "", UDP, PassedOn, None),
            (both, "::", UDP, PassedOn, None),
            (both, "127.0.0.1", UDP, PassedOn, None), // by the kernel
            (both, "2001:db8::1", SCTP, PassedOn, None),
            (both, "::1", TCP, PassedOn, None),
            (
                both,
                "::1",
                UDP,
                PassedOn,
                Some("5353/UDP with hostIP ::1 cannot be reached"),
            ),
            (
                v6,
                "::1",
                SCTP,
                PassedOn,
                Some("5353/SCTP with hostIP ::1 cannot be reached"),
            ),
            (v6, "::1", SCTP, Unserved, Some("only TCP is passed on")),
            (v6, "::1", TCP, Unserved, Some("could not listen on ::1")),
            (v6, "::1", UDP, OfPlugins, None), // their own business
            (v4, "", TCP, PassedOn, None),
            (
                v4,
                "::1",
                UDP,
                OfPlugins,
                Some("the pod has no IPv6 address"),
            ),
            (
                v4,
                "::",
                TCP,
                PassedOn,
                Some("with hostIP :: is not opened: the pod has no IPv6"),
            ),
            (
                v6,
                "192.0.2.1",
                TCP,
                OfPlugins,
                Some("the pod has no IPv4 address"),
            ),
        ] {
            let port = Forward {
                address: host_address(address).unwrap(),
                protocol,
                port: 5353,
                to: 53,
            };
            let found = ports(&pod.parse().unwrap(), &[port], loopback);
            let told = found.first().map(|unmet| unmet.told());
            match (told, want) {
                (None, None) => {}
                (Some(("HostPortNotSupported", message)), Some(want)) => {
                    assert!(message.contains(want), "{message}");
                }
                (told, _) => panic!("{pod} {address} {protocol} {loopback:?}: {told:?}"),
            }
        }
    }
}
