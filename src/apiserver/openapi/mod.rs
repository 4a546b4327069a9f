//! OpenAPI documents, made on request from the rows and the schema table.
//!
//! Nothing is kept: the caller caches the bytes it serves. Descriptions of fields are not in the
//! schema table and so are not here. What clients really read is: the schemas with their
//! `x-kubernetes-*` extensions, the `fieldValidation` parameter and content types of PATCH, and
//! the group, version and kind of operations and schemas.

mod gnostic;
mod operation;
mod parameters;
mod paths;
mod schemas;
mod words;

use std::borrow::Borrow;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::schemas::{Kinds, Schemas};
use super::{
    discovery::{borrowed, group_version, group_versions, part},
    registry::Resource,
};

pub use self::gnostic::v2_protobuf;

/// Content-Type of the answer in protobuf. Clients ask with `v2@v1.0`, but no media type may hold an
/// `@`: kubectl refuses an answer that repeats it.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The two shapes of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

/// `/openapi/v3`: where each group-version's document is, with its hash.
pub fn v3_index<R: Borrow<Resource>>(rows: &[R]) -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions(rows) {
        let path = base_path(group, version);
        let hash = v3_hash(rows, group, version);
        let url = format!("/openapi/v3{path}?hash={hash}");
        let name = path.trim_start_matches('/').to_owned();
        paths.insert(name, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// Names the content of a group-version's document without making it: it changes with the rows
/// and with the program's version.
pub fn v3_hash<R: Borrow<Resource>>(rows: &[R], group: &str, version: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    for row in of_version(&borrowed(rows), group, version) {
        digest.update(format!(
            "\n{} {} {} {:?} {:?}",
            row.plural, row.kind, row.type_name, row.scope, row.verbs
        ));
        if let Some(custom) = row.custom {
            digest.update(format!(" {} {}", custom.definition, custom.made_of));
        }
        for subresource in row.subresources {
            let part = part(row, subresource);
            digest.update(format!(
                " {} {:?} {}/{} {}",
                part.name, part.verbs, part.group, part.version, part.kind
            ));
        }
    }
    let bytes = digest.finalize();
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// One group-version's document; without rows of that group-version, its paths are empty.
pub fn v3<R: Borrow<Resource>>(rows: &[R], group: &str, version: &str) -> Value {
    let rows = borrowed(rows);
    let kinds = Kinds::of(&rows);
    let mut schemas = Schemas::new(Form::V3, &kinds);
    let mut paths = Map::new();
    for row in of_version(&rows, group, version) {
        paths::add(row, &mut schemas, &mut paths);
    }
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas.finish()},
    })
}

/// The whole API in one document.
pub fn v2<R: Borrow<Resource>>(rows: &[R]) -> Value {
    let rows = borrowed(rows);
    let kinds = Kinds::of(&rows);
    let mut schemas = Schemas::new(Form::V2, &kinds);
    let mut paths = Map::new();
    for row in rows {
        paths::add(row, &mut schemas, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": schemas.finish(),
    })
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.37.0"})
}

fn of_version<'a>(
    rows: &'a [&Resource],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Resource> {
    rows.iter()
        .copied()
        .filter(move |row| row.group == group && row.version == version)
}

/// `/apis/apps/v1`, or `/api/v1`.
fn base_path(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("/{prefix}/{}", group_version(group, version))
}

#[cfg(test)]
mod tests;
