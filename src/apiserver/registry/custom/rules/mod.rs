//! Validation rules of custom resources (`x-kubernetes-validations`): compiled once for a version that
//! is served, then held against every object.
//!
//! `compile.rs` makes them, `evaluate.rs` asks them, `field_path.rs` reads `fieldPath`. What a definition
//! may say is checked in `definition/rules.rs`.

mod compile;
mod evaluate;
pub mod field_path;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;

pub use self::{
    compile::{Compiled, Compiler, Place, below, compile, compile_part},
    evaluate::{evaluate, evaluate_with},
};
use crate::cel::{Environment, Program, Schema};

/// The rules of a schema and of the schemas in it.
#[derive(Debug, Default)]
pub struct Rules {
    own: Option<Own>,
    items: Option<Box<Rules>>,
    /// Keys that tell the items of a list of type `map` apart.
    keys: Vec<String>,
    properties: Vec<(String, Rules)>,
    additional: Option<Box<Rules>>,
}

/// The rules of one schema.
#[derive(Debug)]
struct Own {
    schema: Arc<Schema>,
    /// For the names of variables: those with `optionalOldSelf` have the same.
    environment: Environment,
    rules: Vec<Rule>,
    /// `type` of the schema.
    kind: String,
}

#[derive(Debug)]
struct Rule {
    program: Result<Program, String>,
    /// What computes the message, with its text.
    message: Option<(Program, String)>,
    /// The message, or the rule itself.
    name: String,
    /// Whether there is a message.
    has_message: bool,
    reason: Reason,
    /// Where its failure is reported, below the place of the rule.
    field: Option<String>,
    optional_old: bool,
    uses_old: bool,
}

/// What kind of violation a failure is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    #[default]
    Invalid,
    Required,
    Forbidden,
    Duplicate,
}

impl Reason {
    pub const NAMES: [&str; 4] = [
        "FieldValueDuplicate",
        "FieldValueForbidden",
        "FieldValueInvalid",
        "FieldValueRequired",
    ];

    fn of(rule: &Value) -> Self {
        match rule["reason"].as_str() {
            Some("FieldValueRequired") => Self::Required,
            Some("FieldValueForbidden") => Self::Forbidden,
            Some("FieldValueDuplicate") => Self::Duplicate,
            _ => Self::Invalid,
        }
    }
}

/// The rules of one schema, as they are written.
pub fn rules_of(schema: &Value) -> &[Value] {
    schema["x-kubernetes-validations"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}
