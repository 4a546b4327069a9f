//! Rules become programs.

use std::sync::Arc;

use serde_json::Value;

use super::{Own, Reason, Rule, Rules, field_path, rules_of};
use crate::{
    apiserver::registry::custom::schema::{EMBEDDED, LIST_KEYS, LIST_TYPE},
    cel::{CompileError, Environment, Origin, Program, Schema, Type},
};

/// Name of the type of `self`, in messages.
const SELF_TYPE: &str = "selfType";

/// A place in a schema, and what expressions know of it: made when the first rule asks, of what is
/// known around it.
#[derive(Clone)]
pub enum Place {
    /// No rule here or around: read from the schema where the first is.
    Outside {
        root: bool,
    },
    Known(Arc<Schema>),
    /// Expressions cannot see this.
    Unseen,
}

impl Place {
    /// The type of the values here.
    pub fn schema(&self, json: &Value) -> Option<Arc<Schema>> {
        match self {
            Self::Known(schema) => Some(schema.clone()),
            Self::Outside { root } => {
                Schema::from_json(json, SELF_TYPE, *root || json[EMBEDDED] == true)
            }
            Self::Unseen => None,
        }
    }
}

/// A rule that was compiled: also what is wrong with it.
pub struct Compiled {
    pub program: Option<Result<Program, String>>,
    pub message: Option<Result<Program, String>>,
}

/// Compiles the rules of one schema.
pub struct Compiler {
    pub schema: Arc<Schema>,
    environments: [(Environment, Environment); 2],
}

impl Compiler {
    pub fn new(schema: Arc<Schema>) -> Self {
        let of = |origin: Origin| {
            let base = Environment::new(origin).with_schema("self", &schema);
            let plain = base.clone().with_schema("oldSelf", &schema);
            (plain, base.with_optional_schema("oldSelf", &schema))
        };
        Self {
            environments: [of(Origin::New), of(Origin::Stored)],
            schema,
        }
    }

    fn environment(&self, origin: Origin, optional: bool) -> &Environment {
        let [new, stored] = &self.environments;
        let (plain, with_optional) = if origin == Origin::New { new } else { stored };
        if optional { with_optional } else { plain }
    }

    /// `origin` says of an expression whether it was there before.
    pub fn compile(&self, rule: &Value, origin: impl Fn(&str) -> Origin) -> Compiled {
        let none = Compiled {
            program: None,
            message: None,
        };
        let text = rule["rule"].as_str().unwrap_or_default();
        if text.trim().is_empty() {
            return none;
        }
        let optional = rule["optionalOldSelf"] == true;
        let program = expression(
            self.environment(origin(text), optional),
            text,
            &Type::Bool,
            ["", "program ", "cel expression must evaluate to a bool"],
        );
        let message = rule["messageExpression"].as_str().unwrap_or_default();
        if message.is_empty() || program.is_err() {
            return Compiled {
                program: Some(program),
                ..none
            };
        }
        let made = expression(
            self.environment(origin(message), optional),
            message,
            &Type::String,
            [
                "messageExpression ",
                "messageExpression ",
                "messageExpression must evaluate to a string",
            ],
        );
        Compiled {
            program: Some(program),
            message: Some(made),
        }
    }
}

/// `words`: what is put before "compilation" and "instantiation", and what is said of a wrong type.
fn expression(
    environment: &Environment,
    text: &str,
    ty: &Type,
    words: [&str; 3],
) -> Result<Program, String> {
    let [compiling, making, mistyped] = words;
    let program = Program::compile(environment, text).map_err(|error| match error {
        CompileError::Issues(issues) => format!("{compiling}compilation failed: {issues}"),
        CompileError::Constant(why) => format!("{making}instantiation failed: {why}"),
    })?;
    match program.output_type() == ty {
        true => Ok(program),
        false => Err(mistyped.to_owned()),
    }
}

/// All rules of a version's schema; none where there are none. What does not compile any more is
/// reported with the objects it should have been asked about.
pub fn compile(schema: &Value) -> Option<Rules> {
    node(schema, &Place::Outside { root: true })
}

/// As [`compile`], of a schema inside of another.
pub fn compile_part(schema: &Value) -> Option<Rules> {
    node(schema, &Place::Outside { root: false })
}

fn node(json: &Value, place: &Place) -> Option<Rules> {
    let rules = rules_of(json);
    let known = match rules.is_empty() {
        true => None,
        false => place.schema(json),
    };
    let own = known.as_ref().map(|schema| own(json, schema, rules));
    let here = match known {
        Some(schema) => Place::Known(schema),
        None => place.clone(),
    };
    let items = json["items"]
        .is_object()
        .then(|| node(&json["items"], &below(&here, None)))
        .flatten()
        .map(Box::new);
    let additional = json["additionalProperties"]
        .is_object()
        .then(|| node(&json["additionalProperties"], &below(&here, None)))
        .flatten()
        .map(Box::new);
    let mut properties = Vec::new();
    for (name, inner) in json["properties"].as_object().into_iter().flatten() {
        if let Some(rules) = node(inner, &below(&here, Some(name))) {
            properties.push((name.clone(), rules));
        }
    }
    let empty = own.is_none() && items.is_none() && additional.is_none() && properties.is_empty();
    (!empty).then(|| Rules {
        own,
        items,
        keys: match json[LIST_TYPE] == "map" {
            true => texts(&json[LIST_KEYS]),
            false => Vec::new(),
        },
        properties,
        additional,
    })
}

/// The place of a property, or of the items or other members.
pub fn below(place: &Place, property: Option<&str>) -> Place {
    let Place::Known(schema) = place else {
        return match place {
            Place::Outside { .. } => Place::Outside { root: false },
            _ => Place::Unseen,
        };
    };
    match property {
        None => schema
            .elements()
            .map_or(Place::Unseen, |inner| Place::Known(inner.clone())),
        Some(name) => match schema.member(name) {
            Some(Some(inner)) => Place::Known(inner.clone()),
            Some(None) => Place::Unseen,
            // Expressions cannot name it; it can have rules all the same.
            None => Place::Outside { root: false },
        },
    }
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn own(json: &Value, schema: &Arc<Schema>, rules: &[Value]) -> Own {
    let compiler = Compiler::new(schema.clone());
    let made = rules.iter().filter_map(|rule| {
        let compiled = compiler.compile(rule, |_| Origin::Stored);
        let program = compiled.program?;
        let text = |name: &str| rule[name].as_str().unwrap_or_default();
        let message = text("message").trim();
        let field = field_path::read(text("fieldPath"), json);
        Some(Rule {
            uses_old: program.as_ref().is_ok_and(|one| one.uses("oldSelf")),
            program,
            message: compiled
                .message
                .and_then(Result::ok)
                .map(|program| (program, text("messageExpression").to_owned())),
            name: match text("message") {
                "" => text("rule").trim().to_owned(),
                _ => message.to_owned(),
            },
            has_message: !text("message").is_empty(),
            reason: Reason::of(rule),
            field: field
                .ok()
                .map(|found| found.path)
                .filter(|path| !path.is_empty()),
            optional_old: rule["optionalOldSelf"] == true,
        })
    });
    Own {
        rules: made.collect(),
        environment: compiler.environment(Origin::Stored, false).clone(),
        schema: schema.clone(),
        kind: json["type"].as_str().unwrap_or_default().to_owned(),
    }
}
