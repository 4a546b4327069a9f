//! Services of the type LoadBalancer that get their addresses from the cluster itself, and how their status says
//! so. Pure.
//!
//! The controller that gives the addresses, the proxies that serve them and the nodes that announce them must agree
//! on it. What the status says counts: only who may write a Service's status can write it, and no owner of a Service
//! may.

use std::net::IpAddr;

use k8s_openapi::api::{
    core::v1::{LoadBalancerIngress, Node, Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

/// The `loadBalancerClass` that asks for the nodes' addresses. A Service without any class gets them too where there
/// is no pool.
pub const CLASS: &str = "vetch.io/node";
/// The status condition by which the addresses beside it are the nodes', by the controller's word.
pub const CONDITION: &str = "vetch.io/NodeAddresses";
/// The same for addresses of the pool.
pub const POOL_CONDITION: &str = "vetch.io/PoolAddresses";

/// Nodes that do not want any of it have this label, whatever it says.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Where the nodes that announce addresses of the pool have a Lease each.
pub const LEASES: &str = "kube-system";

/// The name of that Lease.
pub fn lease_of(node: &str) -> String {
    format!("vetch-load-balancers-{node}")
}

/// Whether a Service with this spec asks the cluster for addresses.
pub fn is_asked_for(spec: &ServiceSpec) -> bool {
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS)
}

/// Whether the addresses of its status are the nodes' own, by the word of the controller.
pub fn is_given(service: &Service) -> bool {
    says(service, CONDITION)
}

/// Whether the addresses of its status are the pool's, by the word of the controller.
pub fn is_pooled(service: &Service) -> bool {
    says(service, POOL_CONDITION)
}

fn says(service: &Service, condition: &str) -> bool {
    let asked_for = service.spec.as_ref().is_some_and(is_asked_for);
    asked_for && has_condition(service, condition)
}

fn has_condition(service: &Service, condition: &str) -> bool {
    let conditions = service.status.iter();
    let mut conditions = conditions.flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|one| one.type_ == condition && one.status == "True")
}

/// The addresses of the pool that a status has, whatever the Service asks for by now.
pub fn pool_addresses(service: &Service) -> Vec<IpAddr> {
    if !has_condition(service, POOL_CONDITION) {
        return Vec::new();
    }
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref());
    let address = |ingress: &LoadBalancerIngress| ingress.ip.as_ref()?.parse().ok();
    let ingress = ingress.unwrap_or_default().iter();
    ingress.filter_map(address).collect()
}

/// Whether new connections from outside may come to the node.
pub fn is_open(node: &Node) -> bool {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    let labels = node.metadata.labels.as_ref();
    conditions.any(|one| one.type_ == "Ready" && one.status == "True")
        && node.metadata.deletion_timestamp.is_none()
        && labels.is_none_or(|labels| !labels.contains_key(EXCLUDED))
}

/// The nodes with endpoints that take connections, as proxies see it: those that end may still serve.
pub fn serving_nodes(slice: &EndpointSlice) -> impl Iterator<Item = &String> {
    let endpoints = slice.endpoints.iter().flatten();
    let serving = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|all| all.ready).unwrap_or(true);
        ready || conditions.and_then(|all| all.serving).unwrap_or(false)
    });
    serving.filter_map(|endpoint| endpoint.node_name.as_ref())
}

/// Whether only nodes with endpoints of it take its connections from outside.
pub fn is_local(spec: &ServiceSpec) -> bool {
    spec.external_traffic_policy.as_deref() == Some("Local")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_status_says_so() {
        for (kind, class, condition, want) in [
            (
                "LoadBalancer",
                None,
                ("vetch.io/NodeAddresses", "True"),
                true,
            ),
            (
                "LoadBalancer",
                Some(CLASS),
                ("vetch.io/NodeAddresses", "True"),
                true,
            ),
            (
                "LoadBalancer",
                None,
                ("vetch.io/NodeAddresses", "False"),
                false,
            ),
            ("LoadBalancer", None, ("Ready", "True"), false),
            (
                "LoadBalancer",
                Some("a.b/c"),
                ("vetch.io/NodeAddresses", "True"),
                false,
            ),
            ("NodePort", None, ("vetch.io/NodeAddresses", "True"), false),
        ] {
            let service = json!({
                "spec": {"type": kind, "loadBalancerClass": class},
                "status": {"conditions": [{
                    "type": condition.0, "status": condition.1, "reason": "Given", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }]},
            });
            let service: Service = serde_json::from_value(service).unwrap();
            assert_eq!(is_given(&service), want, "{kind} {class:?} {condition:?}");
        }
    }
}
