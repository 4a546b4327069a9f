//! Schemas below `allOf`, `anyOf`, `oneOf` and `not`: they say of values what else they must be, and
//! nothing of what they are.

use serde_json::Value;

use super::structure::pattern;
use crate::apiserver::registry::{
    Causes,
    custom::schema::{EMBEDDED, INT_OR_STRING, LIST_KEYS, LIST_TYPE, PRESERVE},
};

/// Checks the parts of a schema. `any_of`: its `anyOf` are the two types of an int-or-string;
/// `first_all_of`: those of its first `allOf` are.
pub fn junctors(schema: &Value, path: &str, any_of: bool, first_all_of: bool, causes: &mut Causes) {
    for name in ["anyOf", "allOf", "oneOf"] {
        for (index, part) in schema[name].as_array().into_iter().flatten().enumerate() {
            if name == "anyOf" && any_of {
                continue;
            }
            let skip = name == "allOf" && index == 0 && first_all_of;
            one(part, &format!("{path}.{name}[{index}]"), skip, causes);
        }
    }
    if schema["not"].is_object() {
        one(&schema["not"], &format!("{path}.not"), false, causes);
    }
}

/// What may not be said there: the member, and what it must be instead.
const FORBIDDEN: [(&str, &str); 11] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    (PRESERVE, "must be false to be structural"),
    (EMBEDDED, "must be false to be structural"),
    (INT_OR_STRING, "must be false to be structural"),
    (LIST_KEYS, "must be empty to be structural"),
    ("x-kubernetes-validations", "must be empty to be structural"),
];

fn one(schema: &Value, path: &str, skip_any_of: bool, causes: &mut Causes) {
    causes.spend(1);
    if causes.is_full() {
        return;
    }
    junctors(schema, path, skip_any_of, false, causes);
    pattern(schema, path, causes);
    if schema["items"].is_object() {
        one(&schema["items"], &format!("{path}.items"), false, causes);
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        one(inner, &format!("{path}.properties[{name}]"), false, causes);
    }
    for (name, detail) in FORBIDDEN {
        if !super::is_zero(&schema[name]) {
            causes.forbidden(format!("{path}.{name}"), detail);
        }
    }
    for name in [LIST_TYPE, "x-kubernetes-map-type"] {
        if !schema[name].is_null() {
            let detail = "must be undefined to be structural";
            causes.forbidden(format!("{path}.{name}"), detail);
        }
    }
    if schema["properties"]["metadata"].is_object() {
        let path = format!("{path}.properties[metadata]");
        causes.forbidden(path, "must not be specified in a nested context");
    }
}

/// What the parts of `values` say of fields and items is also in `schema`, at `path`.
pub fn complete(schema: &Value, values: &Value, path: &str, at: &str, causes: &mut Causes) {
    parts(values, schema, path, at, causes);
    // Whatever is said outside of parts is there.
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.properties[{name}]");
        complete(inner, inner, &path, &path, causes);
    }
    for name in ["items", "additionalProperties"] {
        if schema[name].is_object() {
            let path = format!("{path}.{name}");
            complete(&schema[name], &schema[name], &path, &path, causes);
        }
    }
}

fn parts(values: &Value, schema: &Value, path: &str, at: &str, causes: &mut Causes) {
    causes.spend(1);
    if causes.is_full() {
        return;
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, part) in values[name].as_array().into_iter().flatten().enumerate() {
            part_of(part, schema, path, &format!("{at}.{name}[{index}]"), causes);
        }
    }
    if values["not"].is_object() {
        part_of(&values["not"], schema, path, &format!("{at}.not"), causes);
    }
}

fn part_of(part: &Value, schema: &Value, path: &str, at: &str, causes: &mut Causes) {
    parts(part, schema, path, at, causes);
    let because = |at: &str| format!("because it is defined in {at}");
    if part["items"].is_object() {
        let (path, at) = (format!("{path}.items"), format!("{at}.items"));
        match schema["items"].is_object() {
            true => part_of(&part["items"], &schema["items"], &path, &at, causes),
            false => causes.required(path, &because(&at)),
        }
    }
    for (name, inner) in part["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.properties[{name}]");
        let at = format!("{at}.properties[{name}]");
        let own = &schema["properties"][name.as_str()];
        match own.is_object() {
            true => part_of(inner, own, &path, &at, causes),
            false => causes.required(path, &because(&at)),
        }
    }
}
