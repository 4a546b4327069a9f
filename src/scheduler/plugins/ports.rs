//! Host ports: no two pods of a node may take the same.

use super::{Plugins, Reject};
use crate::scheduler::{cluster::NodeInfo, pod::PodInfo};

pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    if pod.ports.is_empty() {
        return None;
    }
    node.pods
        .values()
        .flat_map(|other| &other.ports)
        .any(|taken| pod.ports.iter().any(|port| port.clashes(taken)))
        .then(|| {
            Reject::by_pods(
                Plugins::PORTS,
                "node(s) didn't have free ports for the requested pod ports",
            )
        })
}

#[cfg(test)]
mod tests {
    use crate::placement::HostPort;

    #[test]
    fn the_wildcard_address_clashes_with_all() {
        let port = |address: &str, protocol: &str, port| HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        };
        let held = port("127.0.0.1", "TCP", 80);
        for (other, want) in [
            (port("127.0.0.1", "TCP", 80), true),
            (port("0.0.0.0", "TCP", 80), true),
            (port("127.0.0.2", "TCP", 80), false),
            (port("0.0.0.0", "UDP", 80), false),
            (port("0.0.0.0", "TCP", 81), false),
        ] {
            assert_eq!(held.clashes(&other), want, "{other:?}");
            assert_eq!(other.clashes(&held), want, "{other:?}");
        }
    }
}
