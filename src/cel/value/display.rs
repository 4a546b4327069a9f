//! Values as texts: in messages, and where numbers become strings.

use super::{Value, seconds_text};

/// A double as Go's `%g` prints it: the fewest digits, an exponent outside of 1e-4 to 1e6.
pub(crate) fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// A value as messages show it. Long ones are cut.
pub(crate) fn plain(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(one) => one.to_string(),
        Value::Int(one) => one.to_string(),
        Value::Uint(one) => one.to_string(),
        Value::Double(one) => double_text(*one),
        Value::String(text) => text.chars().take(1024).collect(),
        Value::Duration(nanos) => seconds_text(*nanos),
        Value::Timestamp(time) => time.to_string(),
        other => other.type_name(),
    }
}

/// How a character is written in quotes, where it has an escape of its own.
pub(crate) fn escape_of(one: char) -> Option<&'static str> {
    Some(match one {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{7}' => "\\a",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{b}' => "\\v",
        _ => return None,
    })
}

/// A text in quotes with escapes, as Go's `%q` prints it.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for one in text.chars() {
        match (one, escape_of(one)) {
            (_, Some(escape)) => out.push_str(escape),
            ('\0'..='\u{1f}' | '\u{7f}', _) => out.push_str(&format!("\\x{:02x}", one as u32)),
            ('\u{80}'..='\u{9f}', _) => out.push_str(&format!("\\u{:04x}", one as u32)),
            _ => out.push(one),
        }
    }
    out.push('"');
    out
}
