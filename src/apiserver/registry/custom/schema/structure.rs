//! Whether a schema is structural: checked once, when its definition is taken.

use serde_json::Value;

use super::{INT_OR_STRING, PRESERVE, is, is_meta, strings::compiled, validate::check};
use crate::apiserver::registry::Causes;

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
