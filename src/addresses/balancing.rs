//! Services of the type LoadBalancer that get the nodes' own addresses, and how their status says so. Pure.
//!
//! The controller that gives the addresses and the proxies that serve them must agree on both. What the status
//! says counts: only who may write a Service's status can write it, and no owner of a Service may.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// The `loadBalancerClass` that asks for it; so does a Service without any class.
pub const CLASS: &str = "vetch.io/node";
/// The status condition by which the addresses beside it are the controller's own.
pub const CONDITION: &str = "vetch.io/NodeAddresses";

/// Whether a Service with this spec asks for the nodes' addresses.
pub fn is_asked_for(spec: &ServiceSpec) -> bool {
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS)
}

/// Whether the addresses of its status are the nodes' own, by the word of the controller.
pub fn is_given(service: &Service) -> bool {
    let asked_for = service.spec.as_ref().is_some_and(is_asked_for);
    let conditions = service.status.iter();
    let mut conditions = conditions.flat_map(|status| status.conditions.iter().flatten());
    asked_for && conditions.any(|one| one.type_ == CONDITION && one.status == "True")
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
