//! Which nodes a pod's own spec allows (selectors, affinity to nodes, tolerations), and what the pod
//! takes there (resources, ports, volumes). Pure.
//!
//! Shared by the scheduler, which places pods, by controllers that must know where a pod could be
//! placed, and by the kubelet, which has the last word. Knows no other module.

pub mod local;
mod ports;
mod resources;
pub mod volumes;

pub use ports::{HostPort, host_ports};
pub use resources::{Requests, Resources};

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration,
};

/// The annotation of a Node whose pods have addresses already: the range that it should get again.
pub const WANTED_RANGE: &str = "vetch.io/pod-cidr";

/// The annotation of a Node whose DNS does not listen in its range of pods, since others make that network: it has
/// the value [`DNS_AT_NODE`], and the DNS listens on the Node's addresses.
pub const DNS_AT: &str = "vetch.io/cluster-dns";
pub const DNS_AT_NODE: &str = "node-address";

/// True if a node of these labels and this name has all that the pod requires of nodes.
pub fn wants_node(spec: &PodSpec, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    selected
        && spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|affinity| {
                affinity
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
            })
            .is_none_or(|selector| selects(selector, labels, name))
}

fn selects(selector: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| meets(term, labels, name))
}

/// All requirements of a term hold; an empty term is met by no node.
pub fn meets(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|requirement| {
        let value = labels.get(&requirement.key);
        holds(requirement, value.map(String::as_str))
    }) && fields.iter().all(|requirement| {
        let value = (requirement.key == "metadata.name").then_some(name);
        holds(requirement, value)
    })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|one| one == value);
    let compared = || -> Option<std::cmp::Ordering> {
        let bound: i64 = values.first()?.parse().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}

/// True if the toleration is about this taint and allows it.
pub fn tolerates(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|wanted| wanted != effect) {
        return false;
    }
    let wanted = given(&toleration.key);
    if wanted.as_ref().is_some_and(|wanted| wanted != key) {
        return false;
    }
    let held = toleration.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Lt" => compare(value, held).is_some_and(|(taint, bound)| taint < bound),
        "Gt" => compare(value, held).is_some_and(|(taint, bound)| taint > bound),
        _ => wanted.is_some() && held == value,
    }
}

fn compare(taint: &str, bound: &str) -> Option<(i64, i64)> {
    Some((taint.parse().ok()?, bound.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operators() {
        for (operator, values, value, want) in [
            ("In", vec!["a", "b"], Some("b"), true),
            ("In", vec!["a"], None, false),
            ("NotIn", vec!["a"], Some("b"), true),
            ("NotIn", vec!["a"], None, true),
            ("Exists", vec![], Some(""), true),
            ("DoesNotExist", vec![], Some(""), false),
            ("Gt", vec!["4"], Some("5"), true),
            ("Gt", vec!["5"], Some("5"), false),
            ("Lt", vec!["5"], Some("4"), true),
            ("Lt", vec!["5"], Some("four"), false),
        ] {
            let requirement: NodeSelectorRequirement =
                serde_json::from_value(json!({"key": "k", "operator": operator, "values": values}))
                    .expect("a requirement");
            assert_eq!(
                holds(&requirement, value),
                want,
                "{operator} {values:?} {value:?}"
            );
        }
    }

    #[test]
    fn tolerations() {
        // Source: documentation of taints and tolerations.
        for (toleration, key, effect, want) in [
            (
                json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
                "k",
                "NoSchedule",
                true,
            ),
            (
                json!({"key": "k", "value": "w", "effect": "NoSchedule"}),
                "k",
                "NoSchedule",
                false,
            ),
            (json!({"key": "k", "value": "v"}), "k", "NoExecute", true),
            (
                json!({"key": "k", "operator": "Exists"}),
                "k",
                "NoExecute",
                true,
            ),
            (json!({"operator": "Exists"}), "any", "NoSchedule", true),
            (
                json!({"operator": "Exists", "effect": "NoExecute"}),
                "k",
                "NoSchedule",
                false,
            ),
            (
                json!({"key": "j", "operator": "Exists"}),
                "k",
                "NoSchedule",
                false,
            ),
        ] {
            let parsed: Toleration =
                serde_json::from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerates(&parsed, key, "v", effect), want, "{toleration}");
        }
    }
}
