//! Expressions made to hurt: each is refused, or ends, within a bounded time of the processor.

use serde_json::{Value as Json, json};

use crate::cel::{Activation, Budget, Environment, Program, Type, Value, testing::processor_ms};

/// Milliseconds of the processor, without optimisation and on a slow one.
const LIMIT_MS: f64 = if cfg!(debug_assertions) {
    2_000.0
} else {
    100.0
};

/// Compiles and evaluates with a list for `x`; gives what came of it.
fn outcome(text: &str, x: &Json) -> String {
    let environment = Environment::default().with_variable("x", Type::Dyn);
    let start = processor_ms();
    let program = Program::compile(&environment, text);
    let compiled = processor_ms();
    let shown: String = text.chars().take(60).collect();
    let took = compiled - start;
    println!("{took:7.1} ms to compile {shown}");
    assert!(took < LIMIT_MS, "{took} ms to compile {shown}");
    let program = match program {
        Ok(program) => program,
        Err(error) => return error.to_string(),
    };
    let mut activation = Activation::new(&environment);
    activation.bind("x", Value::from_json(x));
    let result = match program.evaluate(&activation, &mut Budget::for_rules()) {
        Ok(_) => "value".to_owned(),
        Err(error) => error.to_string(),
    };
    let took = processor_ms() - compiled;
    println!(
        "{took:7.1} ms to evaluate: {}",
        result.chars().take(60).collect::<String>()
    );
    assert!(took < LIMIT_MS, "{took} ms to evaluate {shown}");
    result
}

fn pattern_list(count: usize) -> String {
    let patterns = (0..count).map(|index| format!("x.matches('(a{{1000}}){{9}}{index}')"));
    patterns.collect::<Vec<_>>().join(" || ")
}

#[test]
fn too_large_or_too_deep() {
    let none = Json::Null;
    let nested = |open: &str, close: &str, times: usize| {
        format!("{}1{}", open.repeat(times), close.repeat(times))
    };
    for (text, want) in [
        (
            "1".repeat(1 << 20),
            "expression code point size exceeds limit",
        ),
        (
            "\u{1F600}".repeat(100_001),
            "expression code point size exceeds limit",
        ),
        (nested("(", ")", 40_000), "recursion limit exceeded: 250"),
        (nested("[", "]", 40_000), "recursion limit exceeded: 250"),
        (nested("{1:", "}", 20_000), "recursion limit exceeded: 250"),
        (nested("f(", ")", 20_000), "recursion limit exceeded: 250"),
        (
            format!("x{}", ".a".repeat(40_000)),
            "recursion limit exceeded: 250",
        ),
        (
            format!("x{}", "[0]".repeat(30_000)),
            "recursion limit exceeded: 250",
        ),
        (
            format!("1{}", "+1".repeat(40_000)),
            "recursion limit exceeded: 250",
        ),
        (
            format!("1{}", "<1".repeat(40_000)),
            "recursion limit exceeded: 250",
        ),
        (
            format!("{}1", "true?1:".repeat(10_000)),
            "recursion limit exceeded: 250",
        ),
        ("(".repeat(99_999), "recursion limit exceeded: 250"),
        ("$".repeat(99_999), "token recognition error"),
        ("\"".repeat(99_999), "error"),
        ("`".repeat(99_999), "token recognition error"),
        // Each copies its target.
        (format!("x{}", ".optMap(y, y)".repeat(60)), "too large"),
        // Each level pairs the type of the level before with itself.
        (
            (0..60).fold("[1]".to_owned(), |text, _| {
                format!("{text}.map(y, {{'a': [y], 'b': [y]}})")
            }),
            "",
        ),
        (
            format!("x.matches('a') || {}", pattern_list(2000)),
            "regular expressions are too large",
        ),
    ] {
        let found = outcome(&text, &none);
        assert!(
            found.contains(want),
            "{}: {found}",
            &text[..60.min(text.len())]
        );
    }
}

#[test]
fn deep_but_allowed() {
    let levels = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    for text in [
        levels("(", "1", ")", 240),
        levels("[", "1", "]", 240),
        format!("1{}", "+1".repeat(240)),
        format!("true{}", "&&true".repeat(15_000)),
        levels("[1].map(a, ", "a", ")", 90),
        levels("[1].all(a, ", "true", ")", 90),
        format!("[{}]", "1,".repeat(45_000)),
    ] {
        assert_eq!(outcome(&text, &Json::Null), "value", "{}", &text[..20]);
    }
}

