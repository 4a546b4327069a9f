//! Ports that pods take on their node. Pure.

use k8s_openapi::api::core::v1::PodSpec;

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `0.0.0.0` stands for every address.
    pub address: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn clashes(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address
                || self.address == ANY_ADDRESS
                || other.address == ANY_ADDRESS)
    }
}

const ANY_ADDRESS: &str = "0.0.0.0";

/// All of a pod's; init containers that end give theirs back before the others start.
pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort {
                address: port
                    .host_ip
                    .clone()
                    .filter(|address| !address.is_empty())
                    .unwrap_or_else(|| ANY_ADDRESS.into()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: number,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clashes() {
        let port = |ip: &str, protocol: &str, number: i32| {
            let spec = json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": number, "hostIP": ip, "protocol": protocol}]}]});
            host_ports(&serde_json::from_value(spec).unwrap())
        };
        for (a, b, want) in [
            (port("", "TCP", 80), port("", "TCP", 80), true),
            (port("", "TCP", 80), port("", "UDP", 80), false),
            (port("", "TCP", 80), port("", "TCP", 81), false),
            (port("10.0.0.1", "TCP", 80), port("", "TCP", 80), true),
            (
                port("10.0.0.1", "TCP", 80),
                port("10.0.0.2", "TCP", 80),
                false,
            ),
        ] {
            assert_eq!(a[0].clashes(&b[0]), want, "{a:?} {b:?}");
        }
        assert!(port("", "TCP", 0).is_empty());
    }
}
