//! What expressions are estimated to cost, and what they cost.

use serde_json::{Value as Json, json};

use crate::cel::{Activation, Budget, CompileError, Environment, Origin, Program, Schema, Value};

/// Estimate (least and most) and actual cost of a rule about `self`.
fn costs(schema: &Json, object: &Json, text: &str) -> Result<(u64, u64, u64), CompileError> {
    let schema = match Schema::from_json(schema, "selfType", false) {
        Some(schema) => schema,
        None => panic!("no schema: {schema}"),
    };
    let environment = Environment::new(Origin::New).with_schema("self", &schema);
    let program = Program::compile(&environment, text)?;
    let mut activation = Activation::new(&environment);
    if let Ok(value) = Value::from_typed_json(object, &schema) {
        activation.bind("self", value);
    }
    let (_, cost) = program.evaluate_with_cost(&activation, &mut Budget::for_rules());
    let estimate = program.estimated_cost();
    Ok((estimate.min, estimate.max, cost))
}

#[test]
fn of_literals_and_libraries() -> Result<(), CompileError> {
    let schema = json!({"type": "boolean"});
    for (text, min, max, actual) in [
        ("1 + 2 == 3", 2, 2, 2),
        ("[1, 2, 3].all(i, i > 0)", 20, 26, 16), // a constant list is free when it runs
        ("{'a': 1, 'b': 2}.all(k, v, v > 0)", 37, 41, 11),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v + 1)", 71, 71, 11),
        ("'abcdefghij'.contains('abcdefghij')", 1, 1, 1),
        ("'abcdefghij'.matches('abcdefghij')", 6, 6, 6),
        ("semver('1.0.0').isLessThan(semver('1.1.0'))", 3, 3, 3),
        ("quantity('1').isGreaterThan(quantity('2'))", 3, 3, 3),
        ("sets.contains([1, 2], [1])", 23, 23, 3),
        ("[3, 1].sort()", 29, 29, 19),
        ("lists.range(3)", 14, 14, 14),
        (
            "optional.of('a').optMap(v, v == 'value').hasValue()",
            4,
            18,
            8,
        ),
    ] {
        let found = costs(&schema, &json!(true), text)?;
        assert_eq!(found, (min, max, actual), "{text}");
    }
    Ok(())
}

#[test]
fn by_schema() -> Result<(), CompileError> {
    let schema = json!({"type": "object", "properties": {
        "s": {"type": "string", "maxLength": 10},
        "l": {"type": "array", "maxItems": 100, "items": {"type": "string", "maxLength": 5}},
        "m": {"type": "object", "maxProperties": 7, "additionalProperties": {"type": "integer"}},
        "u": {"type": "array", "items": {"type": "string"}},
    }});
    let object = json!({"s": "abc", "l": ["a", "b"], "m": {"k": 1}, "u": []});
    for (text, min, max, actual) in [
        ("self.s == 'abc'", 3, 3, 3),
        ("self.s.startsWith('ab')", 3, 3, 3),
        ("self.s.contains('ab')", 2, 6, 3),
        ("self.s + self.s == 'abcabc'", 5, 13, 6),
        ("self.l.all(e, e == 'a')", 3, 503, 13),
        ("self.l.all(e, e.size() < 5)", 3, 603, 15),
        ("self.m.all(k, k == 'k')", 3, 31, 8), // nothing is known of the size of keys
        ("self.l.exists(a, self.l.exists(b, a == b))", 3, 80_703, 23),
        ("self.u.all(e, e == 'a')", 3, 5_242_878, 3),
        ("self.l.isSorted()", 2, 302, 2),
        ("self.l.join('-') == 'a-b'", 3, 213, 4),
    ] {
        let found = costs(&schema, &object, text)?;
        assert_eq!(found, (min, max, actual), "{text}");
    }
    Ok(())
}
