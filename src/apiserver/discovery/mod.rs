//! Discovery documents, made from the rows.
//!
//! Pure functions; HTTP, ETags and the choice of form are the caller's. Rows may come in any
//! order: groups, versions and resources are put in the order that clients expect.

mod aggregated;
mod legacy;
mod order;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::registry::{Resource, Scope, Subresource};

pub use self::{
    aggregated::aggregated,
    legacy::{api_group, api_group_list, api_resource_list, api_versions},
    order::{groups, versions},
};

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
