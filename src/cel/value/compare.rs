//! Order of values.

use std::cmp::Ordering;

use super::{EvalError, Value};

/// Compares two values of one type, or two numbers.
pub(crate) fn compare(one: &Value<'_>, two: &Value<'_>) -> Result<Ordering, EvalError> {
    Ok(match (one, two) {
        (Value::Int(one), Value::Int(two)) => one.cmp(two),
        (Value::String(one), Value::String(two)) => (**one).cmp(&**two),
        (Value::Bool(one), Value::Bool(two)) => one.cmp(two),
        (Value::Bytes(one), Value::Bytes(two)) => (**one).cmp(&**two),
        (Value::Duration(one), Value::Duration(two)) => one.cmp(two),
        (Value::Timestamp(one), Value::Timestamp(two)) => one.total_nanos().cmp(&two.total_nanos()),
        _ => {
            let nan = |value: &Value<'_>| matches!(value, Value::Double(one) if one.is_nan());
            match compare_numbers(one, two) {
                Some(order) => order,
                None if nan(one) || nan(two) => {
                    return Err(EvalError::new("NaN values cannot be ordered"));
                }
                None => return Err(EvalError::no_such_overload()),
            }
        }
    })
}

/// Compares numbers by value, whatever their types. `None` if one is not a number, or NaN.
pub(crate) fn compare_numbers(one: &Value<'_>, two: &Value<'_>) -> Option<Ordering> {
    match (one, two) {
        (Value::Double(one), Value::Double(two)) => one.partial_cmp(two),
        (Value::Double(double), other) => double_to_whole(*double, whole(other)?),
        (other, Value::Double(double)) => {
            double_to_whole(*double, whole(other)?).map(Ordering::reverse)
        }
        _ => Some(whole(one)?.cmp(&whole(two)?)),
    }
}

fn whole(value: &Value<'_>) -> Option<i128> {
    match value {
        Value::Int(one) => Some(i128::from(*one)),
        Value::Uint(one) => Some(i128::from(*one)),
        _ => None,
    }
}

/// Both as doubles, as the original compares them.
fn double_to_whole(double: f64, whole: i128) -> Option<Ordering> {
    double.partial_cmp(&(whole as f64))
}
