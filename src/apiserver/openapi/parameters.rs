//! The query and path parameters that operations take.

use serde_json::{Value, json};

use super::Form;

/// A parameter: its name, its type and what it is for.
pub(super) struct Parameter {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const fn parameter(name: &'static str, kind: &'static str, text: &'static str) -> Parameter {
    Parameter { name, kind, text }
}

const DRY_RUN: Parameter = parameter(
    "dryRun",
    "string",
    "When present, modifications are not persisted. Valid value: All.",
);
const FIELD_MANAGER: Parameter = parameter(
    "fieldManager",
    "string",
    "The name of the actor that makes these changes, at most 128 printable characters.",
);
const FIELD_VALIDATION: Parameter = parameter(
    "fieldValidation",
    "string",
    "What to do about unknown or duplicate fields: Ignore, Warn (the default) or Strict.",
);

/// Of create and replace.
pub(super) const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];

pub(super) const PATCH: &[Parameter] = &[
    DRY_RUN,
    FIELD_MANAGER,
    FIELD_VALIDATION,
    parameter(
        "force",
        "boolean",
        "Take conflicting fields over; for apply requests only.",
    ),
];

pub(super) const DELETE: &[Parameter] = &[
    DRY_RUN,
    parameter(
        "gracePeriodSeconds",
        "integer",
        "Seconds before the object is deleted; 0 is at once.",
    ),
    parameter(
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy.",
    ),
    parameter(
        "propagationPolicy",
        "string",
        "Orphan, Background or Foreground.",
    ),
];

pub(super) const LIST: &[Parameter] = &[
    parameter(
        "allowWatchBookmarks",
        "boolean",
        "Ask for BOOKMARK events in a watch.",
    ),
    parameter(
        "continue",
        "string",
        "Where to go on, from the answer before.",
    ),
    parameter("fieldSelector", "string", "Restricts the list by fields."),
    parameter("labelSelector", "string", "Restricts the list by labels."),
    parameter("limit", "integer", "Most items in one answer."),
    parameter(
        "resourceVersion",
        "string",
        "Which version of the list is meant.",
    ),
    parameter(
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant.",
    ),
    parameter(
        "sendInitialEvents",
        "boolean",
        "Start a watch with the current objects.",
    ),
    parameter(
        "timeoutSeconds",
        "integer",
        "Ends the call, whatever happens.",
    ),
    parameter("watch", "boolean", "Watch for changes instead of listing."),
];

const PRETTY: Parameter = parameter("pretty", "string", "If 'true', the answer is indented.");

pub(super) fn query(form: Form, parameters: &[Parameter]) -> Vec<Value> {
    let one = |parameter: &Parameter| render(form, parameter, "query");
    parameters.iter().map(one).collect()
}

/// The parameters of all operations on a path.
pub(super) fn of_path(form: Form, path: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for (name, text) in [
        ("name", "name of the object"),
        (
            "namespace",
            "object name and auth scope, such as for teams and projects",
        ),
        ("path", "path to the resource"),
    ] {
        if path.contains(&format!("{{{name}}}")) {
            let mut one = render(form, &parameter(name, "string", text), "path");
            one["required"] = json!(true);
            all.push(one);
        }
    }
    all.push(render(form, &PRETTY, "query"));
    all
}

fn render(form: Form, parameter: &Parameter, place: &str) -> Value {
    let Parameter { name, kind, text } = parameter;
    match form {
        Form::V2 => json!({
            "name": name, "in": place, "description": text, "type": kind, "uniqueItems": true,
        }),
        Form::V3 => json!({
            "name": name, "in": place, "description": text,
            "schema": {"type": kind, "uniqueItems": true},
        }),
    }
}
