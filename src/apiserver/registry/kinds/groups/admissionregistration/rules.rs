//! Which requests a webhook or a policy is for: rules and selectors.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::one_of;
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names, selector,
        value::{default_text, default_to, has, items, items_mut, text, texts},
    },
};

/// What a rule may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operations {
    All,
    /// A deletion leaves nothing to change.
    NoDelete,
}

impl Operations {
    fn known(self) -> &'static [&'static str] {
        match self {
            Self::All => &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"],
            Self::NoDelete => &["*", "CONNECT", "CREATE", "UPDATE"],
        }
    }
}

pub fn default_rule(rule: &mut Value) {
    default_text(rule, "scope", "*");
}

/// A `RuleWithOperations`.
pub fn rule(rule: &Value, path: &str, allowed: Operations, causes: &mut Causes) {
    let operations = texts(rule, "operations");
    listed(
        &operations,
        &format!("{path}.operations"),
        "operations",
        causes,
    );
    for (index, operation) in operations.iter().enumerate() {
        if !allowed.known().contains(operation) {
            let path = format!("{path}.operations[{index}]");
            causes.unsupported(path, operation, allowed.known());
        }
    }
    let groups = texts(rule, "apiGroups");
    listed(&groups, &format!("{path}.apiGroups"), "API groups", causes);
    let versions = texts(rule, "apiVersions");
    let at = format!("{path}.apiVersions");
    listed(&versions, &at, "API versions", causes);
    for (index, version) in versions.iter().enumerate() {
        if version.is_empty() {
            causes.required(format!("{at}[{index}]"), "");
        }
    }
    resources(
        &texts(rule, "resources"),
        &format!("{path}.resources"),
        causes,
    );
    one_of(rule, path, "scope", &["*", "Cluster", "Namespaced"], causes);
}

fn listed(all: &[&str], path: &str, others: &str, causes: &mut Causes) {
    if all.is_empty() {
        causes.required(path, "");
    }
    if all.len() > 1 && all.contains(&"*") {
        let detail = format!("if '*' is present, must not specify other {others}");
        causes.invalid(path, all, &detail);
    }
}

fn resources(all: &[&str], path: &str, causes: &mut Causes) {
    if all.is_empty() {
        causes.required(path, "");
    }
    let (mut whole, mut parts) = (HashSet::new(), HashSet::new());
    for (index, name) in all.iter().enumerate() {
        let at = format!("{path}[{index}]");
        if name.is_empty() {
            causes.required(at, "");
            continue;
        }
        let Some((resource, part)) = name.split_once('/') else {
            continue;
        };
        if whole.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {name}");
            causes.invalid(&*at, name, &detail);
        }
        if parts.contains(part) {
            let detail = format!("if '*/{part}' is present, must not specify {name}");
            causes.invalid(&*at, name, &detail);
        }
        if part == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            parts.insert(part);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        causes.invalid(path, all, detail);
    }
    let plain = all.iter().any(|name| *name != "*" && !name.contains('/'));
    if all.contains(&"*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        causes.invalid(path, all, detail);
    }
}

/// `MatchResources` of a policy or a binding.
pub fn default_match_resources(resources: &mut Value) {
    default_text(resources, "matchPolicy", "Equivalent");
    default_to(resources, "namespaceSelector", json!({}));
    default_to(resources, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in items_mut(resources, list) {
            default_rule(rule);
        }
    }
}

pub fn match_resources(resources: &Value, path: &str, allowed: Operations, causes: &mut Causes) {
    match text(resources, "matchPolicy") {
        "" => causes.required(format!("{path}.matchPolicy"), ""),
        _ => one_of(
            resources,
            path,
            "matchPolicy",
            &["Equivalent", "Exact"],
            causes,
        ),
    }
    for field in ["namespaceSelector", "objectSelector"] {
        match has(resources, field) {
            true => selector::validate(&resources[field], &format!("{path}.{field}"), causes),
            false => causes.required(format!("{path}.{field}"), ""),
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, one) in items(resources, list).iter().enumerate() {
            if causes.is_full() {
                return;
            }
            let path = format!("{path}.{list}[{index}]");
            let mut seen = HashSet::new();
            for (index, name) in texts(one, "resourceNames").into_iter().enumerate() {
                let at = format!("{path}.resourceNames[{index}]");
                names::report(names::path_segment(name), name, &at, causes);
                if !seen.insert(name) {
                    causes.duplicate(at, name);
                }
            }
            rule(one, &path, allowed, causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rules_may_say() {
        let good = || {
            json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"],
                "resources": ["deployments"], "scope": "*"})
        };
        for (field, value, want) in [
            (
                "operations",
                json!(["*", "CREATE"]),
                "r.operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
            ),
            ("operations", json!([]), "r.operations: Required value"),
            (
                "operations",
                json!(["GET"]),
                "r.operations[0]: Unsupported value: \"GET\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            ),
            (
                "apiGroups",
                json!(["*", "a"]),
                "r.apiGroups: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other API groups",
            ),
            (
                "apiVersions",
                json!([""]),
                "r.apiVersions[0]: Required value",
            ),
            ("resources", json!(["*", "pods/status"]), ""),
            (
                "resources",
                json!(["*", "pods"]),
                "r.resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources",
            ),
            (
                "resources",
                json!(["*/*", "pods"]),
                "r.resources: Invalid value: [\"*/*\",\"pods\"]: if '*/*' is present, must not specify other resources",
            ),
            (
                "resources",
                json!(["pods/*", "pods/a"]),
                "r.resources[1]: Invalid value: \"pods/a\": if 'pods/*' is present, must not specify pods/a",
            ),
            (
                "resources",
                json!(["*/a", "pods/a"]),
                "r.resources[1]: Invalid value: \"pods/a\": if '*/a' is present, must not specify pods/a",
            ),
            (
                "scope",
                json!("Here"),
                "r.scope: Unsupported value: \"Here\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
            ),
        ] {
            let mut one = good();
            one[field] = value;
            let mut causes = Causes::default();
            rule(&one, "r", Operations::All, &mut causes);
            let said: Vec<String> = causes
                .0
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            assert_eq!(said.join("; "), want);
        }
        let mut causes = Causes::default();
        let mut one = good();
        one["operations"] = json!(["DELETE"]);
        rule(&one, "r", Operations::NoDelete, &mut causes);
        assert_eq!(causes.0.len(), 1);
    }
}
