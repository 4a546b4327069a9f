//! Tolerations of taints.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{has, text},
    },
};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A list of them at `path`.
pub fn list(tolerations: &[Value], path: &str, causes: &mut Causes) {
    for (index, toleration) in tolerations.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        one(toleration, &format!("{path}[{index}]"), causes);
    }
}

fn one(toleration: &Value, path: &str, causes: &mut Causes) {
    let member = |name: &str| text(toleration, name);
    let (key, operator, effect) = (member("key"), member("operator"), member("effect"));
    if !key.is_empty() {
        names::label_key(key, &format!("{path}.key"), causes);
    }
    let own = format!("{path}.operator");
    if key.is_empty() && operator != "Exists" {
        causes.invalid(&own, operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
    }
    if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
        causes.invalid(
            format!("{path}.effect"),
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    let value = member("value");
    match operator {
        "" | "Equal" => {
            let mut wrong = Causes::default();
            names::label_value(value, "", &mut wrong);
            let shown = serde_json::to_string(value).unwrap_or_default();
            let start = format!("Invalid value: {shown}: ");
            let details: Vec<&str> = wrong
                .0
                .iter()
                .filter_map(|cause| cause.message.strip_prefix(&start))
                .collect();
            if !wrong.0.is_empty() {
                causes.invalid(own, value, &details.join(";"));
            }
        }
        "Exists" if !value.is_empty() => {
            causes.invalid(
                own,
                value,
                "value must be empty when `operator` is 'Exists'",
            );
        }
        "Exists" => {}
        "Lt" | "Gt" => number(value, &format!("{path}.value"), causes),
        other => causes.unsupported(own, other, &["Equal", "Exists"]),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        causes.unsupported(format!("{path}.effect"), effect, &EFFECTS);
    }
}

/// A whole number as one writes it: what is compared with a taint's.
fn number(value: &str, path: &str, causes: &mut Causes) {
    let parsed = value.parse::<i64>();
    if !is_canonical(value) {
        let detail = "must be a valid decimal integer in canonical form";
        causes.invalid(path, value, detail);
    }
    if parsed.is_err() {
        let why = match is_canonical(value) {
            true => "value out of range",
            false => "invalid syntax",
        };
        let detail = format!("strconv.ParseInt: parsing {value:?}: {why}");
        causes.invalid(path, value, &detail);
    }
}

fn is_canonical(value: &str) -> bool {
    let digits = value.strip_prefix('-').unwrap_or(value);
    match digits.as_bytes() {
        [b'0'] => !value.starts_with('-'),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}
