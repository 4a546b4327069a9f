//! Resource lists: quantities that parse, and requests within limits.

use std::collections::BTreeSet;

use serde_json::Value;

use super::claims;
use crate::apiserver::registry::{
    Causes,
    kinds::{names, value::members},
};
use proto::quantity::Quantity;

pub const FORM: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const HUGE_PAGES: &str = "hugepages-";
/// What is counted, beside extended resources.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Names without a domain that mean something somewhere.
const STANDARD: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Whose resources a list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Container,
    Pod,
}

/// One of Kubernetes itself, as opposed to an extended one.
fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

/// Whether a node may promise more of it than it has.
fn allows_overcommit(resource: &str) -> bool {
    is_native(resource) && !resource.starts_with(HUGE_PAGES)
}

/// No parts of what comes in whole pieces are in the list `object.<name>`.
pub fn whole(object: &Value, name: &str, path: &str, causes: &mut Causes) {
    for (resource, amount) in members(object, name).into_iter().flatten() {
        let counted = COUNTED.contains(&&**resource)
            || !is_native(resource) && !resource.starts_with("requests.");
        let parsed = Quantity::parse(amount.as_str().unwrap_or_default());
        if counted && parsed.is_ok_and(|amount| amount.milli() % 1000 != 0) {
            let path = format!("{path}.{name}[{resource}]");
            causes.invalid(path, amount, "must be an integer");
        }
    }
}

/// Every quantity in the list `object.<name>` parses and is not negative.
pub fn quantities(object: &Value, name: &str, path: &str, causes: &mut Causes) {
    for (resource, amount) in members(object, name).into_iter().flatten() {
        let path = format!("{path}.{name}[{resource}]");
        let shown = amount
            .as_str()
            .map_or_else(|| amount.to_string(), str::to_owned);
        match Quantity::parse(&shown) {
            Err(_) => causes.invalid(path, amount, FORM),
            Ok(quantity) if quantity.is_negative() => {
                causes.invalid(path, shown, "must be greater than or equal to 0");
            }
            Ok(_) => {}
        }
    }
}

/// A container's `resources` at `path`, in a pod with these claims.
pub fn validate(resources: &Value, of_pod: &BTreeSet<&str>, path: &str, causes: &mut Causes) {
    requirements(resources, Owner::Container, path, causes);
    claims::used(resources, of_pod, path, causes);
}

/// `limits` and `requests`.
pub fn requirements(resources: &Value, owner: Owner, path: &str, causes: &mut Causes) {
    let (mut pages, mut others) = (false, false);
    for list in ["limits", "requests"] {
        for (name, _) in members(resources, list).into_iter().flatten() {
            if causes.is_full() {
                return;
            }
            named(name, owner, &format!("{path}.{list}[{name}]"), causes);
            pages |= name.starts_with(HUGE_PAGES);
            others |= matches!(&**name, "cpu" | "memory");
        }
        quantities(resources, list, path, causes);
        whole(resources, list, path, causes);
        divisible(resources, list, path, causes);
    }
    for (name, request) in members(resources, "requests").into_iter().flatten() {
        if causes.is_full() {
            return;
        }
        // Not by a path: names have dots.
        let limit = resources["limits"][name.as_str()]
            .as_str()
            .unwrap_or_default();
        let shown = request.as_str().unwrap_or_default();
        let asked = format!("{path}.requests");
        if limit.is_empty() && !allows_overcommit(name) {
            let detail = "Limit must be set for non overcommitable resources";
            causes.required(format!("{path}.limits"), detail);
        }
        let (Ok(request), Ok(most)) = (Quantity::parse(shown), Quantity::parse(limit)) else {
            continue;
        };
        if request != most && !allows_overcommit(name) {
            let detail = format!("must be equal to {name} limit of {limit}");
            causes.invalid(asked, shown, &detail);
        } else if request > most {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            causes.invalid(asked, shown, &detail);
        }
    }
    if pages && !others {
        causes.forbidden(path, "HugePages require cpu or memory");
    }
}

fn named(name: &str, owner: Owner, path: &str, causes: &mut Causes) {
    let wrong = names::qualified_name(name);
    let fine = wrong.is_empty();
    names::report(wrong, name, path, causes);
    let plain = !name.contains('/');
    let pages = name.starts_with(HUGE_PAGES);
    let standard = !plain || pages || STANDARD.contains(&name);
    if fine && !standard {
        let detail = "must be a standard resource type or fully qualified";
        causes.invalid(path, name, detail);
    }
    match owner {
        Owner::Container if plain => {
            if !pages && !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
                causes.invalid(path, name, "must be a standard resource for containers");
            }
        }
        Owner::Container => {
            if !is_native(name) && !is_extended(name) {
                let detail = "doesn't follow extended resource name standard";
                causes.invalid(path, name, detail);
            }
        }
        Owner::Pod => {
            if fine && standard && !pages && !matches!(name, "cpu" | "memory") {
                causes.unsupported(path, name, &["cpu", HUGE_PAGES, "memory"]);
            }
        }
    }
}

/// Of a domain of its own, and still a name when a quota counts its requests.
fn is_extended(name: &str) -> bool {
    let counted = format!("requests.{name}");
    !name.starts_with("requests.") && names::qualified_name(&counted).is_empty()
}

/// Pages come in whole ones.
fn divisible(resources: &Value, list: &str, path: &str, causes: &mut Causes) {
    for (name, amount) in members(resources, list).into_iter().flatten() {
        let Some(size) = name.strip_prefix(HUGE_PAGES) else {
            continue;
        };
        let Ok(amount) = Quantity::parse(amount.as_str().unwrap_or_default()) else {
            continue;
        };
        let size = Quantity::parse(size).map_or(0, Quantity::value);
        if size <= 0 || amount.value() % size != 0 {
            let shown = amount.canonical();
            let detail = format!("{shown} is not positive integer multiple of {name}");
            causes.invalid(format!("{path}.{list}[{name}]"), &shown, &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_that_nothing_can_have() {
        for (resources, want) in [
            (
                json!({"requests": {"cpu": "1m"}, "limits": {"cpu": "1m"}}),
                vec![],
            ),
            (json!({"limits": {"a.b/c": "2"}}), vec![]),
            (
                json!({"limits": {"a.b/c": "1500m"}}),
                vec!["must be an integer"],
            ),
            (
                json!({"requests": {"a.b/c": "1"}}),
                vec!["Limit must be set for non overcommitable resources"],
            ),
            (
                json!({"requests": {"a.b/c": "1"}, "limits": {"a.b/c": "2"}}),
                vec!["must be equal to a.b/c limit of 2"],
            ),
            (
                json!({"requests": {"hugepages-2Mi": "2Mi"}, "limits": {"hugepages-2Mi": "4Mi"}}),
                vec!["must be equal to hugepages-2Mi limit of 4Mi"],
            ),
            (
                json!({"requests": {"memory": "2Mi"}, "limits": {"memory": "1Mi"}}),
                vec!["must be less than or equal to memory limit of 1Mi"],
            ),
        ] {
            let mut causes = Causes::default();
            validate(
                &resources,
                &BTreeSet::new(),
                "spec.containers[0].resources",
                &mut causes,
            );
            let said = format!("{causes:?}");
            for want in &want {
                assert!(said.contains(want), "{resources}: {said}");
            }
            assert_eq!(causes.0.is_empty(), want.is_empty(), "{resources}: {said}");
        }
    }
}
