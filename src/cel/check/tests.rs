//! Types of expressions, and what does not check.

use crate::cel::{Environment, Origin, Program, Type, testing::environment};

fn output(text: &str) -> String {
    match Program::compile(&environment(), text) {
        Ok(program) => program.output_type().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn types() {
    for (text, want) in [
        ("1", "int"),
        ("[1, 2]", "list(int)"),
        ("[]", "list(dyn)"),
        ("{}", "map(dyn, dyn)"),
        ("{'a': [1.5]}", "map(string, list(double))"),
        ("[[], [1]]", "list(list(int))"),
        ("x", "dyn"),
        ("x.a.b", "dyn"),
        ("x + 1", "int"),
        ("x + x", "dyn"),
        ("x < 1", "bool"),
        ("true ? 1 : x", "dyn"),
        ("[1].map(a, string(a))", "list(string)"),
        ("{'a': 1}.map(k, k)", "list(string)"),
        ("{'a': 1}.transformMap(k, v, [v])", "map(string, list(int))"),
        ("[1][0]", "int"),
        ("{'a': 1.5}['a']", "double"),
        ("x.?a", "optional_type(dyn)"),
        ("{'a': 1}.?a", "optional_type(int)"),
        ("optional.of(1).orValue(2)", "int"),
        ("type(1)", "type(int)"),
        ("null", "null"),
        ("timestamp(0) - timestamp(0)", "duration"),
        ("quantity('1')", "kubernetes.Quantity"),
        ("ip('::1')", "net.IP"),
        (
            "format.named('uuid')",
            "optional_type(kubernetes.NamedFormat)",
        ),
        ("url('/a').getQuery()", "map(string, list(string))"),
        ("dyn([1])", "dyn"),
        ("true ? null : timestamp(0)", "null"),
    ] {
        assert_eq!(output(text), want, "{text}");
    }
}

#[test]
fn faults() {
    for (text, want) in [
        (
            "foo",
            "1:1: undeclared reference to 'foo' (in container '')",
        ),
        (
            "foo(1)",
            "1:4: undeclared reference to 'foo' (in container '')",
        ),
        (
            "'a'.foo()",
            "1:8: undeclared reference to 'foo' (in container '')",
        ),
        (
            "1 + 'a'",
            "1:3: found no matching overload for '_+_' applied to '(int, string)'",
        ),
        (
            "'a'.startsWith(1)",
            "1:15: found no matching overload for 'startsWith' applied to 'string.(int)'",
        ),
        (
            "!1",
            "1:1: found no matching overload for '!_' applied to '(int)'",
        ),
        ("1 && true", "1:1: expected type 'bool' but found 'int'"),
        (
            "true ? 1 : 'a'",
            "1:6: found no matching overload for '_?_:_' applied to '(bool, int, string)'",
        ),
        ("1.a", "1:2: type 'int' does not support field selection"),
        ("[1, 'a']", "1:5: expected type 'int' but found 'string'"),
        (
            "{1: 1, 'a': 1}",
            "1:8: expected type 'int' but found 'string'",
        ),
        (
            "{1: 1, 2: 'a'}",
            "1:11: expected type 'int' but found 'string'",
        ),
        (
            "1.all(a, true)",
            "1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("[1].all(a, 1)", "expected type 'bool' but found 'int'"),
        (
            "[1].map(a, b)",
            "1:12: undeclared reference to 'b' (in container '')",
        ),
        (
            "[?1]",
            "1:3: expected type 'optional_type(int)' but found 'int'",
        ),
        ("int{}", "1:4: 'int' is not a message type"),
        (
            "Msg{}",
            "1:4: undeclared reference to 'Msg' (in container '')",
        ),
        (
            "1 == 'a'",
            "1:3: found no matching overload for '_==_' applied to '(int, string)'",
        ),
        (
            "[].map(x, [].map(y, x in y && y in x))",
            "found no matching overload for '@in' applied to '(list(dyn), dyn)'",
        ),
        ("duration('1')", "1:10: invalid duration argument"),
        ("timestamp('x')", "1:11: invalid timestamp argument"),
        ("'a'.matches('(')", "1:13: invalid matches argument"),
        ("url('/a').foo", "1:10: undefined field 'foo'"),
    ] {
        let found = output(text);
        assert!(
            found.starts_with("ERROR: <input>:") && found.contains(want),
            "{text}\n{found}"
        );
    }
}

/// All faults at once, each with its line.
#[test]
fn many_faults() {
    let found = output("foo == 1 &&\n  bar == 'a'");
    let want = "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n \
                | foo == 1 &&\n | ^\n\
                ERROR: <input>:2:3: undeclared reference to 'bar' (in container '')\n \
                |   bar == 'a'\n | ..^";
    assert_eq!(found, want);
}

/// The variable of a loop hides what has its name outside.
#[test]
fn scopes() {
    let environment = Environment::new(Origin::New)
        .with_variable("a", Type::String)
        .with_variable("a.b", Type::Int);
    for (text, want) in [
        ("a.b", "int"),
        ("[{'b': 1.5}].map(a, a.b)", "list(double)"),
        ("[1].map(a, .a)", "list(string)"),
    ] {
        let found = match Program::compile(&environment, text) {
            Ok(program) => program.output_type().to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, want, "{text}");
    }
}
