//! What the tables of tests share.

use std::fs;

use serde_json::Value as Json;

use super::{Activation, Budget, Environment, EvalError, Origin, Program, Schema, Type, Value};

/// Evaluates an expression without variables; gives its value as text, or its error.
pub(crate) fn eval(text: &str) -> String {
    eval_with(&environment(), &Json::Null, text)
}

/// An environment with a variable `x` of no known type.
pub(crate) fn environment() -> Environment {
    Environment::new(Origin::New).with_variable("x", Type::Dyn)
}

/// Evaluates an expression with a value for `x`.
pub(crate) fn eval_with(environment: &Environment, x: &Json, text: &str) -> String {
    let program = match Program::compile(environment, text) {
        Ok(program) => program,
        Err(error) => return error.to_string(),
    };
    let mut activation = Activation::new(environment);
    activation.bind("x", Value::from_json(x));
    match program.evaluate(&activation, &mut Budget::for_rules()) {
        Ok(value) => shown(&value),
        Err(error) => format!("error: {error}"),
    }
}

/// Evaluates a rule about `self`.
pub(crate) fn rule(schema: &Json, object: &Json, text: &str) -> Result<bool, String> {
    let schema = Schema::from_json(schema, "selfType", false).ok_or("no schema")?;
    let environment = Environment::new(Origin::New).with_schema("self", &schema);
    let program = Program::compile(&environment, text).map_err(|error| error.to_string())?;
    let value = Value::from_typed_json(object, &schema).map_err(|error| error.to_string())?;
    let mut activation = Activation::new(&environment);
    activation.bind("self", value);
    let result: Result<Value<'_>, EvalError> =
        program.evaluate(&activation, &mut Budget::for_rules());
    let value = result.map_err(|error| error.to_string())?;
    value.as_bool().ok_or_else(|| format!("no bool: {value:?}"))
}

/// A value as an expression would write it, more or less.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Uint(number) => format!("{number}u"),
        Value::Double(number) => format!("{number:?}"),
        Value::Bytes(bytes) => format!("b{:?}", String::from_utf8_lossy(bytes)),
        Value::Duration(_) | Value::Timestamp(_) => match value.to_json() {
            Ok(Json::String(text)) => text,
            other => format!("{other:?}"),
        },
        Value::List(list) => {
            let items = list.iter().map(|item| match item {
                Ok(item) => shown(&item),
                Err(error) => format!("error: {error}"),
            });
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        Value::Map(map) => {
            let entries = map.entries().unwrap_or_default();
            let entries = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", shown(&key.to_value()), shown(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Optional(None) => "none".to_owned(),
        Value::Optional(Some(inner)) => format!("optional({})", shown(inner)),
        Value::Type(ty) => ty.name().to_owned(),
        Value::Library(library) => library.library_type().name().to_owned(),
        other => match other.to_json() {
            Ok(json) => json.to_string(),
            Err(error) => error.to_string(),
        },
    }
}

/// Time that this thread was on a processor, in milliseconds.
pub(crate) fn processor_ms() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split_whitespace()
        .next()
        .and_then(|one| one.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e6
}
