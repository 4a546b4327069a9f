//! Strategic merge patch: JSON merge patch that merges lists by key, with directives.
//!
//! Source: the description of strategic merge patch in the Kubernetes API conventions; keys and
//! strategies come from the schema table.

use serde_json::{Map, Value};

use super::{Error, Field, Shape, Type};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// `original` with `patch` applied.
pub fn strategic_merge(ty: &'static Type, original: &Value, patch: &Value) -> Result<Value, Error> {
    let patch = patch
        .as_object()
        .ok_or_else(|| wrong("", "a patch must be an object"))?;
    let mut merged = original.as_object().cloned().unwrap_or_default();
    merge_map(&Members::Of(ty), &mut merged, patch, "")?;
    Ok(Value::Object(merged))
}

/// How the members of a map are looked up: those of a type, or all of one shape.
enum Members {
    Of(&'static Type),
    All(&'static Shape),
    Plain,
}

impl Members {
    fn of(shape: &'static Shape) -> Self {
        match shape {
            Shape::Message(_) => shape.message().map_or(Self::Plain, Self::Of),
            Shape::Map(element) => Self::All(element),
            _ => Self::Plain,
        }
    }

    fn field(&self, name: &str) -> Option<&'static Field> {
        match self {
            Self::Of(ty) => ty.field(name),
            _ => None,
        }
    }

    fn inner(&self, name: &str) -> Self {
        match self {
            Self::Of(ty) => ty
                .field(name)
                .map_or(Self::Plain, |field| Self::of(&field.shape)),
            Self::All(shape) => Self::of(shape),
            Self::Plain => Self::Plain,
        }
    }
}

fn merge_map(
    members: &Members,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
) -> Result<(), Error> {
    match patch
        .get(PATCH)
        .map(|directive| directive.as_str().unwrap_or_default())
    {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(wrong(path, &format!("unknown patch directive {other:?}"))),
    }
    if let Some(keys) = patch.get(RETAIN) {
        let keys: Vec<&str> = keys
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        target.retain(|name, _| keys.contains(&name.as_str()));
    }
    for (name, change) in patch {
        let inner_path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            let gone = change
                .as_array()
                .ok_or_else(|| wrong(&inner_path, "must be a list"))?;
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        } else if !name.starts_with('$') {
            merge_member(members, target, name, change, &inner_path)?;
        }
    }
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix(ORDER) {
            let order = order
                .as_array()
                .ok_or_else(|| wrong(path, "an element order must be a list"))?;
            let key = members.field(list).map_or("", |field| field.merge_key);
            if let Some(Value::Array(items)) = target.get_mut(list) {
                sort_by_order(items, order, key);
            }
        }
    }
    Ok(())
}

