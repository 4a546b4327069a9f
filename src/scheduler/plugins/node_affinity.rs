//! `nodeSelector` and node affinity.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

use super::{Plugins, Reject, normalize};
use crate::scheduler::{cluster::NodeInfo, pod::PodInfo};

pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
    (!matches(pod, node)).then(|| {
        Reject::fixed(
            Plugins::NODE_AFFINITY,
            "node(s) didn't match Pod's node affinity/selector",
        )
    })
}

/// True if the node has what the pod requires of labels and fields.
pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.spec() else {
        return true;
    };
    let labels = node.labels();
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
            .is_none_or(|selector| selects(selector, node))
}

/// Sum of the weights of preferred terms that the node meets.
pub fn scores(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let preferred = pod
        .spec()
        .and_then(|spec| spec.affinity.as_ref())
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default();
    let mut scores: Vec<i64> = nodes
        .iter()
        .map(|node| {
            preferred
                .iter()
                .filter(|one| meets(&one.preference, node))
                .map(|one| i64::from(one.weight))
                .sum()
        })
        .collect();
    normalize(&mut scores, false);
    scores
}

fn selects(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| meets(term, node))
}

/// All requirements of a term hold; an empty term is met by no node.
fn meets(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    labels.iter().all(|requirement| {
        let value = node.labels().get(&requirement.key);
        holds(requirement, value.map(String::as_str))
    }) && fields.iter().all(|requirement| {
        let value = (requirement.key == "metadata.name").then_some(node.name.as_str());
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
}
