//! What kinds with replicas share: columns and rules.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes, Column,
    kinds::{
        cells::{int, label_selector},
        row::{count, wide},
        value::{at, number, text},
    },
};

pub const DESIRED: Column = count("Desired", |object| int(object, "spec.replicas"));
pub const CURRENT: Column = count("Current", |object| int(object, "status.replicas"));
pub const READY: Column = count("Ready", |object| int(object, "status.readyReplicas"));
pub const SELECTOR: Column = wide("Selector", |object| label_selector(object, "spec.selector"));

/// `2/3`: ready of desired.
pub fn ready_of_desired(object: &Value) -> Value {
    let number = |path| number(object, path).unwrap_or_default();
    format!(
        "{}/{}",
        number("status.readyReplicas"),
        number("spec.replicas")
    )
    .into()
}

pub fn selector_is_fixed(new: &Value, old: &Value, causes: &mut Causes) {
    let selector = at(new, "spec.selector");
    if selector != at(old, "spec.selector") {
        causes.invalid("spec.selector", selector, "field is immutable");
    }
}

/// A count or percentage as `(number, is_percent)`; None when it is neither.
pub fn int_or_percent(object: &Value, path: &str) -> Option<(i64, bool)> {
    match at(object, path)? {
        Value::Number(number) => Some((number.as_i64()?, false)),
        Value::String(_) => Some((text(object, path).strip_suffix('%')?.parse().ok()?, true)),
        _ => None,
    }
}

/// An int-or-percentage that may not be negative; `at_most_whole`: nor above 100 percent.
pub fn check_int_or_percent(object: &Value, path: &str, at_most_whole: bool, causes: &mut Causes) {
    let Some(value) = at(object, path) else {
        return;
    };
    match int_or_percent(object, path) {
        None => causes.invalid(
            path,
            value,
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
        Some((number, _)) if number < 0 => {
            causes.invalid(path, value, "must be greater than or equal to 0");
        }
        Some((number, true)) if at_most_whole && number > 100 => {
            causes.invalid(path, value, "must not be greater than 100%");
        }
        Some(_) => {}
    }
}

pub fn is_zero(object: &Value, path: &str) -> bool {
    int_or_percent(object, path).is_none_or(|(number, _)| number == 0)
}
