//! Structural schemas at work: pruning, defaults and validation. Pure.
//!
//! A schema is kept as the JSON it was written in; what may stand in it was checked when its
//! definition was taken.
//!
//! Always true: the work is linear in the object, or counted ([`Causes::spend`]) where a schema has
//! alternatives; defaults make an object grow by no more than [`MAX_DEFAULTED`].

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use proto::quantity::Quantity;
use serde_json::{Map, Value, json};

use crate::apiserver::registry::Causes;

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
pub const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const LIST_TYPE: &str = "x-kubernetes-list-type";
/// Memory that defaults may add to one object: much more than can be stored.
const MAX_DEFAULTED: usize = 16 << 20;
/// Unknown members named at most.
const MAX_NAMED: usize = 100;
/// Paths are cut here: a member's name can be as long as the body, and stands in all paths below.
const MAX_PATH: usize = 1024;
/// Patterns kept compiled, and the size of one program.
const MAX_PATTERNS: usize = 256;
const MAX_PATTERN_BYTES: usize = 2 << 20;

fn is(schema: &Value, flag: &str) -> bool {
    schema[flag] == true
}

/// Members that every object with a kind has.
fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// Removes what the schema does not know; returns the paths. The root's own metadata is kept.
pub fn prune(schema: &Value, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_value(schema, object, "", true, &mut unknown);
    unknown
}

