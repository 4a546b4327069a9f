//! The API objects by which pods find the DNS: Service `kube-dns` and one slice per node.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{
            Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::informer::services::SERVICE_NAME;

/// What the slices' names begin with; the node's follows.
pub const SLICE_PREFIX: &str = "kube-dns-";
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "vetch-dns");
const PORT: i32 = 53;
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

/// `kube-system/kube-dns`. Without a selector: the slices are written one for each node. Each node's pods
/// are answered by their own node, as its slice hints, and by others where that one cannot.
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
            internal_traffic_policy: Some("Cluster".into()),
            ports: Some(PORTS.map(port).into()),
            type_: Some("ClusterIP".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Whether the slice is one of those that [`endpoint_slice`] makes.
pub fn is_ours(slice: &EndpointSlice) -> bool {
    let metadata = &slice.metadata;
    let managed = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY.0));
    let name = metadata.name.as_deref().unwrap_or_default();
    managed.is_some_and(|by| by == MANAGED_BY.1) && name.starts_with(SLICE_PREFIX)
}

/// The slice of the node `node`, whose DNS listens on port 53 of `address`. It is for that node's pods as
/// long as it is ready.
pub fn endpoint_slice(node: &str, address: IpAddr, ready: bool) -> EndpointSlice {
    let port = |(name, protocol): (&str, &str)| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(PORT),
        ..EndpointPort::default()
    };
    let labels = [(SERVICE_NAME, "kube-dns"), MANAGED_BY];
    EndpointSlice {
        metadata: metadata(&format!("{SLICE_PREFIX}{node}"), labels),
        address_type: match address {
            IpAddr::V4(_) => "IPv4".into(),
            IpAddr::V6(_) => "IPv6".into(),
        },
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.to_string()],
            node_name: Some(node.into()),
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                serving: Some(ready),
                terminating: Some(false),
            }),
            hints: Some(EndpointHints {
                for_nodes: Some(vec![ForNode { name: node.into() }]),
                ..EndpointHints::default()
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
