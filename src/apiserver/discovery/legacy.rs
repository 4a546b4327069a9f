//! The documents of `/api`, `/apis`, `/apis/G`, `/api/v1` and `/apis/G/V`.

use serde_json::{Map, Value, json};

use super::{group_version, groups, is_namespaced, part, put_list, storage_version_hash, versions};
use crate::apiserver::registry::Resource;

/// `/api`: `advertise` is where clients of any address reach the server, `10.0.0.1:6443`.
pub fn api_versions(advertise: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [
            {"clientCIDR": "0.0.0.0/0", "serverAddress": advertise}
        ],
    })
}

/// `/apis`: every group but core, most preferred first.
pub(super) fn api_group_list(rows: &[&Resource]) -> Value {
    let named = groups(rows).into_iter().filter(|group| !group.is_empty());
    let groups: Vec<Value> = named.map(|name| Value::Object(group(rows, name))).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/G`; `None` if no row has that group.
pub(super) fn api_group(rows: &[&Resource], name: &str) -> Option<Value> {
    if !rows.iter().any(|row| row.group == name) {
        return None;
    }
    let mut document = group(rows, name);
    document.insert("kind".to_owned(), json!("APIGroup"));
    document.insert("apiVersion".to_owned(), json!("v1"));
    Some(Value::Object(document))
}

fn group(rows: &[&Resource], name: &str) -> Map<String, Value> {
    let versions: Vec<Value> = versions(rows, name)
        .into_iter()
        .map(|version| json!({"groupVersion": group_version(name, version), "version": version}))
        .collect();
    let mut group = Map::new();
    group.insert("name".to_owned(), json!(name));
    if let Some(preferred) = versions.first() {
        group.insert("preferredVersion".to_owned(), preferred.clone());
    }
    group.insert("versions".to_owned(), Value::Array(versions));
    group
}

/// `/api/v1` and `/apis/G/V`; `None` if no row has that group and version.
pub(super) fn api_resource_list(rows: &[&Resource], group: &str, version: &str) -> Option<Value> {
    let mut resources: Vec<Map<String, Value>> = rows
        .iter()
        .filter(|row| row.group == group && row.version == version)
        .flat_map(|row| resources(rows, row))
        .collect();
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": resources,
    }))
}

fn name_of(resource: &Map<String, Value>) -> &str {
    resource
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The row's entry and its subresources'.
fn resources(rows: &[&Resource], row: &Resource) -> Vec<Map<String, Value>> {
    let mut main = entry(row.plural, row.singular, row, row.kind, row.verbs);
    put_list(&mut main, "shortNames", row.short_names);
    put_list(&mut main, "categories", row.categories);
    if let Some(hash) = storage_version_hash(rows, row) {
        main.insert("storageVersionHash".to_owned(), json!(hash));
    }
    let mut all = vec![main];
    for subresource in row.subresources {
        let part = part(row, subresource);
        let name = format!("{}/{}", row.plural, part.name);
        let mut entry = entry(&name, "", row, part.kind, part.verbs);
        // Group and version are told only where they differ from the parent's.
        if (part.group, part.version) != (row.group, row.version) {
            if !part.group.is_empty() {
                entry.insert("group".to_owned(), json!(part.group));
            }
            entry.insert("version".to_owned(), json!(part.version));
        }
        all.push(entry);
    }
    all
}

fn entry(
    name: &str,
    singular: &str,
    row: &Resource,
    kind: &str,
    verbs: &[&str],
) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("name".to_owned(), json!(name));
    entry.insert("singularName".to_owned(), json!(singular));
    entry.insert("namespaced".to_owned(), json!(is_namespaced(row)));
    entry.insert("kind".to_owned(), json!(kind));
    entry.insert("verbs".to_owned(), json!(verbs));
    entry
}
