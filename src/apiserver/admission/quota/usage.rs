//! What one object counts for in a quota. Pure.

use std::collections::BTreeMap;

use proto::quantity::Quantity;
use serde_json::Value;

use crate::apiserver::{
    registry::{
        Resource,
        kinds::value::{flag, has, items, members, number, text, texts},
    },
    status::qualified,
};

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Kinds whose number has a name of its own besides `count/...`.
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// What `object` uses. Pods that have ended use nothing but their count as an object.
pub fn of(row: &Resource, object: &Value) -> Amounts {
    let name = qualified(row.group, row.plural);
    let one = Quantity::from_value(1);
    let mut used = Amounts::from([(format!("count/{name}"), one)]);
    if name == "pods" {
        if !is_over(object) {
            used.insert("pods".to_owned(), one);
            pod(object, &mut used);
        }
        return used;
    }
    if COUNTED.contains(&&*name) {
        used.insert(name.clone(), one);
    }
    match &*name {
        "services" => service(object, &mut used),
        "persistentvolumeclaims" => claim(object, &mut used),
        _ => {}
    }
    used
}

fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
}

fn service(service: &Value, used: &mut Amounts) {
    let ports = i64::try_from(items(service, "spec.ports").len()).unwrap_or_default();
    let given = |service: &Value| {
        let with = items(service, "spec.ports")
            .iter()
            .filter(|port| number(port, "nodePort").unwrap_or_default() != 0);
        i64::try_from(with.count()).unwrap_or_default()
    };
    let count = match text(service, "spec.type") {
        "NodePort" => ports,
        "LoadBalancer" => {
            used.insert("services.loadbalancers".to_owned(), Quantity::from_value(1));
            let automatic = flag(service, "spec.allocateLoadBalancerNodePorts")
                || !has(service, "spec.allocateLoadBalancerNodePorts");
            if automatic { ports } else { given(service) }
        }
        _ => return,
    };
    used.insert("services.nodeports".to_owned(), Quantity::from_value(count));
}

/// Its size, and both again by the name of its class. What it was given counts while it shrinks.
fn claim(claim: &Value, used: &mut Amounts) {
    let amount = |path: &str| Quantity::parse(text(claim, path)).ok();
    let asked = amount("spec.resources.requests.storage");
    let size = asked.max(amount("status.allocatedResources.storage"));
    let class = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"]
        .as_str()
        .unwrap_or_else(|| text(claim, "spec.storageClassName"));
    let prefix = format!("{class}.storageclass.storage.k8s.io/");
    if !class.is_empty() {
        used.insert(
            format!("{prefix}persistentvolumeclaims"),
            Quantity::from_value(1),
        );
    }
    let Some(size) = size else {
        return;
    };
    used.insert("requests.storage".to_owned(), size);
    if !class.is_empty() {
        used.insert(format!("{prefix}requests.storage"), size);
    }
}

/// Requests and limits: of the containers together, or of the greediest moment of the start.
fn pod(pod: &Value, used: &mut Amounts) {
    for (list, prefix) in [("requests", "requests."), ("limits", "limits.")] {
        for (name, amount) in effective(pod, list) {
            let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            let huge = name.starts_with("hugepages-");
            if list == "requests" && (plain || huge) {
                used.insert(name.clone(), amount);
            }
            // Extended resources have requests only.
            if plain || list == "requests" {
                used.insert(format!("{prefix}{name}"), amount);
            }
        }
    }
}

fn effective(pod: &Value, list: &str) -> Amounts {
    let amounts = |holder: &Value, path: &str| -> Amounts {
        members(holder, path)
            .into_iter()
            .flatten()
            .filter_map(|(name, amount)| {
                let amount = match amount {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                Some((name.clone(), Quantity::parse(&amount).ok()?))
            })
            .collect()
    };
    let path = format!("resources.{list}");
    let mut sum = Amounts::new();
    for container in items(pod, "spec.containers") {
        add(&mut sum, &amounts(container, &path));
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in items(pod, "spec.initContainers") {
        let own = amounts(container, &path);
        if text(container, "restartPolicy") == "Always" {
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, &own);
            raise(&mut peak, &moment);
        }
    }
    add(&mut sum, &sidecars);
    raise(&mut sum, &peak);
    let overhead = amounts(pod, "spec.overhead");
    if list == "requests" {
        add(&mut sum, &overhead);
    } else {
        // A limit that nobody set stays unset.
        for (name, amount) in overhead {
            if let Some(sum) = sum.get_mut(&name) {
                *sum += amount;
            }
        }
    }
    sum
}

pub fn add(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        to.entry(name.clone())
            .and_modify(|sum| *sum += *amount)
            .or_insert(*amount);
    }
}

/// To the greater of both, amount by amount.
pub fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let held = to.entry(name.clone()).or_insert(*amount);
        *held = (*held).max(*amount);
    }
}

