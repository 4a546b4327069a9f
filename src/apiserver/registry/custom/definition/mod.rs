//! What a definition's schema may say. Pure.
//!
//! `structure.rs`: it is structural; `nested.rs`: what stands below `allOf`, `anyOf`, `oneOf` and `not`;
//! `defaults.rs`: its defaults are valid; `standard.rs`: what OpenAPI and the extensions want;
//! `rules.rs`: its rules compile and are cheap enough; `fields.rs`: fields for selectors.
//!
//! Always true: the work is linear in the schema, but for its rules, which are few and short
//! ([`rules::MAX_RULES`]).

mod defaults;
mod fields;
mod nested;
mod rules;
mod standard;
mod structure;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use serde_json::Value;

pub use self::fields::selectable_fields;
use super::rules::rules_of;
use crate::{
    apiserver::registry::{Causes, kinds::value::items},
    cel::Origin,
};

/// What the definition said before an update.
#[derive(Debug, Default)]
pub struct Before<'d> {
    expressions: HashSet<&'d str>,
    old: Option<&'d Value>,
}

impl<'d> Before<'d> {
    pub fn of(old: Option<&'d Value>) -> Self {
        let mut expressions = HashSet::new();
        for version in old.iter().flat_map(|old| items(old, "spec.versions")) {
            gather(&version["schema"]["openAPIV3Schema"], &mut expressions);
        }
        Self { expressions, old }
    }

    /// Where an expression comes from: one that is stored already is taken as it was.
    fn origin(&self, expression: &str) -> Origin {
        match self.expressions.contains(expression) {
            true => Origin::Stored,
            false => Origin::New,
        }
    }

    /// The version of this name as it was.
    pub fn version(&self, name: &str) -> Option<&'d Value> {
        let mut versions = items(self.old?, "spec.versions").iter();
        versions.find(|version| version["name"] == *name)
    }

    pub fn is_new(&self) -> bool {
        self.old.is_none()
    }
}

fn gather<'d>(schema: &'d Value, found: &mut HashSet<&'d str>) {
    for rule in rules_of(schema) {
        let texts = ["rule", "messageExpression"].map(|name| rule[name].as_str());
        found.extend(texts.into_iter().flatten());
    }
    for (_, inner) in children(schema) {
        gather(inner, found);
    }
}

/// The schemas directly in a schema, with how they are reached.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        all.push((format!("properties[{name}]"), inner));
    }
    for name in ["items", "additionalProperties", "not"] {
        if schema[name].is_object() {
            all.push((name.to_owned(), &schema[name]));
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, inner) in schema[name].as_array().into_iter().flatten().enumerate() {
            all.push((format!("{name}[{index}]"), inner));
        }
    }
    all
}

/// Members of a schema's root that are kept when the status has a schema of its own.
const AT_ROOT: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations]";

fn allowed_at_root(name: &str) -> bool {
    let allowed = [
        "description",
        "type",
        "format",
        "title",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "required",
        "items",
        "properties",
        "externalDocs",
        "example",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    allowed.contains(&name)
}

/// Everything that is wrong with the schema of a version. `unchanged`: it was accepted before.
pub fn schema(
    schema: &Value,
    path: &str,
    has_status: bool,
    before: &Before<'_>,
    unchanged: bool,
    causes: &mut Causes,
) {
    let Some(members) = schema.as_object() else {
        causes.required(path, "");
        return;
    };
    if has_status {
        let set = members.iter().filter(|(_, value)| !is_zero(value));
        for (name, _) in set {
            if !allowed_at_root(name) {
                let detail = format!(
                    "only {AT_ROOT} fields are allowed at the root of the schema if the status subresource is enabled"
                );
                causes.invalid(path, name, &detail);
                break;
            }
        }
    }
    if schema["nullable"] == true {
        causes.forbidden(
            format!("{path}.nullable"),
            "nullable cannot be true at the root",
        );
    }
    let mut structural = Causes::default();
    structure::check(schema, path, &mut structural);
    if structural.0.is_empty() {
        defaults::check(schema, path, &mut structural);
    }
    let sound = structural.0.is_empty();
    structural
        .0
        .sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    take(causes, structural);
    let mut checker = rules::Checker::new(before, unchanged);
    let mut found = Causes::default();
    let context = sound.then(rules::Context::root);
    standard::check(schema, path, context.as_ref(), &mut checker, &mut found);
    take(causes, found);
    checker.finish(path, causes);
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) => false,
    }
}

fn take(causes: &mut Causes, found: Causes) {
    for cause in found.0 {
        causes.add(cause);
    }
}
