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

use crate::{
    addresses::family::{Family, OfFamily, PerFamily},
    informer::services::SERVICE_NAME,
};

/// What the slices' names begin with; the node's follows. Node names cannot make one look like the other.
const SLICE_PREFIXES: [(Family, &str); 2] =
    [(Family::V4, "kube-dns-"), (Family::V6, "kube-dns.ipv6.")];
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "vetch-dns");
const PORT: i32 = 53;
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

/// `kube-system/kube-dns`. Without a selector: the slices are written one for each node. Each node's pods
/// are answered by their own node, as its slice hints, and by others where that one cannot.
pub fn service(cluster_ips: &PerFamily<IpAddr>) -> Service {
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
            cluster_ip: Some(cluster_ips.primary().to_string()),
            cluster_ips: Some(cluster_ips.iter().map(IpAddr::to_string).collect()),
            ip_family_policy: cluster_ips.secondary().map(|_| "RequireDualStack".into()),
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
    managed.is_some_and(|by| by == MANAGED_BY.1) && is_slice_name(name)
}

/// Whether a slice of this name may be one of ours.
pub fn is_slice_name(name: &str) -> bool {
    let mut prefixes = SLICE_PREFIXES.iter();
    prefixes.any(|(_, prefix)| name.starts_with(prefix))
}

/// How the slice is called that says where the node's DNS is in this family.
pub fn slice_name(node: &str, family: Family) -> String {
    let mut prefixes = SLICE_PREFIXES.iter();
    let prefix = prefixes.find(|(of, _)| *of == family);
    let prefix = prefix.map_or("", |(_, prefix)| prefix);
    format!("{prefix}{node}")
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
        metadata: metadata(&slice_name(node, address.family()), labels),
        address_type: address.family().name().into(),
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
