//! The API objects by which pods find the DNS: Service `kube-dns` and one slice per node.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::informer::services::SERVICE_NAME;

const PORT: i32 = 53;
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

/// `kube-system/kube-dns`. Without a selector: the nodes write the slices. Each node's pods are
/// answered by their own node.
pub fn service(cluster_ip: IpAddr) -> Service {
    let port = |(name, protocol): (&str, &str)| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: PORT,
        target_port: Some(IntOrString::Int(PORT)),
        ..ServicePort::default()
    };
    Service {
        metadata: metadata("kube-dns", [("k8s-app", "kube-dns")]),
        spec: Some(ServiceSpec {
            cluster_ip: Some(cluster_ip.to_string()),
            cluster_ips: Some(vec![cluster_ip.to_string()]),
            internal_traffic_policy: Some("Local".into()),
            ports: Some(PORTS.map(port).into()),
            type_: Some("ClusterIP".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The slice of the node `node`, whose DNS listens on port 53 of `address`.
pub fn endpoint_slice(node: &str, address: IpAddr) -> EndpointSlice {
    let port = |(name, protocol): (&str, &str)| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(PORT),
        ..EndpointPort::default()
    };
    let labels = [
        (SERVICE_NAME, "kube-dns"),
        ("endpointslice.kubernetes.io/managed-by", "vetch-dns"),
    ];
    EndpointSlice {
        metadata: metadata(&format!("kube-dns-{node}"), labels),
        address_type: match address {
            IpAddr::V4(_) => "IPv4".into(),
            IpAddr::V6(_) => "IPv6".into(),
        },
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.to_string()],
            node_name: Some(node.into()),
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            ..Endpoint::default()
        }]),
        ports: Some(PORTS.map(port).into()),
    }
}

fn metadata<const N: usize>(name: &str, labels: [(&str, &str); N]) -> ObjectMeta {
    let labels: BTreeMap<String, String> = labels
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("kube-system".into()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}