#[test]
fn endless_at_run_time() {
    let numbers: Vec<u32> = (0..50_000).collect();
    let words = vec!["a".repeat(1000); 1000];
    let mut state = 1_u64;
    let mut bit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if state >> 63 == 0 { 'a' } else { 'b' }
    };
    let mut mixed = || (0..2000).map(|_| bit()).collect::<String>();
    let mixed: Vec<String> = (0..1000).map(|_| mixed()).collect();
    let over = "operation cancelled: actual cost limit exceeded";
    for (text, x, want) in [
        (
            "x.all(a, x.all(b, x.all(c, a + b + c >= 0)))",
            json!(numbers),
            over,
        ),
        ("x.map(a, x).size() > 0", json!(numbers), "value"),
        // Joining costs 1 in the original, however long the lists.
        ("x.map(a, x + x).size() > 0", json!(numbers), over),
        ("x.all(a, x == x)", json!(numbers), over),
        ("x.all(a, [x, x, x] == [x, x, x])", json!(numbers), over),
        ("sets.equivalent(x, x)", json!(numbers), over),
        ("x.distinct().size()", json!(numbers), over),
        ("lists.range(1000000000).size()", json!(0), over),
        ("lists.range(9223372036854775807).size()", json!(0), over),
        (
            "x.all(a, x.exists(b, a.contains(b + 'b')))",
            json!(words),
            over,
        ),
        ("x.map(a, a.replace('', a)).size()", json!(words), over),
        ("x.join(x.join('')).size()", json!(words), over),
        (
            "x.all(a, a.matches('(' + a + ')*b') || true)",
            json!(words),
            over,
        ),
        (
            "x.all(a, 'b'.matches('((a{9}){9}){9}' + string(a)) || true)",
            json!(numbers),
            over,
        ),
        (
            "x.all(a, a.matches('(a*)*(a*)*(a*)*b') || true)",
            json!(words),
            "value",
        ),
        (
            "x.all(a, a.matches('(a{1000})*b') || true)",
            json!(words),
            "value",
        ),
        (
            "x.all(a, a.matches('[ab]*a[ab]{900}c') || true)",
            json!(mixed),
            over,
        ),
        (
            "x.all(a, a.find('[ab]*a[ab]{900}c') == '')",
            json!(mixed),
            over,
        ),
        (
            "x.join().findAll('.*[^a-b]|[ab]').size()",
            json!(mixed),
            over,
        ),
        (
            "'%.999f%.999f'.format([1.0, 1.0]).size()",
            json!(0),
            "value",
        ),
        (
            "'%.9999999f'.format([1.0])",
            json!(0),
            "error while parsing precision",
        ),
        ("'%s'.format([x.map(a, x)]).size()", json!(numbers), over),
        ("x.all(a, '%s'.format([x]) != '')", json!(numbers), over),
        ("x.sortBy(a, -a).sortBy(a, a).size()", json!(numbers), over),
    ] {
        let found = outcome(text, &x);
        assert!(found.contains(want), "{text}: {found}");
    }
}

/// A value that shares its parts is small, but whoever walks it takes long.
#[test]
fn shared_values() {
    let mut text = "[1, 2]".to_owned();
    for _ in 0..40 {
        text = format!("[{text}].map(y, [y, y])[0]");
    }
    let over = "operation cancelled: actual cost limit exceeded";
    let long = outcome(&format!("{text} == {text}"), &Json::Null);
    assert!(
        long.contains("too complex") || long.contains(over),
        "{long}"
    );
    let dynamic = text
        .replacen("[1, 2]", "dyn([1, 2])", 1)
        .replace("[y, y]", "dyn([y, y])");
    let found = outcome(&format!("[{dynamic}].all(a, a == a)"), &Json::Null);
    assert_eq!(found, over);
    let found = outcome(&format!("'%s'.format([{dynamic}]).size()"), &Json::Null);
    assert_eq!(found, over);
}

/// Variables that need each other nest as calls do.
#[test]
fn composition_is_no_way_around_depth() {
    let mut environment = Environment::default().with_composition();
    environment.compose("v0", &Type::Dyn);
    let mut programs = Vec::new();
    for index in 0..2000 {
        let text = match index {
            0 => "dyn(1)".to_owned(),
            index => format!("[[[variables.v{}]]]", index - 1),
        };
        environment.compose(&format!("v{index}"), &Type::Dyn);
        match Program::compile(&environment, &text) {
            Ok(program) => programs.push(program),
            Err(error) => panic!("{error}"),
        }
    }
    let mut activation = Activation::new(&environment);
    for (index, program) in programs.iter().enumerate() {
        activation.define(&format!("v{index}"), Ok(program));
    }
    let last = programs
        .last()
        .map(|last| last.evaluate(&activation, &mut Budget::for_rules()));
    let error = last.and_then(Result::err).map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("recursion limit exceeded")));
}
