//! Structural schemas at work: pruning, defaults and validation. Pure.
//!
//! A schema is kept as a [`Tree`]; what may stand in it was checked by `definition/` when its
//! definition was taken. What is as it was before an update is not held against it (`correlate.rs`).
//!
//! Always true: the work is linear in the object, or counted ([`Causes::spend`]) where a schema has
//! alternatives; defaults make an object grow by a bounded amount of memory.
//!
//! [`Causes::spend`]: crate::apiserver::registry::Causes::spend

mod correlate;
mod defaults;
mod embedded;
mod lists;
mod prune;
mod strings;
mod tree;
mod validate;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub use correlate::{Items, member, same};
pub use defaults::default;
pub use embedded::{embedded, prune_embedded};
pub use lists::unique;
pub use prune::{prune, prune_part};
pub use strings::compiled;
pub use tree::Tree;
pub use validate::{check, validate};

pub const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
pub const EMBEDDED: &str = "x-kubernetes-embedded-resource";
pub const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
pub const LIST_TYPE: &str = "x-kubernetes-list-type";
pub const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
/// Paths are cut here: a member's name can be as long as the body, and stands in all paths below.
pub const MAX_PATH: usize = 1024;

fn is(schema: &Tree, flag: &str) -> bool {
    schema[flag] == true
}

/// Members that every object with a kind has.
pub fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

fn join(path: &str, name: &str) -> String {
    if path.len() + name.len() > MAX_PATH {
        let mut end = MAX_PATH.min(path.len());
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        return path[..end].to_owned();
    }
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

fn at(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The schema as OpenAPI 2 may have it, for clients that check with it: no defaults, and nothing
/// below a place where anything may stand.
pub fn for_v2(schema: &Value) -> Value {
    let Value::Object(map) = schema else {
        return schema.clone();
    };
    let mut out = map.clone();
    for name in ["default", "allOf", "anyOf", "oneOf", "not", "nullable"] {
        out.remove(name);
    }
    let is = |flag: &str| schema[flag] == true;
    if is("nullable") {
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if is(PRESERVE) {
        // With a type, kubectl would refuse members that are null.
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if is(INT_OR_STRING) {
        out.remove("type");
    }
    if let Some(properties) = out.get_mut("properties").and_then(Value::as_object_mut) {
        for inner in properties.values_mut() {
            *inner = for_v2(inner);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = out.get_mut(name).filter(|inner| inner.is_object()) {
            *inner = for_v2(inner);
        }
    }
    Value::Object(out)
}

/// A schema that takes everything.
pub fn anything() -> Value {
    json!({"type": "object", PRESERVE: true})
}
