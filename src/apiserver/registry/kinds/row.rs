//! Short forms for writing rows.

use serde_json::Value;

use super::{cells, value::text};
use crate::apiserver::registry::{
    Column, Field, PLAIN, Resource, ScalePaths, Scope, SpecialSubresource, Subresource,
};

pub const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
pub const NO_COLLECTION_DELETE: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
pub const CREATE: &[&str] = &["create"];
pub const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

/// A row with all verbs, no subresource, the Age column and nothing of its own.
pub const fn namespaced(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    type_name: &'static str,
) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        verbs: ALL,
        subresources: &[],
        type_name,
        storage: plural,
        columns: &[AGE],
        fields: &[],
        behaviour: PLAIN,
        convert: None,
        custom: None,
    }
}

pub const fn cluster(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    type_name: &'static str,
) -> Resource {
    Resource {
        scope: Scope::Cluster,
        ..namespaced(group, version, kind, plural, singular, type_name)
    }
}

/// A text column.
pub const fn column(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        name,
        kind: "string",
        priority: 0,
        cell,
    }
}

/// A column of whole numbers.
pub const fn count(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        kind: "integer",
        ..column(name, cell)
    }
}

/// A text column shown with `-o wide` only.
pub const fn wide(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        priority: 1,
        ..column(name, cell)
    }
}

pub const AGE: Column = column("Age", cells::age);

pub const fn field(label: &'static str, value: fn(&Value) -> String) -> Field {
    Field { label, value }
}

/// For a field whose label is its path: `field("spec.nodeName", path!("spec.nodeName"))`.
pub fn read(object: &Value, path: &str) -> String {
    match super::value::at(object, path) {
        Some(Value::String(value)) => value.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    }
}

/// A boolean field: absent reads `false`.
pub fn read_flag(object: &Value, path: &str) -> String {
    super::value::flag(object, path).to_string()
}

/// A text that may be absent.
pub fn cell(object: &Value, path: &str) -> Value {
    Value::from(text(object, path))
}

pub const SCALE: Subresource = Subresource::Scale(&ScalePaths {
    spec_replicas: "/spec/replicas",
    status_replicas: "/status/replicas",
    selector: "/spec/selector",
});

pub const fn special(
    name: &'static str,
    verbs: &'static [&'static str],
    group: &'static str,
    version: &'static str,
    kind: &'static str,
) -> SpecialSubresource {
    SpecialSubresource {
        name,
        verbs,
        group,
        version,
        kind,
    }
}