fn prune_value(
    schema: &Value,
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

fn join(path: &str, name: &str) -> String {
    if path.len() + name.len() > MAX_PATH {
        let mut end = MAX_PATH.min(path.len());
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        return path[..end].to_owned();
    }
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

fn at(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Defaults would make an object too large.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its defaults add more than {MAX_DEFAULTED} bytes to it")]
pub struct TooLarge;

/// Fills in what is absent, also a `null` that may not be there. Idempotent. On error the object
/// has some of its defaults.
pub fn default(schema: &Value, value: &mut Value) -> Result<(), TooLarge> {
    let mut left = MAX_DEFAULTED;
    fill(schema, value, &mut left)
}

fn fill(schema: &Value, value: &mut Value, left: &mut usize) -> Result<(), TooLarge> {
    match value {
        Value::Object(map) => {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                let absent = match map.get(name) {
                    None => true,
                    Some(Value::Null) => !is(inner, "nullable"),
                    Some(_) => false,
                };
                if absent && let Some(default) = inner.get("default").filter(|one| !one.is_null()) {
                    let weight = proto::weight(default) + name.len();
                    *left = left.checked_sub(weight).ok_or(TooLarge)?;
                    map.insert(name.clone(), default.clone());
                }
                if let Some(member) = map.get_mut(name) {
                    fill(inner, member, left)?;
                }
            }
            if schema["additionalProperties"].is_object() {
                for (name, member) in map.iter_mut() {
                    if schema["properties"].get(name).is_none() {
                        fill(&schema["additionalProperties"], member, left)?;
                    }
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for item in list {
                fill(&schema["items"], item, left)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Every violation of the schema, with its path.
pub fn validate(schema: &Value, object: &Value, causes: &mut Causes) {
    check(schema, object, "", causes);
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Causes) {
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

fn strings(schema: &Value, text: &str, path: &str, causes: &mut Causes) {
    let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        causes.invalid(
            path,
            text,
            &format!("{path} in body should be at most {most} chars long"),
        );
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        causes.invalid(
            path,
            text,
            &format!("{path} in body should be at least {least} chars long"),
        );
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && compiled(pattern).is_some_and(|regex| !regex.is_match(text))
    {
        causes.invalid(
            path,
            text,
            &format!("{path} in body should match '{pattern}'"),
        );
    }
    if let Some(format) = schema["format"].as_str()
        && !is_of_format(format, text)
    {
        let detail = format!("{path} in body must be of type {format}: {text:?}");
        causes.invalid(path, text, &detail);
    }
}

/// A pattern's program, made once; `None` if it is none, or too large.
fn compiled(pattern: &str) -> Option<regex::Regex> {
    type Compiled = HashMap<String, Option<regex::Regex>>;
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
    let mut guard = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = guard.get_or_insert_with(HashMap::new);
    if let Some(found) = known.get(pattern) {
        return found.clone();
    }
    let made = regex::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .dfa_size_limit(MAX_PATTERN_BYTES)
        .build()
        .ok();
    if known.len() >= MAX_PATTERNS {
        known.clear();
    }
    known.insert(pattern.to_owned(), made.clone());
    made
}

/// Formats that are not known do not restrict, as upstream.
fn is_of_format(format: &str, text: &str) -> bool {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::{Engine, prelude::BASE64_STANDARD};
            BASE64_STANDARD.decode(text).is_ok()
        }
        "quantity" => Quantity::parse(text).is_ok(),
        _ => true,
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

/// What is wrong with a schema itself.
pub fn check_structure(schema: &Value, path: &str, root: bool, causes: &mut Causes) {
    if !schema.is_object() {
        causes.required(path, "schemas are required");
        return;
    }
    if schema
        .get("x-kubernetes-validations")
        .is_some_and(|rules| rules.as_array().is_some_and(|all| !all.is_empty()))
    {
        let why = "validation rules (CEL) are not supported by this server yet";
        causes.forbidden(format!("{path}.x-kubernetes-validations"), why);
    }
    if schema["$ref"].as_str().is_some_and(|text| !text.is_empty()) {
        causes.forbidden(format!("{path}.$ref"), "$ref is not supported");
    }
    let kind = schema["type"].as_str().unwrap_or_default();
    let free = is(schema, INT_OR_STRING) || is(schema, PRESERVE);
    match kind {
        "" if root => causes.required(format!("{path}.type"), "must not be empty at the root"),
        "" if !free => causes.required(
            format!("{path}.type"),
            "must not be empty for specified object fields",
        ),
        "" | "object" => {}
        other if root => {
            causes.invalid(format!("{path}.type"), other, "must be object at the root")
        }
        "array" if !schema["items"].is_object() => {
            causes.required(format!("{path}.items"), "must be specified");
        }
        "array" | "string" | "integer" | "number" | "boolean" => {}
        other => causes.unsupported(
            format!("{path}.type"),
            other,
            &["array", "boolean", "integer", "number", "object", "string"],
        ),
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && compiled(pattern).is_none()
    {
        causes.invalid(
            format!("{path}.pattern"),
            pattern,
            "must be a valid regular expression",
        );
    }
    if let Some(default) = schema.get("default").filter(|one| !one.is_null()) {
        check(schema, default, &format!("{path}.default"), causes);
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        // Metadata is the server's: only its name may be restricted.
        if !(root && is_meta(name)) {
            check_structure(inner, &format!("{path}.properties[{name}]"), false, causes);
        }
    }
    if schema["items"].is_object() {
        check_structure(&schema["items"], &format!("{path}.items"), false, causes);
    }
    if schema["additionalProperties"].is_object() {
        if schema["properties"]
            .as_object()
            .is_some_and(|all| !all.is_empty())
        {
            causes.forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
        let inner = format!("{path}.additionalProperties");
        check_structure(&schema["additionalProperties"], &inner, false, causes);
    }
}

/// The schema as OpenAPI 2 may have it, for clients that check with it: no defaults, and nothing
/// below a place where anything may stand.
pub fn for_v2(schema: &Value) -> Value {
    let Value::Object(map) = schema else {
        return schema.clone();
    };
    let mut out = map.clone();
    for name in ["default", "allOf", "anyOf", "oneOf", "not", "nullable"] {
        out.remove(name);
    }
    if is(schema, "nullable") {
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if is(schema, PRESERVE) {
        // With a type, kubectl would refuse members that are null.
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if is(schema, INT_OR_STRING) {
        out.remove("type");
    }
    if let Some(properties) = out.get_mut("properties").and_then(Value::as_object_mut) {
        for inner in properties.values_mut() {
            *inner = for_v2(inner);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = out.get_mut(name).filter(|inner| inner.is_object()) {
            *inner = for_v2(inner);
        }
    }
    Value::Object(out)
}

/// A schema that takes everything.
pub fn anything() -> Value {
    json!({"type": "object", PRESERVE: true})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["image"],
        "properties": {
            "image": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
            "port": {INT_OR_STRING: true},
            "free": {"type": "object", PRESERVE: true},
            "tags": {"type": "array", LIST_TYPE: "set", "items": {"type": "string"}},
            "by": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "boolean", "default": true}}}},
        }}}})
    }

    #[test]
    fn unknown_members_go_and_defaults_come() {
        let mut object = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "x"}, "junk": 1,
            "spec": {"image": "i", "bogus": {}, "replicas": null, "free": {"any": [1]}, "by": {"x": {"y": 1}}}});
        assert_eq!(
            prune(&cron(), &mut object),
            ["junk", "spec.bogus", "spec.by.x.y"]
        );
        assert_eq!(default(&cron(), &mut object), Ok(()));
        assert_eq!(
            object["spec"],
            json!({"image": "i", "replicas": 1, "free": {"any": [1]}, "by": {"x": {"a": true}}})
        );
    }

    /// Each of these took minutes, or all memory.
    #[test]
    fn large_objects_are_little_work() {
        let begun = crate::testing::cpu_time();
        let kind = |properties: Value| json!({"type": "object", "properties": properties});
        let validated = |schema: &Value, object: &Value| {
            let mut causes = Causes::default();
            validate(schema, object, &mut causes);
            causes.0
        };
        // Names of 50,000 items, of which the last stands twice, each held against a pattern.
        let list = kind(json!({"list": {"type": "array", LIST_TYPE: "set",
            "items": {"type": "string", "pattern": "^[a-z0-9]{1,63}$"}}}));
        let mut names: Vec<String> = (0..50_000).map(|at| format!("n{at}")).collect();
        names.push("n7".to_owned());
        let causes = validated(&list, &json!({"list": names}));
        assert_eq!(causes.len(), 1);
        assert_eq!(causes[0].field, "list[50000]");
        // Wrong all over.
        let causes = validated(&list, &json!({"list": vec![1; 50_000]}));
        assert_eq!(causes.len(), 101);
        // A name as long as the body stands in all paths below it.
        let map = kind(json!({"map": {"type": "object", "additionalProperties":
            {"type": "array", "items": {"type": "integer"}}}}));
        let object = json!({"map": {"x".repeat(1 << 20): vec![1; 100_000]}});
        assert_eq!(validated(&map, &object), []);
        // Alternatives of alternatives.
        let mut schema = json!({"type": "integer", "minimum": 1});
        for _ in 0..10 {
            schema = json!({"oneOf": [schema.clone(), schema]});
        }
        let deep = json!({"type": "array", "items": {"type": "integer", "not": schema}});
        let causes = validated(
            &kind(json!({"deep": deep})),
            &json!({"deep": vec![1; 2000]}),
        );
        assert!(causes.iter().any(|cause| cause.message.contains("steps")));
        // Defaults in each of many items.
        let large = kind(json!({"list": {"type": "array", "items":
            {"type": "object", "properties": {"a": {"type": "string", "default": "x".repeat(100_000)}}}}}));
        let mut object = json!({"list": vec![json!({}); 10_000]});
        assert_eq!(default(&large, &mut object), Err(TooLarge));
        assert!(proto::weight(&object) < 2 * MAX_DEFAULTED);
        let took = crate::testing::cpu_time() - begun;
        assert!(took.as_secs() < 30, "{took:?}");
    }

    #[test]
    fn violations() {
        for (spec, want) in [
            (json!({"image": "abc", "port": 80, "tags": ["a", "b"]}), ""),
            (json!({}), "spec.image: Required value"),
            (
                json!({"image": "ABC"}),
                "spec.image: Invalid value: \"ABC\": spec.image in body should match '^[a-z]+$'",
            ),
            (
                json!({"image": 3}),
                "spec.image: Invalid value: \"integer\": spec.image in body must be of type string: \"integer\"",
            ),
            (
                json!({"image": "a", "replicas": 11}),
                "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
            ),
            (
                json!({"image": "a", "port": true}),
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"image": "a", "tags": ["x", "x"]}),
                "spec.tags[1]: Duplicate value: \"x\"",
            ),
        ] {
            let mut causes = Causes::default();
            validate(&cron(), &json!({"spec": spec}), &mut causes);
            let found: Vec<String> = causes
                .0
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            assert_eq!(found.join("; "), want);
        }
    }

    #[test]
    fn structure() {
        for (schema, fine) in [
            (cron(), true),
            (json!({"type": "string"}), false),
            (json!({}), false),
            (json!({"type": "object", "properties": {"a": {}}}), false),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                false,
            ),
            (
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true"}]}),
                false,
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
                false,
            ),
        ] {
            let mut causes = Causes::default();
            check_structure(&schema, "s", true, &mut causes);
            assert_eq!(causes.0.is_empty(), fine, "{schema} {:?}", causes.0);
        }
    }
}
