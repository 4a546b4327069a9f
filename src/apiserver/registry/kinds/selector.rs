//! LabelSelector objects: matching, text form, validation.

use serde_json::Value;

use super::{
    names,
    value::{items, pairs, text, texts},
};
use crate::apiserver::registry::Causes;

/// Whether `labels` (a JSON map, or null) satisfy a LabelSelector; the empty one matches all.
pub fn matches(selector: &Value, labels: Option<&Value>) -> bool {
    let label = |key: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .and_then(Value::as_str)
    };
    pairs(selector, "matchLabels").all(|(key, value)| label(key) == Some(value))
        && items(selector, "matchExpressions").iter().all(|rule| {
            let (value, values) = (label(text(rule, "key")), texts(rule, "values"));
            match text(rule, "operator") {
                "In" => value.is_some_and(|value| values.contains(&value)),
                "NotIn" => !value.is_some_and(|value| values.contains(&value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether a plain map selector (Services, ReplicationControllers) matches.
pub fn matches_map(selector: &Value, labels: Option<&Value>) -> bool {
    selector.as_object().is_some_and(|selector| {
        selector
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

/// `a=1,b in (x,y),!c`; for a plain map (without matchLabels) the same of its pairs.
pub fn to_text(selector: &Value) -> String {
    let structured = selector
        .get("matchLabels")
        .is_some_and(|labels| !labels.is_string())
        || selector
            .get("matchExpressions")
            .is_some_and(|rules| !rules.is_string());
    if !structured {
        return selector
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(",");
    }
    let mut parts: Vec<String> = pairs(selector, "matchLabels")
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    for rule in items(selector, "matchExpressions") {
        let key = text(rule, "key");
        let values = texts(rule, "values").join(",");
        parts.push(match text(rule, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

pub fn is_empty(selector: &Value) -> bool {
    pairs(selector, "matchLabels").next().is_none()
        && items(selector, "matchExpressions").is_empty()
}

pub fn validate(selector: &Value, path: &str, causes: &mut Causes) {
    names::labels(
        selector.get("matchLabels"),
        &format!("{path}.matchLabels"),
        causes,
    );
    for (index, rule) in items(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let none = items(rule, "values").is_empty();
        match text(rule, "operator") {
            "In" | "NotIn" if none => causes.required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !none => causes.forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Exists" | "DoesNotExist" => {}
            other => causes.invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            ),
        }
        names::label_key(text(rule, "key"), &format!("{path}.key"), causes);
        for (at, value) in texts(rule, "values").iter().enumerate() {
            names::label_value(value, &format!("{path}.values[{at}]"), causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn matching() {
        let labels = json!({"app": "web", "tier": "front"});
        for (selector, want) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["a"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
                false,
            ),
        ] {
            assert_eq!(matches(&selector, Some(&labels)), want, "{selector}");
        }
    }

    #[test]
    fn text_form() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]},
            {"key": "c", "operator": "DoesNotExist"}]});
        assert_eq!(to_text(&selector), "a=1,b in (x,y),!c");
        assert_eq!(to_text(&json!({"a": "1"})), "a=1");
    }
}