fn merge_member(
    members: &Members,
    target: &mut Map<String, Value>,
    name: &str,
    change: &Value,
    path: &str,
) -> Result<(), Error> {
    match change {
        Value::Null => {
            target.remove(name);
        }
        Value::Object(patch) => {
            let current = target
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
            if !current.is_object() {
                *current = Value::Object(Map::new());
            }
            if let Value::Object(current) = current {
                merge_map(&members.inner(name), current, patch, path)?;
            }
        }
        Value::Array(patch) => match members.field(name) {
            Some(field) if field.merge => {
                let current = target
                    .entry(name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                if !current.is_array() {
                    *current = Value::Array(Vec::new());
                }
                if let Value::Array(current) = current {
                    merge_list(field, current, patch, path)?;
                }
            }
            _ => {
                target.insert(name.to_owned(), change.clone());
            }
        },
        scalar => {
            target.insert(name.to_owned(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_list(
    field: &'static Field,
    current: &mut Vec<Value>,
    patch: &[Value],
    path: &str,
) -> Result<(), Error> {
    let element: &'static Shape = match &field.shape {
        Shape::List(element) | Shape::NamedList(element) => element,
        _ => return Err(wrong(path, "is not a list")),
    };
    let Some(ty) = element.message() else {
        // A set of scalars: new ones are added.
        for item in patch {
            if !current.contains(item) {
                current.push(item.clone());
            }
        }
        return Ok(());
    };
    let replaces = |item: &Value| item.get(PATCH).and_then(Value::as_str) == Some("replace");
    if patch.iter().any(replaces) {
        *current = patch
            .iter()
            .filter(|item| !replaces(item) || item.as_object().is_some_and(|map| map.len() > 1))
            .map(clean)
            .collect();
        return Ok(());
    }
    let key = field.merge_key;
    for item in patch {
        let change = item
            .as_object()
            .ok_or_else(|| wrong(path, "its elements must be objects"))?;
        let id = change.get(key).ok_or_else(|| {
            wrong(
                path,
                &format!("map: does not contain declared merge key: {key}"),
            )
        })?;
        let found = current.iter().position(|old| old.get(key) == Some(id));
        if change.get(PATCH).and_then(Value::as_str) == Some("delete") {
            current.retain(|old| old.get(key) != Some(id));
            continue;
        }
        let position = match found {
            Some(position) => position,
            None => {
                current.push(Value::Object(Map::new()));
                current.len() - 1
            }
        };
        if let Some(Value::Object(old)) = current.get_mut(position) {
            merge_map(&Members::Of(ty), old, change, path)?;
        }
    }
    Ok(())
}

/// Elements that the order names stand in that order; the others keep their place relative to the
/// ones before them.
fn sort_by_order(items: &mut Vec<Value>, order: &[Value], key: &str) {
    let rank = |item: &Value| {
        order.iter().position(|wanted| match wanted.get(key) {
            Some(wanted) if !key.is_empty() => item.get(key) == Some(wanted),
            _ => item == wanted,
        })
    };
    let mut named: Vec<(usize, Value)> = items
        .iter()
        .filter_map(|item| Some((rank(item)?, item.clone())))
        .collect();
    named.sort_by_key(|(rank, _)| *rank);
    let mut named = named.into_iter().map(|(_, item)| item);
    for item in items.iter_mut() {
        if rank(item).is_some()
            && let Some(next) = named.next()
        {
            *item = next;
        }
    }
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
        .map(|(name, value)| (name.clone(), clean(value)))
        .collect()
}

fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        other => other.clone(),
    }
}

fn wrong(path: &str, reason: &str) -> Error {
    Error::Patch {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    #[test]
    fn directives_and_merge_keys() {
        let pod = schema().get("io.k8s.api.core.v1.Pod").unwrap();
        let original = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}, "spec": {
            "containers": [{"name": "a", "image": "1", "args": ["p", "q"]}, {"name": "b", "image": "1"}],
            "tolerations": [{"key": "k"}],
            "volumes": [{"name": "v", "emptyDir": {}}]}});
        for (patch, pointer, want) in [
            (
                json!({"spec": {"containers": [{"name": "b", "image": "2"}]}}),
                "/spec/containers",
                json!([{"name": "a", "image": "1", "args": ["p", "q"]}, {"name": "b", "image": "2"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": ["r"]}]}}),
                "/spec/containers/0/args",
                json!(["r"]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                "/spec/containers",
                json!([{"name": "b", "image": "1"}]),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
                "/spec/containers",
                json!([{"name": "c"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                "/spec/containers/0/name",
                json!("b"),
            ),
            (
                json!({"spec": {"tolerations": [{"key": "z"}]}}),
                "/spec/tolerations",
                json!([{"key": "z"}]),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
                "/spec/volumes/0",
                json!({"name": "v", "hostPath": {"path": "/"}}),
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
                "/metadata/finalizers",
                json!(["b", "c"]),
            ),
            (
                json!({"metadata": {"labels": {"x": null}}}),
                "/metadata/labels",
                json!({"y": "2"}),
            ),
            (
                json!({"metadata": {"labels": {"$patch": "replace", "z": "3"}}}),
                "/metadata/labels",
                json!({"z": "3"}),
            ),
        ] {
            let merged = strategic_merge(pod, &original, &patch).unwrap();
            assert_eq!(merged.pointer(pointer), Some(&want), "{patch}");
        }
        let no_key = json!({"spec": {"containers": [{"image": "2"}]}});
        assert!(strategic_merge(pod, &original, &no_key).is_err());
    }
}
