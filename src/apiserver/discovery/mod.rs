//! Discovery documents, made from the rows. Pure.

use serde_json::{Value, json};

use super::registry::Resource;

pub fn group_versions(rows: &[Resource]) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for row in rows {
        if !found.contains(&(row.group, row.version)) {
            found.push((row.group, row.version));
        }
    }
    found
}

pub fn api_versions(_advertise: &str) -> Value {
    json!({})
}

pub fn api_group_list(_rows: &[Resource]) -> Value {
    json!({})
}

pub fn api_group(_rows: &[Resource], _group: &str) -> Option<Value> {
    None
}

pub fn api_resource_list(_rows: &[Resource], _group: &str, _version: &str) -> Option<Value> {
    None
}

pub fn aggregated(_rows: &[Resource], _core: bool) -> Value {
    json!({})
}
