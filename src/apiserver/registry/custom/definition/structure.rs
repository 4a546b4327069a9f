//! Whether a schema is structural: every value has one type, said outside of alternatives.

use serde_json::Value;

use super::nested;
use crate::apiserver::registry::{
    Causes,
    custom::schema::{EMBEDDED, INT_OR_STRING, PRESERVE, compiled},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

pub fn check(schema: &Value, path: &str, causes: &mut Causes) {
    invariants(schema, Level::Root, path, causes);
    nested::complete(schema, schema, path, path, causes);
}

fn invariants(schema: &Value, level: Level, path: &str, causes: &mut Causes) {
    causes.spend(1);
    if causes.is_full() {
        return;
    }
    let kind = schema["type"].as_str().unwrap_or_default();
    if kind == "array" && !schema["items"].is_object() {
        causes.required(format!("{path}.items"), "must be specified");
    }
    if schema["items"].is_object() {
        invariants(
            &schema["items"],
            Level::Item,
            &format!("{path}.items"),
            causes,
        );
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.properties[{name}]");
        invariants(inner, Level::Field, &path, causes);
    }
    let others = &schema["additionalProperties"];
    let has_others = !others.is_null() && *others != false;
    if has_others {
        let path = format!("{path}.additionalProperties");
        if level == Level::Root {
            causes.forbidden(&path, "must not be used at the root");
        }
        if others.is_object() {
            invariants(others, Level::Field, &path, causes);
        }
    }
    let is = |flag: &str| schema[flag] == true;
    for flag in [PRESERVE, EMBEDDED] {
        if is(INT_OR_STRING) && is(flag) {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            causes.invalid(format!("{path}.{flag}"), true, detail);
        }
    }
    values(schema, path, causes);
    let at_type = format!("{path}.type");
    if is(EMBEDDED) && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        match kind {
            "" => causes.required(at_type, detail),
            _ => causes.invalid(at_type, kind, detail),
        }
    } else if kind.is_empty() && !is(INT_OR_STRING) && !is(PRESERVE) {
        causes.required(
            at_type,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    } else if level == Level::Root && !kind.is_empty() && kind != "object" {
        causes.invalid(at_type, kind, "must be object at the root");
    }
    if is(EMBEDDED) && has_others {
        let path = format!("{path}.additionalProperties");
        causes.forbidden(
            path,
            "must not be used if x-kubernetes-embedded-resource is set",
        );
    }
    let whole = level == Level::Root || is(EMBEDDED);
    for name in ["kind", "apiVersion"] {
        let inner = &schema["properties"][name];
        if whole && inner.is_object() && inner["type"] != "string" {
            let path = format!("{path}.properties[{name}].type");
            causes.invalid(path, text(&inner["type"]), "must be string");
        }
    }
    let metadata = &schema["properties"]["metadata"];
    if whole && metadata.is_object() {
        let path = format!("{path}.properties[metadata]");
        if metadata["type"] != "object" {
            let have = text(&metadata["type"]);
            causes.invalid(format!("{path}.type"), have, "must be object");
        }
        if level == Level::Root && !restricts_only_names(metadata) {
            causes.forbidden(path, "must not specify anything other than name and generateName, but metadata is implicitly specified");
        }
    }
    let none = schema["properties"]
        .as_object()
        .is_none_or(|all| all.is_empty());
    if is(EMBEDDED) && !is(PRESERVE) && none {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        causes.required(format!("{path}.properties"), detail);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether nothing but name and generateName is said of an object's metadata.
fn restricts_only_names(metadata: &Value) -> bool {
    let properties = metadata["properties"].as_object();
    let known = |name: &String| matches!(name.as_str(), "name" | "generateName");
    let members = metadata.as_object().into_iter().flatten();
    properties.is_none_or(|all| all.keys().all(known))
        && members
            .filter(|(_, value)| !super::is_zero(value))
            .all(|(name, _)| matches!(name.as_str(), "type" | "properties" | "default"))
}

/// What is said of values.
fn values(schema: &Value, path: &str, causes: &mut Causes) {
    let types = |parts: &Value| {
        let parts = parts.as_array();
        parts.is_some_and(|parts| {
            let only = |part: &Value, kind: &str| {
                part["type"] == kind && part.as_object().is_some_and(|all| all.len() == 1)
            };
            matches!(parts.as_slice(), [a, b] if only(a, "integer") && only(b, "string"))
        })
    };
    // Two ways to write an integer or a string that were there before there was a flag.
    let any_of = types(&schema["anyOf"]);
    let first_all_of = types(&schema["allOf"][0]["anyOf"]);
    nested::junctors(schema, path, any_of, first_all_of, causes);
    pattern(schema, path, causes);
}

/// A pattern that cannot be compiled holds nothing.
pub fn pattern(schema: &Value, path: &str, causes: &mut Causes) {
    if let Some(pattern) = schema["pattern"].as_str()
        && compiled(pattern).is_none()
    {
        let detail =
            "must be a valid regular expression, but isn't: it cannot be compiled, or is too large";
        causes.invalid(format!("{path}.pattern"), pattern, detail);
    }
}
