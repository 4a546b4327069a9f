//! Numbers between types, and what counts as empty.

use super::Value;

/// The whole part, unless it leaves the range.
pub(crate) fn double_to_int(value: f64) -> Option<i64> {
    // The bounds themselves cannot be told from what lies beyond them.
    let inside = value > i64::MIN as f64 && value < i64::MAX as f64;
    inside.then_some(value as i64)
}

pub(crate) fn double_to_uint(value: f64) -> Option<u64> {
    let inside = value >= 0.0 && value < u64::MAX as f64;
    inside.then_some(value as u64)
}

/// Whether `optional.ofNonZeroValue` takes a value for none.
pub(crate) fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(one) => !one,
        Value::Int(one) => *one == 0,
        Value::Uint(one) => *one == 0,
        Value::Double(one) => *one == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Duration(nanos) => *nanos == 0,
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Object(object) => object.fields.is_empty(),
        Value::Optional(inner) => inner.is_none(),
        // The zero time is that of the year 1.
        Value::Timestamp(time) => time.seconds() == -62_135_596_800 && time.nanos() == 0,
        Value::Library(_) | Value::Type(_) | Value::Variables => false,
    }
}
