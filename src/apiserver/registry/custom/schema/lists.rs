//! Lists whose items may not be there twice.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{LIST_KEYS, LIST_TYPE, Tree, at, join};
use crate::apiserver::{registry::Causes, status::CauseType};

/// Every item of a list of type `set` or `map` that is there twice.
pub fn unique(schema: &Tree, value: &Value, path: &str, causes: &mut Causes) {
    if causes.is_full() {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, member) in map {
                let own = &schema["properties"][name.as_str()];
                let other = &schema["additionalProperties"];
                if own.is_object() {
                    unique(own, member, &join(path, name), causes);
                } else if other.is_object() {
                    unique(other, member, &format!("{path}[{name}]"), causes);
                }
            }
        }
        Value::Array(list) => {
            one_list(schema, list, path, causes);
            if schema["items"].is_object() {
                for (index, item) in list.iter().enumerate() {
                    unique(&schema["items"], item, &at(path, index), causes);
                }
            }
        }
        _ => {}
    }
}

fn one_list(schema: &Tree, list: &[Value], path: &str, causes: &mut Causes) {
    let keys: Vec<&str> = match schema[LIST_TYPE].as_str() {
        Some("map") => schema.texts(LIST_KEYS).collect(),
        Some("set") => Vec::new(),
        _ => return,
    };
    let is_map = schema[LIST_TYPE] == "map";
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, item) in list.iter().enumerate() {
        if is_map && !item.is_object() && !item.is_null() {
            let detail = "must be an object for an array of list-type map";
            causes.invalid(at(path, index), item, detail);
            return;
        }
        let identity = match is_map {
            true => {
                let named = keys.iter().filter_map(|key| {
                    let value = item.get(*key)?;
                    Some(((*key).to_owned(), value.clone()))
                });
                Value::Object(named.collect::<Map<_, _>>()).to_string()
            }
            false => item.to_string(),
        };
        let times = seen.entry(identity.clone()).or_default();
        *times += 1;
        // Once for each that is there more than once.
        if *times == 2 {
            let message = format!("Duplicate value: {identity}");
            causes.push(CauseType::FieldValueDuplicate, at(path, index), message);
        }
    }
}
