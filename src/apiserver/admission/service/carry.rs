//! What an update of a Service keeps from the old object. Pure.

use serde_json::Value;

use crate::apiserver::registry::kinds::value::{
    at, has, items, items_mut, number, remove, set, text,
};

fn uses_addresses(service: &Value) -> bool {
    text(service, "spec.type") != "ExternalName"
}

fn uses_node_ports(service: &Value) -> bool {
    matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer")
}

/// Replacing a service from its manifest keeps what was given to it; a change of type drops what
/// the new type has no use for.
pub fn over(new: &mut Value, old: &Value) {
    if uses_addresses(new) && uses_addresses(old) {
        if text(new, "spec.clusterIP").is_empty() && items(new, "spec.clusterIPs").is_empty() {
            copy(new, old, "spec.clusterIP");
            copy(new, old, "spec.clusterIPs");
        }
        for path in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if !has(new, path) {
                copy(new, old, path);
            }
        }
    }
    if uses_addresses(old)
        && !uses_addresses(new)
        && at(new, "spec.clusterIP") == at(old, "spec.clusterIP")
    {
        for path in [
            "spec.clusterIP",
            "spec.clusterIPs",
            "spec.ipFamilies",
            "spec.ipFamilyPolicy",
            "spec.internalTrafficPolicy",
        ] {
            remove(new, path);
        }
    }
    let before = items(old, "spec.ports");
    match (uses_node_ports(new), uses_node_ports(old)) {
        (true, true) => {
            for port in items_mut(new, "spec.ports") {
                let twin = before.iter().find(|old| {
                    number(old, "port") == number(port, "port")
                        && text(old, "protocol") == text(port, "protocol")
                });
                if let (None | Some(0), Some(given)) = (
                    number(port, "nodePort"),
                    twin.and_then(|twin| number(twin, "nodePort")),
                ) {
                    set(port, "nodePort", given);
                }
            }
        }
        (false, true) => {
            let held: Vec<i64> = before
                .iter()
                .filter_map(|port| number(port, "nodePort"))
                .collect();
            for port in items_mut(new, "spec.ports") {
                if number(port, "nodePort").is_some_and(|own| held.contains(&own)) {
                    remove(port, "nodePort");
                }
            }
        }
        _ => {}
    }
    let external =
        uses_node_ports(new) || (uses_addresses(new) && !items(new, "spec.externalIPs").is_empty());
    if !external && at(new, "spec.externalTrafficPolicy") == at(old, "spec.externalTrafficPolicy") {
        remove(new, "spec.externalTrafficPolicy");
    }
    if text(new, "spec.type") != "LoadBalancer" {
        for path in [
            "spec.allocateLoadBalancerNodePorts",
            "spec.loadBalancerClass",
        ] {
            if at(new, path) == at(old, path) {
                remove(new, path);
            }
        }
    }
    let health = text(new, "spec.type") == "LoadBalancer"
        && text(new, "spec.externalTrafficPolicy") == "Local";
    let port = "spec.healthCheckNodePort";
    match health {
        true if number(new, port).unwrap_or_default() == 0 => copy(new, old, port),
        false if at(new, port) == at(old, port) => drop(remove(new, port)),
        _ => {}
    }
}

fn copy(new: &mut Value, old: &Value, path: &str) {
    if let Some(value) = at(old, path) {
        set(new, path, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stays_and_what_goes() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let mut same = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        over(&mut same, &old);
        assert_eq!(same["spec"]["clusterIP"], "10.0.0.9");
        assert_eq!(same["spec"]["ports"][0]["nodePort"], 30001);
        assert!(same["spec"]["ports"][1].get("nodePort").is_none());
        let mut inside = old.clone();
        inside["spec"]["type"] = "ClusterIP".into();
        over(&mut inside, &old);
        assert!(inside["spec"]["ports"][0].get("nodePort").is_none());
        let mut away = old.clone();
        away["spec"]["type"] = "ExternalName".into();
        over(&mut away, &old);
        assert!(away["spec"].get("clusterIP").is_none());
    }
}
