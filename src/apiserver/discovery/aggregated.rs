//! Aggregated discovery (`apidiscovery.k8s.io/v2`): everything in one document.

use serde_json::{Map, Value, json};

use super::{groups, is_namespaced, part, put_list, versions};
use crate::apiserver::registry::Resource;

/// `/api` (`core`) or `/apis` (all other groups), groups and versions most preferred first.
pub(super) fn aggregated(rows: &[&Resource], core: bool) -> Value {
    let items: Vec<Value> = groups(rows)
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(rows, group)
                .into_iter()
                .map(|version| version_document(rows, group, version))
                .collect();
            let metadata = match group {
                "" => json!({}),
                group => json!({"name": group}),
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn version_document(rows: &[&Resource], group: &str, version: &str) -> Value {
    let mut of_version: Vec<&&Resource> = rows
        .iter()
        .filter(|row| row.group == group && row.version == version)
        .collect();
    of_version.sort_by_key(|row| row.plural);
    let resources: Vec<Value> = of_version.into_iter().map(|row| resource(row)).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn resource(row: &Resource) -> Value {
    let mut document = Map::new();
    let mut put = |name: &str, value: Value| document.insert(name.to_owned(), value);
    put("resource", json!(row.plural));
    put("responseKind", kind(row.group, row.version, row.kind));
    let scope = if is_namespaced(row) {
        "Namespaced"
    } else {
        "Cluster"
    };
    put("scope", json!(scope));
    put("singularResource", json!(row.singular));
    put("verbs", json!(row.verbs));
    put_list(&mut document, "shortNames", row.short_names);
    put_list(&mut document, "categories", row.categories);
    let mut parts: Vec<_> = row
        .subresources
        .iter()
        .map(|subresource| part(row, subresource))
        .collect();
    parts.sort_by_key(|part| part.name);
    let parts: Vec<Value> = parts
        .iter()
        .map(|part| {
            json!({
                "subresource": part.name,
                "responseKind": kind(part.group, part.version, part.kind),
                "verbs": part.verbs,
            })
        })
        .collect();
    if !parts.is_empty() {
        document.insert("subresources".to_owned(), Value::Array(parts));
    }
    Value::Object(document)
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}
