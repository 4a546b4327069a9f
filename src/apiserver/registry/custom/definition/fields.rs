//! Fields that lists may be narrowed by (`selectableFields`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::Before;
use crate::apiserver::registry::{
    Causes,
    custom::rules::field_path,
    kinds::value::{items, text},
};

const MAX_FIELDS: usize = 8;

/// What is wrong with the selectable fields of a version.
pub fn selectable_fields(version: &Value, path: &str, before: &Before<'_>, causes: &mut Causes) {
    let fields = items(version, "selectableFields");
    let path = format!("{path}.selectableFields");
    let schema = &version["schema"]["openAPIV3Schema"];
    if fields.is_empty() {
        return;
    }
    if !schema.is_object() {
        let detail = "may only be set when `version.schema.openAPIV3Schema` is not included";
        causes.invalid(path, "", detail);
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let at = format!("{path}[{index}].jsonPath");
        let asked = text(field, "jsonPath");
        if asked.is_empty() {
            causes.required(at, "");
            continue;
        }
        let found = match field_path::read_plain(asked, schema) {
            Ok(found) => found,
            Err(why) => {
                causes.invalid(at, asked, &format!("is an invalid path: {why}"));
                continue;
            }
        };
        if found.steps.first().is_some_and(|first| first == "metadata") {
            causes.invalid(&at, asked, "must not point to fields in metadata");
        }
        let kind = found.schema["type"].as_str().unwrap_or_default();
        if !matches!(kind, "string" | "boolean" | "integer") {
            causes.invalid(&at, asked, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.");
        }
        if !seen.insert(found.path) {
            causes.duplicate(&at, asked);
        }
    }
    let was = before.version(text(version, "name"));
    let unchanged = was.is_some_and(|was| was["selectableFields"] == version["selectableFields"]);
    if seen.len() > MAX_FIELDS && !unchanged {
        causes.too_many(path, seen.len(), MAX_FIELDS);
    }
}
