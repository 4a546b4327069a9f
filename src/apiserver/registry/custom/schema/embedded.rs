//! Whole objects inside of objects (`x-kubernetes-embedded-resource`): they have a kind and a version, and
//! their metadata is as that of every object.

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

/// Removes what no metadata has from all embedded objects; returns the paths.
pub fn prune_embedded(schema: &Tree, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune(schema, object, "", &mut unknown);
    unknown
}

fn prune(schema: &Tree, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let holder = proto::schema().get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
            // The root's own is not embedded.
            if is(schema, EMBEDDED)
                && !path.is_empty()
                && let (Some(ty), Some(metadata)) = (holder, map.get_mut("metadata"))
            {
                let own = join(path, "metadata");
                let more = proto::prune(ty, metadata);
                unknown.extend(more.iter().map(|name| join(&own, name)));
            }
            for (name, member) in map.iter_mut() {
                let own = &schema["properties"][name.as_str()];
                let inner = if own.is_object() {
                    own
                } else {
                    &schema["additionalProperties"]
                };
                if inner.is_object() {
                    prune(inner, member, &join(path, name), unknown);
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for (index, item) in list.iter_mut().enumerate() {
                prune(&schema["items"], item, &at(path, index), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_inside_is_pruned_like_any() {
        let inner = json!({"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "template": inner, "list": {"type": "array", "items": inner},
            "map": {"type": "object", "additionalProperties": inner},
            "plain": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}});
        let object = |metadata: Value| json!({"apiVersion": "v1", "kind": "K", "metadata": metadata, "any": 1});
        let bad = json!({"name": "a", "x": 1, "labels": {"l": "m"}});
        let good = json!({"name": "a", "labels": {"l": "m"}});
        let mut value = json!({"metadata": {"x": 1}, "spec": {"template": object(bad.clone()),
            "list": [object(good.clone()), object(bad.clone())], "map": {"k": object(bad.clone())}, "plain": object(bad.clone())}});
        assert_eq!(
            prune_embedded(&Tree::schema(&schema), &mut value),
            [
                "spec.list[1].metadata.x",
                "spec.map.k.metadata.x",
                "spec.template.metadata.x"
            ]
        );
        let want = json!({"metadata": {"x": 1}, "spec": {"template": object(good.clone()),
            "list": [object(good.clone()), object(good.clone())], "map": {"k": object(good)}, "plain": object(bad)}});
        assert_eq!(value, want);
    }
}
