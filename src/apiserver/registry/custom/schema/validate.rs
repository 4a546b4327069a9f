//! Whether an object is as its schema says.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{INT_OR_STRING, LIST_TYPE, at, is, is_meta, join, strings::strings};
use crate::apiserver::registry::Causes;

/// Every violation of the schema, with its path.
pub fn validate(schema: &Value, object: &Value, causes: &mut Causes) {
    check(schema, object, "", causes);
}

pub(super) fn check(schema: &Value, value: &Value, path: &str, causes: &mut Causes) {
    causes.spend(1);
    if causes.is_full() || value.is_null() && is(schema, "nullable") {
        return;
    }
    let said = |what: &str| format!("{path} in body {what}");
    if !type_fits(schema, value) {
        let want = match is(schema, INT_OR_STRING) {
            true => "integer,string",
            false => schema["type"].as_str().unwrap_or_default(),
        };
        let have = type_name(value);
        let detail = said(&format!("must be of type {want}: {have:?}"));
        causes.invalid(path, have, &detail);
        return;
    }
    let values = schema["enum"].as_array();
    causes.spend(values.map_or(0, Vec::len));
    if let Some(all) = values.filter(|all| !all.contains(value)) {
        let texts: Vec<String> = all.iter().map(plain).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        causes.unsupported(path, &plain(value), &texts);
    }
    match value {
        Value::Number(number) => numbers(
            schema,
            number.as_f64().unwrap_or_default(),
            value,
            path,
            causes,
        ),
        Value::String(text) => strings(schema, text, path, causes),
        Value::Array(list) => lists(schema, list, value, path, causes),
        Value::Object(map) => objects(schema, map, value, path, causes),
        _ => {}
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check(part, value, path, causes);
    }
    if let Some(any) = schema["anyOf"].as_array()
        && !any
            .iter()
            .any(|part| causes.probe(|inner| check(part, value, path, inner)))
    {
        causes.invalid(
            path,
            value,
            &said("must validate at least one schema (anyOf)"),
        );
    }
    if let Some(one) = schema["oneOf"].as_array()
        && one
            .iter()
            .filter(|part| causes.probe(|inner| check(part, value, path, inner)))
            .count()
            != 1
    {
        causes.invalid(
            path,
            value,
            &said("must validate one and only one schema (oneOf)"),
        );
    }
    if schema["not"].is_object() && causes.probe(|inner| check(&schema["not"], value, path, inner))
    {
        causes.invalid(path, value, &said("must not validate the schema (not)"));
    }
}

fn type_fits(schema: &Value, value: &Value) -> bool {
    if is(schema, INT_OR_STRING) {
        return value.is_i64() || value.is_u64() || value.is_string();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64()
                || value.is_u64()
                || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        // Anything, but nothing is not anything.
        _ => !value.is_null() || schema.get("properties").is_none(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn numbers(schema: &Value, number: f64, value: &Value, path: &str, causes: &mut Causes) {
    let mut refuse = |words: &str, bound: &Value| {
        causes.invalid(
            path,
            value,
            &format!("{path} in body should be {words} {bound}"),
        );
    };
    if let Some(bound) = schema["maximum"].as_f64() {
        let exclusive = is(schema, "exclusiveMaximum");
        if number > bound || (exclusive && number >= bound) {
            let words = if exclusive {
                "less than"
            } else {
                "less than or equal to"
            };
            refuse(words, &schema["maximum"]);
        }
    }
    if let Some(bound) = schema["minimum"].as_f64() {
        let exclusive = is(schema, "exclusiveMinimum");
        if number < bound || (exclusive && number <= bound) {
            let words = if exclusive {
                "greater than"
            } else {
                "greater than or equal to"
            };
            refuse(words, &schema["minimum"]);
        }
    }
    if let Some(step) = schema["multipleOf"].as_f64().filter(|step| *step > 0.0) {
        let times = number / step;
        if (times - times.round()).abs() > 1e-9 {
            refuse("a multiple of", &schema["multipleOf"]);
        }
    }
    let fits = match schema["format"].as_str() {
        Some("int32") => i32::try_from(value.as_i64().unwrap_or(i64::MAX)).is_ok(),
        Some("int64") => value.is_i64() || value.is_f64(),
        _ => true,
    };
    if !fits {
        refuse("of format", &schema["format"]);
    }
}

fn lists(schema: &Value, list: &[Value], value: &Value, path: &str, causes: &mut Causes) {
    let length = u64::try_from(list.len()).unwrap_or(u64::MAX);
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| length > *most) {
        causes.invalid(
            path,
            length,
            &format!("{path} in body should have at most {most} items"),
        );
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|least| length < *least) {
        causes.invalid(
            path,
            length,
            &format!("{path} in body should have at least {least} items"),
        );
    }
    let mut different = HashSet::new();
    if is(schema, "uniqueItems") && !list.iter().all(|one| different.insert(one.to_string())) {
        causes.invalid(
            path,
            value,
            &format!("{path} in body shouldn't contain duplicates"),
        );
    }
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let identity = |item: &Value| -> Option<String> {
        match schema[LIST_TYPE].as_str()? {
            "set" => Some(plain(item)),
            "map" => {
                let keys: Value = keys.iter().map(|key| (*key, item[*key].clone())).collect();
                Some(plain(&keys))
            }
            _ => None,
        }
    };
    let mut seen = HashSet::new();
    for (index, item) in list.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let inner = at(path, index);
        if let Some(identity) = identity(item)
            && let Some(twice) = seen.replace(identity)
        {
            causes.duplicate(&inner, &twice);
        }
        if schema["items"].is_object() {
            check(&schema["items"], item, &inner, causes);
        }
    }
}

fn objects(
    schema: &Value,
    map: &Map<String, Value>,
    value: &Value,
    path: &str,
    causes: &mut Causes,
) {
    let size = u64::try_from(map.len()).unwrap_or(u64::MAX);
    if let Some(most) = schema["maxProperties"].as_u64().filter(|most| size > *most) {
        causes.invalid(
            path,
            value,
            &format!("{path} in body should have at most {most} properties"),
        );
    }
    if let Some(least) = schema["minProperties"]
        .as_u64()
        .filter(|least| size < *least)
    {
        causes.invalid(
            path,
            value,
            &format!("{path} in body should have at least {least} properties"),
        );
    }
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !map.contains_key(name) {
            causes.required(join(path, name), "");
        }
    }
    for (name, member) in map {
        if causes.is_full() {
            return;
        }
        let own = &schema["properties"][name.as_str()];
        let inner = join(path, name);
        if path.is_empty() && is_meta(name) {
            continue;
        }
        if own.is_object() {
            // A null that may not be there counts as absent.
            if !member.is_null() || is(own, "nullable") {
                check(own, member, &inner, causes);
            }
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], member, &inner, causes);
        }
    }
}