/// What a quota asks every container of a pod to say, and which containers do not:
/// `limits.cpu for: a,b; requests.memory for: a`. Empty if all is said.
pub fn unsaid(quota: &[String], pod: &Value) -> String {
    let mut parts = Vec::new();
    for name in quota {
        let (list, resource) = match name.split_once('.') {
            Some(("limits", resource)) => ("limits", resource),
            Some(("requests", resource)) => ("requests", resource),
            _ => ("requests", name.as_str()),
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        let silent: Vec<&str> = ["spec.containers", "spec.initContainers"]
            .into_iter()
            .flat_map(|path| items(pod, path))
            .filter(|container| !has(container, &format!("resources.{list}.{resource}")))
            .map(|container| text(container, "name"))
            .collect();
        if !silent.is_empty() {
            parts.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    parts.join("; ")
}

/// Whether a quota looks at `object` at all: one with scopes looks at pods only.
pub fn in_scope(quota: &Value, row: &Resource, object: &Value) -> bool {
    let scopes = texts(quota, "spec.scopes");
    let rules = items(quota, "spec.scopeSelector.matchExpressions");
    if scopes.is_empty() && rules.is_empty() {
        return true;
    }
    if !row.group.is_empty() || row.plural != "pods" {
        return false;
    }
    scopes
        .iter()
        .all(|scope| matches_scope(object, scope, "Exists", &[]))
        && rules.iter().all(|rule| {
            let values = texts(rule, "values");
            matches_scope(
                object,
                text(rule, "scopeName"),
                text(rule, "operator"),
                &values,
            )
        })
}

fn matches_scope(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let ends = number(pod, "spec.activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = text(pod, "spec.priorityClassName");
            match operator {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    ["spec.containers", "spec.initContainers"]
        .into_iter()
        .flat_map(|path| items(pod, path))
        .all(|container| {
            ["requests", "limits"].iter().all(|list| {
                members(container, &format!("resources.{list}")).is_none_or(|all| {
                    !all.keys()
                        .any(|name| matches!(name.as_str(), "cpu" | "memory"))
                })
            })
        })
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses =
        |term: &Value| !items(term, "namespaces").is_empty() || has(term, "namespaceSelector");
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let path = format!("spec.affinity.{kind}");
        items(
            pod,
            &format!("{path}.requiredDuringSchedulingIgnoredDuringExecution"),
        )
        .iter()
        .any(crosses)
            || items(
                pod,
                &format!("{path}.preferredDuringSchedulingIgnoredDuringExecution"),
            )
            .iter()
            .any(|term| crosses(&term["podAffinityTerm"]))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::admission::testing::row;

    #[test]
    fn what_objects_use() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu, "example.com/x": "2"}, "limits": {"cpu": "1"}}});
        let pod = json!({"spec": {"containers": [container("100m"), container("200m")],
            "initContainers": [container("250m")]}});
        let ended = json!({"status": {"phase": "Failed"}, "spec": pod["spec"]});
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        for (plural, object, want) in [
            (
                "pods",
                &pod,
                "count/pods=1 cpu=300m limits.cpu=2 pods=1 requests.cpu=300m requests.example.com/x=4",
            ),
            ("pods", &ended, "count/pods=1"),
            (
                "services",
                &service,
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2",
            ),
            (
                "persistentvolumeclaims",
                &json!({"spec": {"storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}}),
                "count/persistentvolumeclaims=1 \
                 local.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
                 local.storageclass.storage.k8s.io/requests.storage=1Gi \
                 persistentvolumeclaims=1 requests.storage=1Gi",
            ),
            (
                "persistentvolumeclaims",
                &json!({"spec": {"storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}},
                    "status": {"allocatedResources": {"storage": "2Gi"}}}),
                "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=2Gi",
            ),
            ("replicasets", &json!({}), "count/replicasets.apps=1"),
            ("secrets", &json!({}), "count/secrets=1 secrets=1"),
        ] {
            let used: Vec<String> = of(row(plural), object)
                .iter()
                .map(|(name, amount)| format!("{name}={amount}"))
                .collect();
            assert_eq!(used.join(" "), want);
        }
        assert_eq!(
            unsaid(
                &[
                    "limits.memory".to_owned(),
                    "cpu".to_owned(),
                    "pods".to_owned()
                ],
                &pod
            ),
            "limits.memory for: c,c,c"
        );
    }

    #[test]
    fn scopes() {
        let long = json!({"spec": {"containers": [{"name": "c"}], "priorityClassName": "high"}});
        let short = json!({"spec": {"activeDeadlineSeconds": 5, "containers": [
            {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let by_class = |operator: &str| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}}})
        };
        for (quota, of_long, of_short) in [
            (json!({}), true, true),
            (json!({"spec": {"scopes": ["Terminating"]}}), false, true),
            (
                json!({"spec": {"scopes": ["NotTerminating", "BestEffort"]}}),
                true,
                false,
            ),
            (json!({"spec": {"scopes": ["NotBestEffort"]}}), false, true),
            (by_class("In"), true, false),
            (by_class("NotIn"), false, true),
        ] {
            assert_eq!(in_scope(&quota, row("pods"), &long), of_long, "{quota}");
            assert_eq!(in_scope(&quota, row("pods"), &short), of_short, "{quota}");
        }
    }
}
