//! What OpenAPI and Kubernetes' extensions want of a schema, and the walk along which rules are checked.

use std::collections::BTreeSet;

use serde_json::Value;

use super::rules::{Checker, Context};
use crate::apiserver::registry::{
    Causes,
    custom::{
        rules::{Reason, field_path, rules_of},
        schema::{EMBEDDED, LIST_KEYS, LIST_TYPE, PRESERVE, is_meta},
    },
};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const MAP_TYPE: &str = "x-kubernetes-map-type";
/// What is not supported at all.
const REFUSED: [(&str, &str); 6] = [
    ("id", "id is not supported"),
    ("additionalItems", "additionalItems is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("$ref", "$ref is not supported"),
];

/// What is known of the place of a schema.
#[derive(Clone, Default)]
struct Around {
    /// Why there may be no default.
    no_default: Option<String>,
    /// Inside of what every object has.
    in_meta: bool,
    /// Below here it is not known what was what before an update.
    uncorrelatable: Option<String>,
    /// Below `allOf` and the like.
    in_part: bool,
}

/// `context`: of the rules; none if they are not to be looked at.
pub fn check(
    schema: &Value,
    path: &str,
    context: Option<&Context>,
    checker: &mut Checker<'_>,
    causes: &mut Causes,
) {
    node(
        schema,
        path,
        true,
        &Around::default(),
        context,
        checker,
        causes,
    );
}

fn node(
    schema: &Value,
    path: &str,
    root: bool,
    around: &Around,
    context: Option<&Context>,
    checker: &mut Checker<'_>,
    causes: &mut Causes,
) {
    causes.spend(1);
    if causes.is_full() {
        return;
    }
    let before = causes.0.len();
    basics(schema, path, around, causes);
    let here = context.map(|context| context.at(schema));
    let mut below = |inner: &Value, at: String, around: &Around, property: Option<Option<&str>>| {
        let inside = property.and_then(|property| Some(here.as_ref()?.below(schema, property)));
        node(inner, &at, false, around, inside.as_ref(), checker, causes);
    };
    if schema["additionalProperties"].is_object() {
        let mut around = around.clone();
        if around.in_meta {
            let why = "inside additionalProperties applying to object metadata";
            around.no_default = Some(why.to_owned());
        }
        let at = format!("{path}.additionalProperties");
        below(&schema["additionalProperties"], at, &around, Some(None));
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let mut around = around.clone();
        let map_type = schema[MAP_TYPE].as_str();
        if !matches!(map_type, None | Some("granular" | "atomic")) {
            around.uncorrelatable.get_or_insert_with(|| path.to_owned());
        }
        if (root || schema[EMBEDDED] == true) && is_meta(name) {
            around.in_meta = true;
            if root {
                around.no_default = Some(format!("in top-level {name}"));
            }
        }
        let at = format!("{path}.properties[{name}]");
        below(inner, at, &around, Some(Some(name.as_str())));
    }
    let part = Around {
        in_part: true,
        ..around.clone()
    };
    if schema["not"].is_object() {
        below(&schema["not"], format!("{path}.not"), &part, None);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (index, inner) in schema[name].as_array().into_iter().flatten().enumerate() {
            below(inner, format!("{path}.{name}[{index}]"), &part, None);
        }
    }
    if schema["items"].is_object() {
        let mut around = around.clone();
        if schema[LIST_TYPE] != "map" {
            around.uncorrelatable.get_or_insert_with(|| path.to_owned());
        }
        below(
            &schema["items"],
            format!("{path}.items"),
            &around,
            Some(None),
        );
    }
    maps(schema, path, causes);
    lists(schema, path, causes);
    texts_of_rules(schema, path, causes);
    // Rules about a schema that is wrong would only be told as wrong too.
    if let Some(here) = here
        && !around.in_part
        && causes.0.len() == before
        && !rules_of(schema).is_empty()
    {
        checker.check(schema, path, &here, around.uncorrelatable.as_deref());
    }
}

fn basics(schema: &Value, path: &str, around: &Around, causes: &mut Causes) {
    let kind = schema["type"].as_str().unwrap_or_default();
    if !kind.is_empty() && !TYPES.contains(&kind) {
        causes.unsupported(format!("{path}.type"), kind, &TYPES);
    }
    if let Some(why) = &around.no_default
        && !schema["default"].is_null()
    {
        causes.forbidden(format!("{path}.default"), &format!("must not be set {why}"));
    }
    for (name, why) in REFUSED {
        if !super::is_zero(&schema[name]) {
            causes.forbidden(format!("{path}.{name}"), why);
        }
    }
    if kind == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        causes.forbidden(format!("{path}.type"), why);
    }
    if schema["items"].is_array() {
        let why = "items must be a schema object and not an array";
        causes.forbidden(format!("{path}.items"), why);
    }
    if around.in_meta && schema[EMBEDDED] == true {
        let why = "must not be used inside of resource meta";
        causes.forbidden(format!("{path}.{EMBEDDED}"), why);
    }
    if schema["uniqueItems"] == true {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.forbidden(format!("{path}.uniqueItems"), why);
    }
    let others = &schema["additionalProperties"];
    let properties = schema["properties"].as_object();
    if properties.is_some_and(|all| !all.is_empty()) && !others.is_null() && *others != true {
        let why = "additionalProperties and properties are mutual exclusive";
        causes.forbidden(format!("{path}.additionalProperties"), why);
    }
    if schema[PRESERVE] == false {
        causes.invalid(
            format!("{path}.{PRESERVE}"),
            false,
            "must be true or undefined",
        );
    }
}

