//! Table cells that several kinds share, written as `kubectl get` shows them.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    selector,
    value::{at, items, number, pairs, text},
};

pub const NONE: &str = "<none>";

/// Time since creation.
pub fn age(object: &Value) -> Value {
    since(object, "metadata.creationTimestamp").into()
}

pub fn since(object: &Value, path: &str) -> String {
    since_time(text(object, path), Timestamp::now())
}

pub fn since_time(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => short_duration(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Seconds as kubectl's short duration: two units at most, fewer the longer it is.
pub fn short_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Seconds between two times of the object, or from the first until now.
pub fn between(start: &str, end: &str) -> Option<i64> {
    let start: Timestamp = start.parse().ok()?;
    let end = end.parse().unwrap_or_else(|_| Timestamp::now());
    Some(end.as_second() - start.as_second())
}

pub fn or_none(text: impl Into<String>) -> Value {
    let text = text.into();
    Value::from(if text.is_empty() {
        NONE.to_owned()
    } else {
        text
    })
}

pub fn text_or_none(object: &Value, path: &str) -> Value {
    or_none(text(object, path))
}

/// A whole number; 0 when absent.
pub fn int(object: &Value, path: &str) -> Value {
    number(object, path).unwrap_or_default().into()
}

/// How many members a list or map has.
pub fn len(object: &Value, path: &str) -> i64 {
    let count = match at(object, path) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    };
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// `a=1,b=2`, or `<none>`.
pub fn labels(object: &Value, path: &str) -> Value {
    or_none(join(
        pairs(object, path).map(|(key, value)| format!("{key}={value}")),
    ))
}

/// A LabelSelector as text, or `<none>`.
pub fn label_selector(object: &Value, path: &str) -> Value {
    or_none(at(object, path).map(selector::to_text).unwrap_or_default())
}

pub fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// The names of a template's containers.
pub fn template_containers(object: &Value, path: &str) -> Value {
    join(
        items(object, path)
            .iter()
            .map(|container| text(container, "name").to_owned()),
    )
    .into()
}

pub fn template_images(object: &Value, path: &str) -> Value {
    join(
        items(object, path)
            .iter()
            .map(|container| text(container, "image").to_owned()),
    )
    .into()
}

pub fn containers(object: &Value) -> Value {
    template_containers(object, "spec.template.spec.containers")
}

pub fn images(object: &Value) -> Value {
    template_images(object, "spec.template.spec.containers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (47 * 3600, "47h"),
            (50 * 3600, "2d2h"),
            (24 * 3600 * 9, "9d"),
            (24 * 3600 * 800, "2y70d"),
            (24 * 3600 * 365 * 9, "9y"),
        ] {
            assert_eq!(short_duration(seconds), want, "{seconds}");
        }
    }
}
