//! What parses, and what is said of what does not.

use proptest::prelude::*;

use super::parse;
use crate::cel::source::Source;

fn faults(text: &str) -> String {
    match parse(&Source::new(text)) {
        Ok(_) => String::new(),
        Err(issues) => issues.to_string(),
    }
}

#[test]
fn parses() {
    for text in [
        "a.b.c[0].d(e, f)",
        ".a + .b.c",
        "a ? b : c ? d : e",
        "!a && !!b || - - c == -1",
        "[1, 2u, 0xFF, 1.5, .5, 1e3, 'a', \"b\", r'\\', b'c', '''d\n''', true, null,]",
        "{'a': 1, ?b: c,}",
        "[?a, b]",
        "a.?b[?c]",
        "A.B{c: 1, ?d: e, `f-g`: h,}",
        "a in b && c != d",
        "a // comment\n + b",
        "a.in.b",
        "a.while",
        "[].exists_one(x, x)",
        "{}",
        "[]",
    ] {
        let found = faults(text);
        let allowed = text == "a.in.b" && found.contains("no viable alternative at input '.in'");
        assert!(found.is_empty() || allowed, "{text}: {found}");
    }
}

#[test]
fn messages() {
    const EXPRESSION: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, \
                              NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
    let eof = format!("mismatched input '<EOF>' expecting {EXPRESSION}");
    for (text, want) in [
        ("", format!("1:1: Syntax error: {eof}")),
        ("1 +", format!("1:4: Syntax error: {eof}")),
        (
            "a b",
            "1:3: Syntax error: extraneous input 'b' expecting <EOF>".to_owned(),
        ),
        (
            "*a",
            format!("1:1: Syntax error: extraneous input '*' expecting {EXPRESSION}"),
        ),
        ("(1", "1:3: Syntax error: missing ')' at '<EOF>'".to_owned()),
        (
            "f(1 2)",
            "1:5: Syntax error: extraneous input '2' expecting ')'".to_owned(),
        ),
        (
            "a ? b",
            "1:6: Syntax error: mismatched input '<EOF>' expecting ':'".to_owned(),
        ),
        (
            "{a}",
            "1:3: Syntax error: mismatched input '}' expecting ':'".to_owned(),
        ),
        (
            "[1",
            "1:3: Syntax error: mismatched input '<EOF>' expecting {']', ','}".to_owned(),
        ),
        (
            "a.",
            "1:3: Syntax error: no viable alternative at input '.'".to_owned(),
        ),
        (
            "a.true",
            "1:3: Syntax error: mismatched input 'true' expecting IDENTIFIER".to_owned(),
        ),
        (
            "--",
            "1:3: Syntax error: no viable alternative at input '-'".to_owned(),
        ),
        (
            "1 $ 2",
            "1:3: Syntax error: token recognition error at: '$'".to_owned(),
        ),
        (
            "a | b",
            "1:3: Syntax error: token recognition error at: '| '".to_owned(),
        ),
        (
            "'abc",
            "1:1: Syntax error: token recognition error at: ''abc'".to_owned(),
        ),
        ("as", "1:1: reserved identifier: as".to_owned()),
        ("has(a)", "1:5: invalid argument to has() macro".to_owned()),
        (
            "[].all(a.b, true)",
            "argument must be a simple name".to_owned(),
        ),
        (
            "[].map(a.b, true)",
            "argument is not an identifier".to_owned(),
        ),
        (
            "[].map(__result__, 1)",
            "iteration variable overwrites accumulator variable".to_owned(),
        ),
        (
            "[].all(a, a, true)",
            "duplicate variable name: a".to_owned(),
        ),
        (
            "a.optMap(b.c, 1)",
            "optMap() variable name must be a simple identifier".to_owned(),
        ),
        (
            "99999999999999999999",
            "1:1: invalid int literal".to_owned(),
        ),
        ("1.99e90000009", "1:1: invalid double literal".to_owned()),
        ("'\\ud800'", "1:1: invalid unicode code point".to_owned()),
    ] {
        let found = faults(text);
        assert!(found.contains(&want), "{text}\nwant {want}\nfound {found}");
    }
}

/// Tokens in any order: what a generator of random bytes would hardly ever put together.
fn tokens() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "a",
        "b.c",
        "1",
        "1u",
        "1.5",
        "'s'",
        "b'x'",
        "true",
        "null",
        "in",
        "if",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        "?",
        ".?",
        "[?",
        ",",
        ":",
        "+",
        "-",
        "*",
        "!",
        "&&",
        "||",
        "==",
        "<",
        ".all(x, ",
        ".map(y, ",
        ".optMap(z, ",
        ".sortBy(k, ",
        "has(",
        "\"",
        "`",
        "\\",
        "\n",
        "//",
        "'''",
        "r'",
        "0x",
        "\u{1F600}",
        "$",
    ]);
    prop::collection::vec(token, 0..60).prop_map(|parts| parts.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_panics_on_text(text in "\\PC{0,200}") {
        faults(&text);
    }

    #[test]
    fn never_panics_on_tokens(text in tokens()) {
        let environment = crate::cel::testing::environment();
        // All the way: what parses is checked, estimated, planned and evaluated.
        crate::cel::testing::eval_with(&environment, &serde_json::json!({"a": [1]}), &text);
    }

    /// Every fault has a place in the text.
    #[test]
    fn faults_are_shown(text in tokens()) {
        let found = faults(&text);
        prop_assert!(found.is_empty() || found.starts_with("ERROR: <input>:"));
    }
}
