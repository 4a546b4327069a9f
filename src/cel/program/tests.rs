//! Expressions and their values.

use serde_json::json;

use crate::cel::{
    Activation, Budget, CompileError, Environment, EvalError, Origin, PER_CALL_LIMIT, Program,
    Type, Value,
    testing::{environment, eval, eval_with, shown},
};

#[test]
fn arithmetic() {
    for (text, want) in [
        ("1 + 2 * 3 - 4 / 2", "5"),
        ("-7 / 2", "-3"),
        ("-7 % 3", "-1"),
        ("7u % 4u", "3u"),
        ("1.5 + 2.5", "4.0"),
        ("1.0 / 0.0", "inf"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("-9223372036854775808 - 1", "error: integer overflow"),
        ("-9223372036854775808 / -1", "error: integer overflow"),
        ("-(-9223372036854775808)", "error: integer overflow"),
        ("9223372036854775807 * 2", "error: integer overflow"),
        ("0u - 1u", "error: unsigned integer overflow"),
        (
            "18446744073709551615u + 1u",
            "error: unsigned integer overflow",
        ),
        ("1 / 0", "error: division by zero"),
        ("1 % 0", "error: modulus by zero"),
        ("1u / 0u", "error: division by zero"),
        ("--5", "5"),
        ("!!true", "true"),
        ("'a' + 'b'", "\"ab\""),
        ("b'a' + b'\\xff'", "b\"a\u{fffd}\""),
        ("[1] + [2, 3]", "[1, 2, 3]"),
        ("dyn(1) + dyn('a')", "error: no such overload"),
        ("dyn(true) + dyn(1)", "error: no such overload: _+_"),
    ] {
        assert_eq!(eval(text), want, "{text}");
    }
}

#[test]
fn comparison_and_equality() {
    for (text, want) in [
        ("1 < 2u && 2u < 2.5 && 2.5 < 3", "true"),
        ("1 == 1", "true"),
        ("dyn(1) == dyn(1.0) && dyn(1) == dyn(1u)", "true"),
        ("dyn(1) == dyn('1')", "false"),
        ("null == null", "true"),
        ("dyn(null) == dyn(1)", "false"),
        ("[1, 2] == [1, 2]", "true"),
        ("{'a': [1]} == {'a': [1]}", "true"),
        ("{'a': 1} == {'b': 1}", "false"),
        ("[dyn(1)] == [dyn(1.0)]", "true"),
        ("'a' < 'b' && b'a' <= b'a' && false < true", "true"),
        ("dyn('a') < dyn(1)", "error: no such overload"),
        ("dyn([1]) < dyn(1)", "error: no such overload: _<_"),
        ("double('NaN') == double('NaN')", "false"),
        ("double('NaN') < 1.0", "error: NaN values cannot be ordered"),
        ("1 in [1, 2] && !(3 in [1, 2])", "true"),
        ("dyn(1.0) in [1, 2]", "true"),
        ("'a' in {'a': 1}", "true"),
        ("2 in {1: 'a'}", "false"),
        (
            "type(1) == int && type('') == string && type(type(1)) == type",
            "true",
        ),
        (
            "type([]) == list && type({}) == map && type(null) == null_type",
            "true",
        ),
        ("type(timestamp(0)) == google.protobuf.Timestamp", "true"),
        ("duration('1h') == duration('60m')", "true"),
        ("1 < 2 ? 'yes' : 'no'", "\"yes\""),
    ] {
        assert_eq!(eval(text), want, "{text}");
    }
}

/// Errors are absorbed by what does not depend on them.
#[test]
fn absorption() {
    for (text, want) in [
        ("1 / 0 == 1 || true", "true"),
        ("true || 1 / 0 == 1", "true"),
        ("1 / 0 == 1 && false", "false"),
        ("1 / 0 == 1 && true", "error: division by zero"),
        ("1 / 0 == 1 || 1 % 0 == 1", "error: division by zero"),
        ("dyn(1) && true", "error: no such overload"),
        ("dyn(1) || true", "true"),
        ("[1, 0].all(i, 1 / i < 0)", "false"),
        ("[0, 1].all(i, 1 / i < 0)", "false"),
        ("[0, 1].exists(i, 1 / i > 0)", "true"),
        ("[0, 1].all(i, 1 / i > 0)", "error: division by zero"),
        ("[0, 1].exists_one(i, 1 / i > 0)", "error: division by zero"),
        ("[0, 1].map(i, 1 / i)", "error: division by zero"),
        ("(1 / 0 > 0 ? true : false) || true", "true"),
        ("dyn(1) ? 1 : 2", "error: no such overload"),
    ] {
        assert_eq!(eval(text), want, "{text}");
    }
}

#[test]
fn macros() {
    for (text, want) in [
        ("[1, 2, 3].all(i, i > 0)", "true"),
        ("[].all(i, i > 0)", "true"),
        ("[].exists(i, i > 0)", "false"),
        ("[1, 2, 3].exists_one(i, i > 2)", "true"),
        ("[1, 2, 3].existsOne(i, i > 1)", "false"),
        ("[1, 2, 3].map(i, i * 2)", "[2, 4, 6]"),
        ("[1, 2, 3].map(i, i > 1, i * 2)", "[4, 6]"),
        ("[1, 2, 3].filter(i, i != 2)", "[1, 3]"),
        ("[1, 2].map(i, [3, 4].map(j, i * j))", "[[3, 4], [6, 8]]"),
        ("[1, 2].map(i, 0)", "[0, 0]"),
        ("{'a': 1, 'b': 2}.all(k, k < 'c')", "true"),
        ("{'a': 1, 'b': 2}.map(k, k)", "[\"a\", \"b\"]"),
        ("[5, 6].all(i, v, v == i + 5)", "true"),
        ("{'a': 1}.exists(k, v, k == 'a' && v == 1)", "true"),
        ("[5, 6].existsOne(i, v, i == 1)", "true"),
        ("[5, 6].transformList(i, v, i + v)", "[5, 7]"),
        ("[5, 6].transformList(i, v, i > 0, i + v)", "[7]"),
        (
            "{'a': 1, 'b': 2}.transformMap(k, v, v + 1)",
            "{\"a\": 2, \"b\": 3}",
        ),
        (
            "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v + 1)",
            "{\"b\": 3}",
        ),
        (
            "['x', 'y'].transformMapEntry(i, v, {v: i})",
            "{\"x\": 0, \"y\": 1}",
        ),
        (
            "['x', 'x'].transformMapEntry(i, v, {v: i})",
            "error: insert failed: key x already exists",
        ),
        ("[3, 1, 2].sortBy(i, -i)", "[3, 2, 1]"),
        ("[1].map(i, [i].map(i, i + 1))", "[[2]]"), // the inner one hides the outer one
        (
            "dyn(1).all(i, true)",
            "error: got 'types.Int', expected iterable type",
        ),
        (
            "dyn(1).all(i, v, true)",
            "error: unsupported comprehension range type: types.Int",
        ),
    ] {
        assert_eq!(eval(text), want, "{text}");
    }
}

#[test]
fn selection() {
    let object = json!({"a": {"b": [1, {"c": null}]}, "if": 1, "d-e": 2, "n": 1.5, "t": true});
    let environment = environment();
    for (text, want) in [
        ("x.a.b[0]", "1"),
        ("x['a']['b'][1].c", "null"),
        ("x.a.b[2]", "error: index out of bounds: 2"),
        ("x.a.b[-1]", "error: index out of bounds: -1"),
        (
            "x.a.b['z']",
            "error: unsupported index type 'string' in list",
        ),
        ("x.a.b[1.0].c", "null"),
        ("x.a.b[0.5]", "error: unsupported index value 0.5 in list"),
        ("x.a.z", "error: no such key: z"),
        ("x.t.z", "error: no such key: z"),
        ("x[1]", "error: no such key: 1"),
        ("x.if", "1"),
        ("x.`d-e`", "2"),
        ("has(x.a.b)", "true"),
        ("has(x.a.z)", "false"),
        ("has(x.z.b)", "error: no such key: z"),
        ("has(x.t.z)", "false"),
        ("x.?a.?b", "optional([1, {\"c\": null}])"),
        ("x.?z.b", "none"),
        ("x.?a.z", "none"), // what follows an optional is optional
        ("x.?a.b[?0]", "optional(1)"),
        ("x.a.b[?7].hasValue()", "false"),
        ("x[?'z'].orValue('none')", "\"none\""),
        ("x.?a.?b.orValue([])[0]", "1"),
        ("x.?z.or(x.?n).value()", "1.5"),
        ("(x.t ? x.a : x).b[0]", "1"),
        ("x.a.b[x.a.b[0]].c == null", "true"),
        ("{'k': x}.k.n", "1.5"),
        ("x.a.map(k, k)", "[\"b\"]"),
    ] {
        assert_eq!(eval_with(&environment, &object, text), want, "{text}");
    }
}

#[test]
fn optionals() {
    for (text, want) in [
        ("optional.of(1)", "optional(1)"),
        ("optional.none()", "none"),
        ("optional.ofNonZeroValue('')", "none"),
        ("optional.ofNonZeroValue([0])", "optional([0])"),
        (
            "optional.none().value()",
            "error: optional.none() dereference",
        ),
        ("optional.of(1).optMap(i, i + 1)", "optional(2)"),
        ("optional.none().optMap(i, i + 1)", "none"),
        (
            "optional.of(1).optFlatMap(i, optional.of(i + 1))",
            "optional(2)",
        ),
        ("optional.of(1) == optional.of(1)", "true"),
        ("optional.of(1) == optional.none()", "false"),
        ("[?optional.of(1), ?optional.none(), 2]", "[1, 2]"),
        (
            "{?'a': optional.of(1), ?'b': optional.none()}",
            "{\"a\": 1}",
        ),
        ("optional.of({'a': 1}).a", "optional(1)"),
        ("optional.of({'a': 1}).b", "none"),
        ("optional.of([1])[0]", "optional(1)"),
        ("[1, 2].first().value() + [1, 2].last().value()", "3"),
        ("[].first()", "none"),
        ("optional.unwrap([optional.of(1), optional.none()])", "[1]"),
        ("[optional.of(1)].unwrapOpt()", "[1]"),
        ("optional.of(1).orValue(1 / 0)", "1"), // not evaluated
    ] {
        assert_eq!(eval(text), want, "{text}");
    }
}

#[test]
fn conversions() {
    for (text, want) in [
        ("int('42') + int(3.9) + int(2u)", "47"),
        ("int('4x')", "type conversion error from 'string' to 'int'"),
        ("int(x)", "error: no such overload: int(null_type)"),
        ("int(1e30)", "integer overflow"),
        ("uint(-1)", "unsigned integer overflow"),
        ("double('1.5') + double(1)", "2.5"),
        (
            "string(1) + string(2u) + string(1.5) + string(true)",
            "\"121.5true\"",
        ),
        ("string(1000000.0) + string(0.00001)", "\"1e+061e-05\""),
        (
            "string(b'\\xff')",
            "invalid UTF-8 in bytes, cannot convert to string",
        ),
        ("bytes('é').size()", "2"),
        ("'é'.size()", "1"),
        ("bool('true') && !bool('F')", "true"),
        (
            "bool('yes')",
            "type conversion error from 'string' to 'bool'",
        ),
        ("string(duration('1h30m'))", "\"5400s\""),
        (
            "string(timestamp('2000-01-01T02:00:00+02:00'))",
            "\"2000-01-01T02:00:00+02:00\"",
        ),
        ("int(timestamp('1970-01-01T00:01:00Z'))", "60"),
        ("int(duration('1us'))", "1000"),
        ("timestamp(60) == timestamp('1970-01-01T00:01:00Z')", "true"),
        (
            "timestamp(253402300800)",
            "1:11: invalid timestamp argument",
        ),
    ] {
        let found = eval(text);
        assert!(found.contains(want), "{text}: {found}");
    }
}

#[test]
fn time() {
    for (text, want) in [
        ("timestamp('2011-10-30T23:15:10.5Z').getFullYear()", "2011"),
        ("timestamp('2011-10-30T23:15:10.5Z').getMonth()", "9"),
        ("timestamp('2011-10-30T23:15:10.5Z').getDate()", "30"),
        ("timestamp('2011-10-30T23:15:10.5Z').getDayOfMonth()", "29"),
        ("timestamp('2011-10-30T23:15:10.5Z').getDayOfWeek()", "0"),
        ("timestamp('2011-10-30T23:15:10.5Z').getDayOfYear()", "302"),
        (
            "timestamp('2011-10-30T23:15:10.5Z').getMilliseconds()",
            "500",
        ),
        ("timestamp('2011-10-30T23:15:10+05:00').getHours()", "18"),
        ("timestamp('2011-10-30T23:15:10Z').getHours('+02:00')", "1"),
        (
            "timestamp('2011-10-30T23:15:10Z').getMinutes('-00:30')",
            "45",
        ),
        (
            "timestamp('2011-10-30T23:15:10Z').getHours('02:99')",
            "error: timezone offset minutes out of range [0, 59]: 02:99",
        ),
        (
            "timestamp('2011-10-30T23:15:10Z').getHours('No/Where')",
            "error: unknown time zone No/Where",
        ),
        (
            "duration('1h30m').getMinutes() + duration('90s').getSeconds()",
            "180",
        ),
        (
            "timestamp('2000-01-01T00:00:00Z') + duration('1h')",
            "2000-01-01T01:00:00Z",
        ),
        (
            "timestamp('2000-01-02T00:00:00Z') - timestamp('2000-01-01T00:00:00Z')",
            "86400s",
        ),
        (
            "timestamp('9999-12-31T23:59:59Z') + duration('1s')",
            "error: timestamp overflow",
        ),
        (
            "duration('2000000h') + duration('2000000h')",
            "error: duration overflow",
        ),
        (
            "timestamp('9999-12-31T23:59:59Z') - timestamp('0001-01-01T00:00:00Z')",
            "error: duration overflow",
        ),
    ] {
        assert_eq!(eval(text), want, "{text}");
    }
}

#[test]
fn variables_and_composition() -> Result<(), CompileError> {
    let mut environment = Environment::new(Origin::New)
        .with_variable("object", Type::Dyn)
        .with_variable("a.b", Type::Int)
        .with_composition();
    let images = Program::compile(&environment, "object.containers.map(c, c.image)")?;
    environment.compose("images", images.output_type());
    let count = Program::compile(&environment, "variables.images.size()")?;
    environment.compose("count", count.output_type());
    let broken = Program::compile(&environment, "object.missing")?;
    environment.compose("broken", broken.output_type());
    environment.compose("unknown", &Type::Dyn);
    let object = json!({"containers": [{"image": "a"}, {"image": "b"}]});
    let cases = [
        (
            "variables.count == 2 && variables.images == ['a', 'b']",
            "true",
        ),
        ("a.b + 1", "8"),
        (
            "variables.broken",
            "composited variable \"broken\" fails to evaluate: no such key: missing",
        ),
        (
            "variables.unknown",
            "composited variable \"unknown\" fails to compile: why",
        ),
        ("has(variables.count)", "true"),
        ("true || variables.broken", "true"),
    ];
    let programs = cases.map(|(text, _)| Program::compile(&environment, text));
    let mut activation = Activation::new(&environment);
    activation
        .bind("object", Value::from_json(&object))
        .bind("a.b", Value::Int(7))
        .define("images", Ok(&images))
        .define("count", Ok(&count))
        .define("broken", Ok(&broken))
        .define("unknown", Err("why".to_owned()));
    for ((text, want), program) in cases.iter().zip(&programs) {
        let found = match program {
            Ok(program) => match program.evaluate(&activation, &mut Budget::for_rules()) {
                Ok(value) => shown(&value),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert_eq!(found, *want, "{text}");
    }
    let wrong = Program::compile(&environment, "variables.nothing");
    assert!(wrong.is_err_and(|error| error.to_string().contains("undefined field 'nothing'")));
    Ok(())
}

#[test]
fn patches() {
    let environment = environment().with_patches();
    for (text, want) in [
        (
            "Object{spec: Object.spec{replicas: 3}}",
            r#"{"spec":{"replicas":3}}"#,
        ),
        (
            "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('k/v~'), value: [1]}]",
            r#"[{"op":"add","path":"/a/k~1v~0","value":[1]}]"#,
        ),
        ("Object{a: 1}.a", "1"),
        ("Object{?a: optional.none()}", "{}"),
        ("Object{a: 1} == Object{a: 1}", "true"),
    ] {
        assert_eq!(eval_with(&environment, &json!(null), text), want, "{text}");
    }
    let without = eval("Object{a: 1}");
    assert!(
        without.contains("undeclared reference to 'Object'"),
        "{without}"
    );
}

#[test]
fn budgets() -> Result<(), CompileError> {
    let environment = environment();
    let numbers: Vec<u32> = (0..1000).collect();
    let x = json!(numbers);
    let program = Program::compile(&environment, "x.all(a, x.all(b, a + b >= 0))")?;
    let absorbing = Program::compile(&environment, "x.all(a, x.all(b, a + b >= 0)) || true")?;
    let mut activation = Activation::new(&environment);
    activation.bind("x", Value::from_json(&x));
    let mut budget = Budget::for_rules();
    let result = program.evaluate(&activation, &mut budget);
    assert_eq!(result.err(), Some(EvalError::CostLimit));
    assert!(budget.remaining() <= 10_000_000 - PER_CALL_LIMIT);
    let mut budget = Budget::new(10);
    let result = program.evaluate(&activation, &mut budget);
    assert_eq!(result.err(), Some(EvalError::Budget));
    assert_eq!(budget.remaining(), 0);
    // What ends an evaluation is absorbed by nothing.
    let result = absorbing.evaluate(&activation, &mut Budget::for_rules());
    assert_eq!(result.err(), Some(EvalError::CostLimit));
    Ok(())
}
