//! Values: sizes in memory, JSON and back.

use serde_json::json;

use super::{EvalError, Value, compare, equal, identity};
use crate::cel::{
    Budget,
    program::Meter,
    schema::ListKind,
    testing::{eval, shown},
};

#[test]
fn json_and_back() {
    let json = json!({"a": [1, 1.5, "x", null, true, {"b": []}], "big": u64::MAX});
    let value = Value::from_json(&json);
    assert_eq!(value.to_json().as_ref(), Ok(&json));
    // Numbers beyond an int are doubles.
    assert!(
        shown(&value).contains("\"big\": 1.8446744073709552e19"),
        "{}",
        shown(&value)
    );
}

#[test]
fn made_values_as_json() {
    for (text, want) in [
        (
            "{'a': dyn([1, 2]), 'b': dyn(2u), 'c': dyn(1.5)}",
            r#"{"a":[1,2],"b":2,"c":1.5}"#,
        ),
        ("{'a': b'hi'}", r#"{"a":"aGk="}"#),
        ("duration('90s')", "90s"),
        ("timestamp('2000-01-01T00:00:00Z')", "2000-01-01T00:00:00Z"),
    ] {
        let found = match text {
            text if text.starts_with('{') => {
                let environment = crate::cel::testing::environment();
                let program = crate::cel::Program::compile(&environment, text);
                let activation = crate::cel::Activation::new(&environment);
                let program = program.unwrap_or_else(|error| panic!("{error}"));
                let value = program.evaluate(&activation, &mut Budget::for_rules());
                let json = value.and_then(|value| value.to_json());
                json.map(|json| json.to_string()).unwrap_or_default()
            }
            text => eval(text),
        };
        assert_eq!(found, want, "{text}");
    }
    assert!(
        Value::Map(super::Map::new([(super::Key::Int(1), Value::Null)].into()).unwrap())
            .to_json()
            .is_err()
    );
}

#[test]
fn keys_of_elements() -> Result<(), EvalError> {
    let items = [Value::Int(1), Value::text("a")];
    let places = identity::places(&ListKind::Set, &items)?.unwrap_or_default();
    assert_eq!(
        identity::place(&ListKind::Set, &places, &Value::Uint(1))?,
        Some(0)
    );
    assert_eq!(
        identity::place(&ListKind::Set, &places, &Value::text("b"))?,
        None
    );
    assert_eq!(identity::places(&ListKind::Atomic, &items)?, None);
    Ok(())
}

#[test]
fn order_and_equality_agree() -> Result<(), EvalError> {
    let patterns = Default::default();
    let mut meter = Meter::new(Budget::for_rules(), &patterns);
    let numbers = [
        Value::Int(-1),
        Value::Double(-0.5),
        Value::Uint(0),
        Value::Int(3),
        Value::Double(3.5),
    ];
    for (index, one) in numbers.iter().enumerate() {
        for (other, two) in numbers.iter().enumerate() {
            assert_eq!(compare(one, two)?, index.cmp(&other), "{one:?} {two:?}");
            assert_eq!(equal(&mut meter, one, two)?, index == other);
        }
    }
    Ok(())
}
