//! Reading and changing JSON values by dotted path.
//!
//! Used by every kind's functions. A `null` counts as absent; a missing member or one of another
//! type reads as empty, because types are checked before any of this runs.

use serde_json::{Map, Value};

/// The member at `path` (`spec.template.spec`); map keys with dots cannot be named this way.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(value, |value, key| value.get(key))
        .filter(|value| !value.is_null())
}

pub fn at_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.')
        .try_fold(value, |value, key| value.get_mut(key))
        .filter(|value| !value.is_null())
}

pub fn has(value: &Value, path: &str) -> bool {
    at(value, path).is_some()
}

/// A string; empty when absent.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

pub fn number(value: &Value, path: &str) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// A boolean; false when absent.
pub fn flag(value: &Value, path: &str) -> bool {
    at(value, path).and_then(Value::as_bool).unwrap_or_default()
}

/// A list's items; none when absent.
pub fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub fn items_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut [Value] {
    at_mut(value, path)
        .and_then(Value::as_array_mut)
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
}

/// A list of strings.
pub fn texts<'a>(value: &'a Value, path: &str) -> Vec<&'a str> {
    items(value, path)
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

pub fn members<'a>(value: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    at(value, path).and_then(Value::as_object)
}

/// A map from string to string (labels).
pub fn pairs<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    members(value, path)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

/// The object at `path`, made (with its parents) where there is none.
pub fn object_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    let mut here = as_object(value);
    for key in path.split('.').filter(|key| !key.is_empty()) {
        here = as_object(here.entry(key).or_insert(Value::Null));
    }
    here
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object just above")
}

pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    object_mut(value, parent).insert(key.to_owned(), new.into());
}

/// Sets `path` unless it has a value.
pub fn default_to(value: &mut Value, path: &str, new: impl Into<Value>) {
    if !has(value, path) {
        set(value, path, new);
    }
}

/// Like [`default_to`], and an empty string counts as absent.
pub fn default_text(value: &mut Value, path: &str, new: &str) {
    if at(value, path).is_none_or(|value| value.as_str() == Some("")) {
        set(value, path, new);
    }
}

pub fn remove(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = path
        .rsplit_once('.')
        .map_or((None, path), |(parent, key)| (Some(parent), key));
    let parent = match parent {
        Some(parent) => at_mut(value, parent)?,
        None => value,
    };
    parent.as_object_mut()?.remove(key)
}

/// Makes `path` in `new` what it is in `old`, also absent.
pub fn keep(new: &mut Value, old: &Value, path: &str) {
    match at(old, path) {
        Some(value) => set(new, path, value.clone()),
        None => {
            remove(new, path);
        }
    }
}

pub fn same(a: &Value, b: &Value, path: &str) -> bool {
    at(a, path) == at(b, path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let mut value = json!({"a": {"b": [1], "n": null}});
        assert_eq!(items(&value, "a.b").len(), 1);
        assert!(!has(&value, "a.n"));
        default_to(&mut value, "a.n.deep", 3);
        default_to(&mut value, "a.b", 4);
        assert_eq!(value, json!({"a": {"b": [1], "n": {"deep": 3}}}));
        let old = json!({"a": {"b": 2}});
        keep(&mut value, &old, "a.b");
        keep(&mut value, &old, "a.n");
        assert_eq!(value, old);
    }
}
