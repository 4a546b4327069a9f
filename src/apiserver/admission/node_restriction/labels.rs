//! Which labels a node may change on its own Node. Pure.
//!
//! Workloads choose nodes by labels: one that could take a label at will could draw any of them to
//! itself. Labels of `kubernetes.io` and `k8s.io` are the cluster's, but for those here.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::apiserver::registry::kinds::value::members;

/// Never the node's own.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
const OWN: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// All labels below these, and below their parts.
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The labels that differ between the two and are not the node's to change, sorted.
pub fn forbidden<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let value = |object: &'a Value, key: &str| members(object, "metadata.labels")?.get(key);
    let keys = |object: &'a Value| {
        let labels = members(object, "metadata.labels");
        labels.into_iter().flatten().map(|(key, _)| key.as_str())
    };
    keys(new)
        .chain(keys(old))
        .filter(|key| value(new, key) != value(old, key))
        .filter(|key| is_forbidden(key))
        .collect()
}

/// Whether a node may not give itself this label.
pub fn is_forbidden(key: &str) -> bool {
    let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
    let below = |parent: &str| {
        prefix
            .strip_suffix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let is_own = OWN.contains(&key) || OWN_PREFIXES.into_iter().any(below);
    below(RESTRICTED) || ((below("kubernetes.io") || below("k8s.io")) && !is_own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_of_the_cluster_are_not_the_nodes() {
        for (key, want) in [
            ("colour", false),
            ("example.com/role", false),
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("kubelet.kubernetes.io/x", false),
            ("a.node.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("kubernetes.io/role", true),
            ("foo.k8s.io/x", true),
            ("node-restriction.kubernetes.io/x", true),
            ("a.node-restriction.kubernetes.io/x", true),
            // Ends alike, but is somebody else's.
            ("evilkubernetes.io/x", false),
            ("mynode.kubernetes.io/x", true),
        ] {
            let labels = |value: &str| json!({"metadata": {"labels": {key: value}}});
            let none = json!({});
            for (new, old) in [
                (&labels("a"), &none),
                (&none, &labels("a")),
                (&labels("a"), &labels("b")),
            ] {
                assert_eq!(forbidden(new, old).contains(key), want, "{key}");
            }
            assert!(forbidden(&labels("a"), &labels("a")).is_empty());
        }
    }
}
