//! Whether an object is as its schema says.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{
    INT_OR_STRING, Tree, at,
    correlate::{Items, member, same},
    is, is_meta, join,
    strings::strings,
};
use crate::apiserver::{registry::Causes, status::CauseType};

/// The field of a violation that is the whole object's.
const ROOT: &str = "<nil>";

/// Every violation of the schema, with its path. What is as it was in `old` is taken as it is: it was
/// accepted, maybe by another schema.
pub fn validate(schema: &Tree, object: &Value, old: Option<&Value>, causes: &mut Causes) {
    check(schema, object, old, "", causes);
}

/// As [`validate`], of the part at `path`.
pub fn check(schema: &Tree, value: &Value, old: Option<&Value>, path: &str, causes: &mut Causes) {
    causes.spend(1);
    if causes.is_full()
        || value.is_null() && is(schema, "nullable")
        || old.is_some_and(|old| same(schema, value, old))
    {
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
        let message = format!("Invalid value: {have:?}: {detail}");
        causes.push(CauseType::FieldValueTypeInvalid, path, message);
        return;
    }
    let values = schema["enum"].as_array();
    causes.spend(values.map_or(0, <[Tree]>::len));
    if let Some(all) = values.filter(|all| !all.iter().any(|one| one == value)) {
        let texts: Vec<String> = all.iter().map(|one| plain(&one.to_value())).collect();
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
        Value::Array(list) => lists(schema, list, old, value, path, causes),
        Value::Object(map) => objects(schema, map, old, path, causes),
        _ => {}
    }
    let parts = |name: &str| schema[name].as_array();
    for part in parts("allOf").into_iter().flatten() {
        check(part, value, old, path, causes);
    }
    let fits = |part: &Tree, causes: &mut Causes| {
        causes.probe(|inner| check(part, value, old, path, inner))
    };
    if let Some(any) = parts("anyOf")
        && !any.iter().any(|part| fits(part, causes))
    {
        composite(causes, path, "at least one schema (anyOf)");
    }
    if let Some(one) = parts("oneOf") {
        match one.iter().filter(|part| fits(part, causes)).count() {
            0 => composite(
                causes,
                path,
                "one and only one schema (oneOf). Found none valid",
            ),
            1 => {}
            count => {
                let what =
                    format!("one and only one schema (oneOf). Found {count} valid alternatives");
                composite(causes, path, &what);
            }
        }
    }
    if schema["not"].is_object() && fits(&schema["not"], causes) {
        let detail = format!("{path:?} must not validate the schema (not)");
        causes.invalid(ROOT, "", &detail);
    }
}

/// A value that fits the wrong number of schemas. As in the original it is named in the words only: the field
/// is the object.
fn composite(causes: &mut Causes, path: &str, what: &str) {
    causes.invalid(ROOT, "", &format!("{path:?} must validate {what}"));
}

fn type_fits(schema: &Tree, value: &Value) -> bool {
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

fn numbers(schema: &Tree, number: f64, value: &Value, path: &str, causes: &mut Causes) {
    let mut refuse = |words: &str, bound: &Tree| {
        causes.invalid(
            path,
            value,
            &format!(
                "{path} in body should be {words} {}",
                plain(&bound.to_value())
            ),
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

fn lists(
    schema: &Tree,
    list: &[Value],
    old: Option<&Value>,
    value: &Value,
    path: &str,
    causes: &mut Causes,
) {
    let length = u64::try_from(list.len()).unwrap_or(u64::MAX);
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| length > *most) {
        causes.too_many(
            path,
            list.len(),
            usize::try_from(most).unwrap_or(usize::MAX),
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
    let items = &schema["items"];
    if !items.is_object() {
        return;
    }
    let before = Items::of(schema, old);
    for (index, item) in list.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        check(items, item, before.find(item), &at(path, index), causes);
    }
}

fn objects(
    schema: &Tree,
    map: &Map<String, Value>,
    old: Option<&Value>,
    path: &str,
    causes: &mut Causes,
) {
    let size = u64::try_from(map.len()).unwrap_or(u64::MAX);
    if let Some(most) = schema["maxProperties"].as_u64().filter(|most| size > *most) {
        causes.too_many(path, map.len(), usize::try_from(most).unwrap_or(usize::MAX));
    }
    if let Some(least) = schema["minProperties"]
        .as_u64()
        .filter(|least| size < *least)
    {
        causes.invalid(
            path,
            size,
            &format!("{path} in body should have at least {least} properties"),
        );
    }
    for name in schema.texts("required") {
        if !map.contains_key(name) {
            causes.required(join(path, name), "");
        }
    }
    for (name, value) in map {
        if causes.is_full() {
            return;
        }
        let own = &schema["properties"][name.as_str()];
        // Of what every object has, a schema may restrict the name only; the server knows the rest.
        if path.is_empty() && is_meta(name) && name != "metadata" {
            continue;
        }
        let old = old.and_then(|old| member(old, name));
        let inner = join(path, name);
        if own.is_object() {
            // A null that may not be there counts as absent.
            if !value.is_null() || is(own, "nullable") {
                check(own, value, old, &inner, causes);
            }
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], value, old, &inner, causes);
        }
    }
}