/// A type that an extension wants.
fn wants_type(schema: &Value, path: &str, want: &str, extension: &str, causes: &mut Causes) {
    let detail = format!("must be {want} if {extension} is specified");
    let path = format!("{path}.type");
    match schema["type"].as_str() {
        None | Some("") => causes.required(path, &detail),
        Some(kind) => causes.invalid(path, kind, &detail),
    }
}

fn maps(schema: &Value, path: &str, causes: &mut Causes) {
    let Some(kind) = schema[MAP_TYPE].as_str() else {
        return;
    };
    if schema["type"] != "object" {
        wants_type(schema, path, "object", MAP_TYPE, causes);
    }
    if !matches!(kind, "atomic" | "granular") {
        causes.unsupported(format!("{path}.{MAP_TYPE}"), kind, &["atomic", "granular"]);
    }
}

fn lists(schema: &Value, path: &str, causes: &mut Causes) {
    let kind = schema[LIST_TYPE].as_str();
    let keys: Vec<&str> = schema[LIST_KEYS]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let items = &schema["items"];
    let of_items = &items["type"];
    if let Some(kind) = kind {
        if schema["type"] != "array" {
            wants_type(schema, path, "array", LIST_TYPE, causes);
        } else if kind == "set" {
            let atomic = |name: &str, ok: bool, causes: &mut Causes| {
                if !ok {
                    let have = items[name].as_str().unwrap_or_default();
                    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
                    causes.invalid(format!("{path}.items.{name}"), have, detail);
                }
            };
            if *of_items == "array" {
                let ok = items[LIST_TYPE].is_null() || items[LIST_TYPE] == "atomic";
                atomic(LIST_TYPE, ok, causes);
            } else if *of_items == "object" {
                atomic(MAP_TYPE, items[MAP_TYPE] == "atomic", causes);
            }
        }
        if !matches!(kind, "atomic" | "set" | "map") {
            let known = ["atomic", "set", "map"];
            causes.unsupported(format!("{path}.{LIST_TYPE}"), kind, &known);
        }
        if matches!(kind, "set" | "map") && items["nullable"] == true {
            let detail = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
            causes.forbidden(format!("{path}.items.nullable"), &detail);
        }
    }
    if !keys.is_empty() && kind != Some("map") {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match kind {
            None => causes.required(format!("{path}.{LIST_TYPE}"), detail),
            Some(kind) => causes.invalid(format!("{path}.{LIST_TYPE}"), kind, detail),
        }
    }
    if kind == Some("map") {
        keyed(schema, &keys, path, causes);
    }
}

fn keyed(schema: &Value, keys: &[&str], path: &str, causes: &mut Causes) {
    let at_keys = format!("{path}.{LIST_KEYS}");
    let items = &schema["items"];
    if keys.is_empty() {
        let detail = "must not be empty if x-kubernetes-list-type is map";
        causes.required(&at_keys, detail);
    }
    if items.is_null() {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        causes.required(format!("{path}.items"), detail);
        return;
    }
    if items["type"] != "object" {
        let have = items["type"].as_str().unwrap_or_default();
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        causes.invalid(format!("{path}.items.type"), have, detail);
        return;
    }
    let required: BTreeSet<&str> = items["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut seen = BTreeSet::new();
    for key in keys {
        let property = &items["properties"][*key];
        let at = format!("{path}.items.properties[{key}]");
        if !property.is_object() {
            let detail = "entries must all be names of item properties";
            causes.invalid(&at_keys, keys, detail);
        } else {
            if property["type"] == "array" || property["type"] == "object" {
                let detail =
                    "must be a scalar type if parent array's x-kubernetes-list-type is map";
                causes.invalid(format!("{at}.type"), "object", detail);
            }
            if !required.contains(key) && property["default"].is_null() {
                let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                causes.required(format!("{at}.default"), detail);
            }
            if property["nullable"] == true {
                let detail =
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                causes.forbidden(format!("{at}.nullable"), detail);
            }
        }
        if !seen.insert(key) {
            causes.invalid(&at_keys, keys, "must not contain duplicate entries");
        }
    }
}

/// What is said beside the expressions.
fn texts_of_rules(schema: &Value, path: &str, causes: &mut Causes) {
    const BREAKS: [char; 2] = ['\n', '\r'];
    for (index, rule) in rules_of(schema).iter().enumerate() {
        let at = |name: &str| format!("{path}.x-kubernetes-validations[{index}].{name}");
        let text = |name: &str| rule[name].as_str().unwrap_or_default();
        let (expression, message) = (text("rule").trim(), text("message").trim());
        if expression.is_empty() {
            causes.required(at("rule"), "rule is not specified");
        } else if !text("message").is_empty() && message.is_empty() {
            let detail = "must be non-empty if specified";
            causes.invalid(at("message"), text("message"), detail);
        } else if message.contains(BREAKS) {
            let detail = "must not contain line breaks";
            causes.invalid(at("message"), text("message"), detail);
        } else if expression.contains(BREAKS) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            causes.required(at("message"), detail);
        }
        let computed = text("messageExpression");
        if !computed.is_empty() && computed.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            causes.required(at("messageExpression"), detail);
        }
        if let Some(reason) = rule["reason"].as_str()
            && !Reason::NAMES.contains(&reason)
        {
            causes.unsupported(at("reason"), reason, &Reason::NAMES);
        }
        let field = text("fieldPath");
        if !field.is_empty() {
            if field.trim().is_empty() {
                causes.invalid(at("fieldPath"), field, "must be non-empty if specified");
            }
            if field.contains(BREAKS) {
                causes.invalid(at("fieldPath"), field, "must not contain line breaks");
            }
            if field_path::read(field, schema).is_err() {
                causes.invalid(at("fieldPath"), field, "must be a valid path");
            }
        }
    }
}
