//! Discovery documents, made from the rows.
//!
//! Pure functions; HTTP, ETags and the choice of form are the caller's. Rows may come in any
//! order: groups, versions and resources are put in the order that clients expect.

mod aggregated;
mod legacy;
mod order;

use std::borrow::Borrow;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::registry::{Resource, Scope, Subresource};

pub use self::legacy::api_versions;
pub(super) use self::order::{groups, versions};

/// `/apis`: every group but core, most preferred first.
pub fn api_group_list<R: Borrow<Resource>>(rows: &[R]) -> Value {
    legacy::api_group_list(&borrowed(rows))
}

/// `/apis/G`; `None` if no row has that group.
pub fn api_group<R: Borrow<Resource>>(rows: &[R], group: &str) -> Option<Value> {
    legacy::api_group(&borrowed(rows), group)
}

/// `/api/v1` and `/apis/G/V`; `None` if no row has that group and version.
pub fn api_resource_list<R: Borrow<Resource>>(
    rows: &[R],
    group: &str,
    version: &str,
) -> Option<Value> {
    legacy::api_resource_list(&borrowed(rows), group, version)
}

/// Aggregated discovery of `/api` (`core`) or of `/apis` (all other groups).
pub fn aggregated<R: Borrow<Resource>>(rows: &[R], core: bool) -> Value {
    aggregated::aggregated(&borrowed(rows), core)
}

/// Every group and version, most preferred first.
pub fn group_versions<R: Borrow<Resource>>(rows: &[R]) -> Vec<(&'static str, &'static str)> {
    let rows = borrowed(rows);
    groups(&rows)
        .into_iter()
        .flat_map(|group| {
            let versions = versions(&rows, group).into_iter();
            versions.map(move |version| (group, version))
        })
        .collect()
}

/// The table, or any selection of its rows.
pub(super) fn borrowed<R: Borrow<Resource>>(rows: &[R]) -> Vec<&Resource> {
    rows.iter().map(Borrow::borrow).collect()
}

/// Verbs of `/status` and `/scale`.
const PART_VERBS: &[&str] = &["get", "patch", "update"];

/// A subresource as discovery shows it.
pub struct Part<'a> {
    pub name: &'a str,
    pub verbs: &'a [&'a str],
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
}

/// What discovery says of a row's subresource.
pub fn part<'a>(row: &'a Resource, subresource: &Subresource) -> Part<'a> {
    match subresource {
        Subresource::Status => Part {
            name: "status",
            verbs: PART_VERBS,
            group: row.group,
            version: row.version,
            kind: row.kind,
        },
        Subresource::Scale(_) => Part {
            name: "scale",
            verbs: PART_VERBS,
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
        },
        Subresource::Special(special) => Part {
            name: special.name,
            verbs: special.verbs,
            group: special.group,
            version: special.version,
            kind: special.kind,
        },
    }
}

/// `apps/v1`, or `v1` in the core group.
pub fn group_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

fn is_namespaced(row: &Resource) -> bool {
    row.scope == Scope::Namespaced
}

/// Tells clients whether objects are stored in the same form as elsewhere: of the version that
/// is stored. `None` for kinds that are not stored.
fn storage_version_hash(rows: &[&Resource], row: &Resource) -> Option<String> {
    if !row.verbs.contains(&"watch") {
        return None;
    }
    let is_stored = |other: &&&Resource| other.storage == row.storage && other.convert.is_none();
    let stored = rows.iter().find(is_stored).copied().unwrap_or(row);
    let name = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
    let digest = Sha256::digest(name.as_bytes());
    Some(BASE64_STANDARD.encode(digest.iter().take(8).copied().collect::<Vec<u8>>()))
}

/// Adds a list, unless it is empty.
fn put_list(object: &mut Map<String, Value>, name: &str, list: &[&str]) {
    if !list.is_empty() {
        object.insert(name.to_owned(), json!(list));
    }
}

#[cfg(test)]
pub(crate) mod tests;
