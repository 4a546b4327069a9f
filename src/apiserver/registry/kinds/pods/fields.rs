//! References to fields of the pod and to resources of its containers.

use proto::quantity::Quantity;
use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{names, value::text},
};

/// Who refers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Environment,
    Volume,
}

const IN_ENVIRONMENT: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const IN_VOLUME: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// Fields with a name at all; not all of them can be referred to everywhere.
const LABELS: [&str; 15] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.host",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTES: [&str; 13] = [
    "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

/// A `fieldRef` (defaulted) at `path`.
pub fn field(reference: &Value, from: From, path: &str, causes: &mut Causes) {
    let (version, field) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    let own = format!("{path}.fieldPath");
    if version.is_empty() {
        return causes.required(format!("{path}.apiVersion"), "");
    }
    if field.is_empty() {
        return causes.required(own, "");
    }
    let mut unknown = |why: String| {
        let detail = format!("error converting fieldPath: {why}");
        causes.invalid(&own, field, &detail);
    };
    if version != "v1" {
        return unknown(format!("unsupported pod version: {version}"));
    }
    match subscript(field) {
        Some(("metadata.labels", key)) => {
            names::report(names::qualified_name(key), key, path, causes);
        }
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            names::report(names::qualified_name(&key), &key, path, causes);
        }
        Some(_) => unknown(format!("field label does not support subscript: {field}")),
        None if !LABELS.contains(&field) => {
            unknown(format!("field label not supported: {field}"));
        }
        None => {
            let known: &[&str] = match from {
                From::Environment => &IN_ENVIRONMENT,
                From::Volume => &IN_VOLUME,
            };
            let field = match field {
                "spec.host" => "spec.nodeName",
                field => field,
            };
            if !known.contains(&field) {
                causes.unsupported(own, field, known);
            }
        }
    }
}

/// `path['key']`, taken apart.
fn subscript(field: &str) -> Option<(&str, &str)> {
    let (path, key) = field.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, key))
}

/// A `resourceFieldRef` at `path`.
pub fn resource(reference: &Value, from: From, path: &str, causes: &mut Causes) {
    let resource = text(reference, "resource");
    let pages = ["limits.hugepages-", "requests.hugepages-"];
    let of_pages = pages.iter().any(|prefix| resource.starts_with(prefix));
    if from == From::Volume && text(reference, "containerName").is_empty() {
        causes.required(format!("{path}.containerName"), "");
    } else if resource.is_empty() {
        causes.required(format!("{path}.resource"), "");
    } else if !RESOURCES.contains(&resource) && !of_pages {
        causes.unsupported(format!("{path}.resource"), resource, &RESOURCES);
    }
    let divisor = match &reference["divisor"] {
        Value::String(divisor) => divisor.clone(),
        Value::Number(divisor) => divisor.to_string(),
        _ => return,
    };
    let own = format!("{path}.divisor");
    let Ok(divisor) = Quantity::parse(&divisor) else {
        return causes.invalid(own, divisor, super::resources::FORM);
    };
    let (known, what): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (&BYTES, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (&BYTES, "local ephemeral storage")
        }
        _ if of_pages => (&BYTES, "hugepages"),
        _ => return,
    };
    if !divisor.is_zero() && !known.contains(&&*divisor.canonical()) {
        let all = match what {
            "cpu" => known.join(" and "),
            _ => known.join(", "),
        };
        let detail = format!("only divisor's values {all} are supported with the {what} resource");
        causes.invalid(own, resource, &detail);
    }
}
