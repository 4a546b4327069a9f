//! Structural schemas at work: pruning, defaults and validation. Pure.
//!
//! A schema is kept as the JSON it was written in; what may stand in it was checked by `structure.rs`
//! when its definition was taken.
//!
//! Always true: the work is linear in the object, or counted ([`Causes::spend`]) where a schema has
//! alternatives; defaults make an object grow by a bounded amount of memory.
//!
//! [`Causes::spend`]: crate::apiserver::registry::Causes::spend

mod defaults;
mod embedded;
mod prune;
mod strings;
mod structure;
mod validate;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub use defaults::default;
pub use embedded::prune_embedded;
pub use prune::prune;
pub use structure::check_structure;
pub use validate::validate;

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
pub const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const LIST_TYPE: &str = "x-kubernetes-list-type";
/// Paths are cut here: a member's name can be as long as the body, and stands in all paths below.
const MAX_PATH: usize = 1024;

fn is(schema: &Value, flag: &str) -> bool {
    schema[flag] == true
}

/// Members that every object with a kind has.
fn is_meta(name: &str) -> bool {
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
    if is(schema, "nullable") {
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if is(schema, PRESERVE) {
        // With a type, kubectl would refuse members that are null.
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if is(schema, INT_OR_STRING) {
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
