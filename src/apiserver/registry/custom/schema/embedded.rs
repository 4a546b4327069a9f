//! The metadata of objects inside a custom resource is as that of every object.

use serde_json::Value;

use super::{EMBEDDED, at, is, join};

/// Removes what no metadata has from all embedded objects; returns the paths.
pub fn prune_embedded(schema: &Value, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune(schema, object, "", &mut unknown);
    unknown
}

fn prune(schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
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
            prune_embedded(&schema, &mut value),
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
