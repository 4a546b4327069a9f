//! Whole objects inside of objects (`x-kubernetes-embedded-resource`).

use serde_json::{Map, Value};

use super::{EMBEDDED, Tree, at, is, join};
use crate::apiserver::registry::{Causes, kinds::names};

/// What is wrong with the kind and version of every embedded object.
pub fn embedded(schema: &Tree, value: &Value, path: &str, causes: &mut Causes) {
    if causes.is_full() {
        return;
    }
    match value {
        Value::Object(map) => {
            if is(schema, EMBEDDED) {
                one(map, path, causes);
            }
            for (name, member) in map {
                let own = &schema["properties"][name.as_str()];
                let other = &schema["additionalProperties"];
                if own.is_object() {
                    embedded(own, member, &join(path, name), causes);
                } else if other.is_object() {
                    embedded(other, member, &format!("{path}[{name}]"), causes);
                }
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                embedded(&schema["items"], item, &at(path, index), causes);
            }
        }
        _ => {}
    }
}

fn one(map: &Map<String, Value>, path: &str, causes: &mut Causes) {
    for name in ["apiVersion", "kind"] {
        let path = join(path, name);
        match map.get(name) {
            None => causes.required(path, ""),
            Some(Value::String(text)) if text.is_empty() => {
                causes.invalid(path, text, "must not be empty");
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    causes.invalid(path, text, &detail);
                }
            }
            Some(Value::String(text)) => {
                let problems = names::dns_label_1035(&text.to_lowercase());
                if !problems.is_empty() {
                    let detail = format!(
                        "may have mixed case, but should otherwise match: {}",
                        problems.join(",")
                    );
                    causes.invalid(path, text, &detail);
                }
            }
            Some(other) => causes.invalid(path, other, "must be a string"),
        }
    }
    if let Some(metadata) = map.get("metadata").filter(|one| !one.is_object()) {
        let path = join(path, "metadata");
        causes.invalid(path, metadata, "must be an object");
    }
}
