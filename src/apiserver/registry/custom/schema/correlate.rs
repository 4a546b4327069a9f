//! Which part of an object was which part before an update, and whether it is the same.

use std::collections::HashMap;

use serde_json::Value;

use super::{LIST_KEYS, LIST_TYPE, Tree};

/// A member of an object as it was.
pub fn member<'a>(old: &'a Value, name: &str) -> Option<&'a Value> {
    old.as_object()?.get(name)
}

/// The items of a list as it was, by what tells them apart: only those of a list of type `map` have
/// such.
pub struct Items<'a> {
    keys: Vec<&'a str>,
    by_key: HashMap<String, &'a Value>,
}

impl<'a> Items<'a> {
    pub fn of(schema: &'a Tree, old: Option<&'a Value>) -> Self {
        let is_map = schema[LIST_TYPE] == "map";
        let keys: Vec<&str> = match is_map {
            true => schema.texts(LIST_KEYS).collect(),
            false => Vec::new(),
        };
        Self::with_keys(keys, old)
    }

    /// As [`Items::of`], of a list whose keys are known; without any, nothing is found.
    pub fn with_keys(keys: Vec<&'a str>, old: Option<&'a Value>) -> Self {
        let mut by_key = HashMap::new();
        if !keys.is_empty() {
            for item in old.and_then(Value::as_array).into_iter().flatten() {
                if let Some(key) = key(&keys, item) {
                    by_key.entry(key).or_insert(item);
                }
            }
        }
        Self { keys, by_key }
    }

    /// What an item was.
    pub fn find(&self, item: &Value) -> Option<&'a Value> {
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&key(&self.keys, item)?).copied()
    }
}

fn key(keys: &[&str], item: &Value) -> Option<String> {
    let item = item.as_object()?;
    let values: Vec<Option<&Value>> = keys.iter().map(|key| item.get(*key)).collect();
    serde_json::to_string(&values).ok()
}

/// Whether nothing has changed; the items of a list of type `map` may have changed places.
pub fn same(schema: &Tree, new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            new.len() == old.len()
                && new.iter().all(|(name, new)| {
                    let own = &schema["properties"][name.as_str()];
                    let inner = match own.is_object() {
                        true => own,
                        false => &schema["additionalProperties"],
                    };
                    old.get(name).is_some_and(|old| same(inner, new, old))
                })
        }
        (Value::Array(list), Value::Array(were)) => {
            if list.len() != were.len() {
                return false;
            }
            if new == old {
                return true;
            }
            let items = Items::of(schema, Some(old));
            list.iter().all(|item| {
                let was = items.find(item);
                was.is_some_and(|was| same(&schema["items"], item, was))
            })
        }
        _ => new == old,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_the_same() {
        let item = json!({"type": "object"});
        let schema = Tree::schema(&json!({"type": "object", "properties": {
            "keyed": {"type": "array", LIST_TYPE: "map", LIST_KEYS: ["k"], "items": item},
            "plain": {"type": "array", "items": item},
        }}));
        let (a, b) = (json!({"k": "a", "v": 1}), json!({"k": "b", "v": 2}));
        for (new, old, want) in [
            (json!({"keyed": [a, b]}), json!({"keyed": [b, a]}), true),
            (json!({"plain": [a, b]}), json!({"plain": [a, b]}), true),
            (json!({"plain": [a, b]}), json!({"plain": [b, a]}), false),
            (json!({"keyed": [a]}), json!({"keyed": [b]}), false),
            (
                json!({"keyed": [a]}),
                json!({"keyed": [a], "plain": []}),
                false,
            ),
            (json!({"other": 1}), json!({"other": 1}), true),
            (json!({"other": 1}), json!({"other": 2}), false),
        ] {
            assert_eq!(same(&schema, &new, &old), want, "{new} {old}");
        }
    }
}
