//! Members that a schema does not know are taken away.

use serde_json::Value;

use super::{EMBEDDED, PRESERVE, Tree, at, is, is_meta, join};

/// Unknown members named at most.
const MAX_NAMED: usize = 100;

/// Removes what the schema does not know; returns the paths. The root's own metadata is kept.
pub fn prune(schema: &Tree, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_value(schema, object, "", true, &mut unknown);
    unknown
}

/// As [`prune`], of a part of an object.
pub fn prune_part(schema: &Tree, part: &mut Value) {
    prune_value(schema, part, "", false, &mut Vec::new());
}

fn prune_value(
    schema: &Tree,
    value: &mut Value,
    path: &str,
    root: bool,
    unknown: &mut Vec<String>,
) {
    match value {
        Value::Object(map) => {
            let mut rejected = Vec::new();
            for (name, member) in map.iter_mut() {
                let inner = join(path, name);
                if (root || is(schema, EMBEDDED)) && is_meta(name) {
                    continue;
                }
                let own = &schema["properties"][name.as_str()];
                let other = &schema["additionalProperties"];
                if own.is_object() {
                    prune_value(own, member, &inner, false, unknown);
                } else if other.is_object() {
                    prune_value(other, member, &inner, false, unknown);
                } else if *other != true && !is(schema, PRESERVE) {
                    rejected.push(name.clone());
                    if unknown.len() < MAX_NAMED {
                        unknown.push(inner);
                    }
                }
            }
            for name in rejected {
                map.remove(&name);
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for (index, item) in list.iter_mut().enumerate() {
                prune_value(&schema["items"], item, &at(path, index), false, unknown);
            }
        }
        _ => {}
    }
}
