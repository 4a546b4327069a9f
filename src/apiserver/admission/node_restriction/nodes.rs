//! What a node may write of Nodes: its own, without what steers workloads to it.

use serde_json::Value;

use super::{Asked, labels};
use crate::apiserver::{
    admission::Operation,
    registry::kinds::value::{at, has, items},
    status::Status,
};

pub fn check(asked: &Asked<'_>) -> Result<(), Status> {
    let (node, name) = (asked.node, asked.name());
    if name != node {
        return asked.refuse(&format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    let why = match (asked.request.operation, asked.request.old) {
        (Operation::Create, _) => created(node, asked.object),
        (Operation::Update, Some(old)) => changed(node, asked.object, old),
        _ => None,
    };
    match why {
        Some(why) => asked.refuse(&why),
        None => Ok(()),
    }
}

fn created(node: &str, new: &Value) -> Option<String> {
    if has(new, "spec.configSource") {
        return Some(format!(
            "node {node:?} is not allowed to create pods with a non-nil configSource"
        ));
    }
    // Other nodes send to whoever has a range what is for the pods in it.
    if !ranges(new).is_empty() {
        return Some(format!(
            "node {node:?} is not allowed to choose podCIDRs: the control plane gives them"
        ));
    }
    // With an owner that does not exist its Node would be collected, to be made anew without what
    // others have written there.
    if !items(new, "metadata.ownerReferences").is_empty() {
        return Some(format!(
            "node {node:?} is not allowed to set ownerReferences"
        ));
    }
    let labels = labels::forbidden(new, &Value::Null);
    (!labels.is_empty()).then(|| {
        format!(
            "node {node:?} is not allowed to set the following labels: {}",
            list(labels)
        )
    })
}

fn changed(node: &str, new: &Value, old: &Value) -> Option<String> {
    let source = at(new, "spec.configSource");
    if source.is_some() && source != at(old, "spec.configSource") {
        return Some(format!(
            "node {node:?} is not allowed to update configSource to a new non-nil configSource"
        ));
    }
    if ranges(new) != ranges(old) {
        return Some(format!("node {node:?} is not allowed to modify podCIDRs"));
    }
    for (path, what) in [
        ("spec.taints", "taints"),
        ("metadata.ownerReferences", "ownerReferences"),
    ] {
        if items(new, path) != items(old, path) {
            return Some(format!("node {node:?} is not allowed to modify {what}"));
        }
    }
    let labels = labels::forbidden(new, old);
    (!labels.is_empty()).then(|| format!("is not allowed to modify labels: {}", list(labels)))
}

/// Of pods, in whichever field they are.
fn ranges(node: &Value) -> std::collections::BTreeSet<&str> {
    let all = items(node, "spec.podCIDRs")
        .iter()
        .filter_map(Value::as_str);
    let one = at(node, "spec.podCIDR").and_then(Value::as_str);
    all.chain(one).filter(|range| !range.is_empty()).collect()
}

fn list(labels: std::collections::BTreeSet<&str>) -> String {
    labels.into_iter().collect::<Vec<_>>().join(", ")
}
