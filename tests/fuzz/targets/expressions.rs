//! Expressions: a JSON document on the first line, the expression after it.

use std::sync::{Arc, LazyLock};

use serde_json::json;
use vetch::cel::{self, Activation, Budget, Environment, Origin, Program, Schema, Type};

use super::documents;

/// Of every type that a schema can have.
static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    let schema = json!({"type": "object", "properties": {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "real": {"type": "number"},
        "flag": {"type": "boolean"},
        "since": {"type": "string", "format": "date-time"},
        "lasts": {"type": "string", "format": "duration"},
        "bytes": {"type": "string", "format": "byte"},
        "either": {"x-kubernetes-int-or-string": true},
        "texts": {"type": "array", "items": {"type": "string"}, "maxItems": 50},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
        "named": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "inner": {"type": "object", "nullable": true, "properties": {"a": {"type": "integer"}}},
        "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }});
    Schema::from_json(&schema, "selfType", true).expect("a structural schema")
});

static UNTYPED: LazyLock<Environment> = LazyLock::new(|| {
    Environment::new(Origin::New)
        .with_variable("object", Type::Dyn)
        .with_variable("oldObject", Type::Dyn)
        .with_patches()
});

static TYPED: LazyLock<Environment> = LazyLock::new(|| {
    Environment::new(Origin::New)
        .with_schema("self", &SCHEMA)
        .with_schema("oldSelf", &SCHEMA)
});

/// An expression is refused, or its cost has an estimate and it is the same each time.
fn checked(environment: &Environment, text: &str, values: &[(&str, cel::Value<'_>)]) {
    let Ok(program) = Program::compile(environment, text) else {
        return;
    };
    let estimate = program.estimated_cost();
    assert!(estimate.min <= estimate.max, "{estimate:?}");
    let run = || {
        let mut activation = Activation::new(environment);
        for (name, value) in values {
            activation.bind(name, value.clone());
        }
        let (result, cost) =
            program.evaluate_with_cost(&activation, &mut Budget::for_match_conditions());
        let shown = match result {
            Ok(value) => value.to_json().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        (shown, cost)
    };
    // What asks for the time of day does not exist: the same object is judged the same.
    assert_eq!(run(), run());
}

pub fn expression(data: &[u8]) {
    let Some([document, text]) = documents(data) else {
        return;
    };
    let (Ok((document, _)), Ok(text)) = (proto::parse_json(document), std::str::from_utf8(text))
    else {
        return;
    };
    let untyped = cel::Value::from_json(&document);
    let values = [("object", untyped.clone()), ("oldObject", untyped)];
    checked(&UNTYPED, text, &values);
    match cel::Value::from_typed_json(&document, &SCHEMA) {
        Ok(typed) => checked(&TYPED, text, &[("self", typed.clone()), ("oldSelf", typed)]),
        Err(_) => checked(&TYPED, text, &[]),
    }
}
