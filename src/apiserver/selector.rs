//! Label and field selectors: text to a predicate. Pure.

use serde_json::Value;

use super::{cache::Object, registry::Resource, status::Status};

/// What a list or watch wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRequirement {
    label: String,
    value: String,
    equal: bool,
}

/// Requirements of one selector, with their values: each is held against each object.
const MAX_REQUIREMENTS: usize = 1000;

impl Selector {
    pub fn parse(row: &Resource, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = parse_labels(labels).map_err(|reason| {
            Status::bad_request(format!("unable to parse requirement: {reason}"))
        })?;
        let fields = parse_fields(fields).map_err(Status::bad_request)?;
        let count = fields.len() + labels.iter().map(Requirement::size).sum::<usize>();
        if count > MAX_REQUIREMENTS {
            return Err(Status::bad_request(format!(
                "unable to parse requirement: {count} requirements and values, at most {MAX_REQUIREMENTS} are allowed"
            )));
        }
        for requirement in &fields {
            let known = requirement.label == "metadata.name"
                || (requirement.label == "metadata.namespace"
                    && row.scope == super::registry::Scope::Namespaced)
                || row
                    .fields
                    .iter()
                    .any(|field| field.label == requirement.label);
            if !known {
                return Err(Status::bad_request(format!(
                    "field label not supported: {}",
                    requirement.label
                )));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Everything, or what has this name.
    pub fn named(name: &str) -> Self {
        let requirement = FieldRequirement {
            label: "metadata.name".to_owned(),
            value: name.to_owned(),
            equal: true,
        };
        Self {
            labels: Vec::new(),
            fields: vec![requirement],
        }
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match.
    pub fn name(&self) -> Option<&str> {
        let named = |field: &&FieldRequirement| field.equal && field.label == "metadata.name";
        self.fields
            .iter()
            .find(named)
            .map(|field| field.value.as_str())
    }

    pub fn matches(&self, row: &Resource, object: &Object) -> bool {
        self.matches_value(row, &object.value, object.labels())
    }

    fn matches_value(
        &self,
        row: &Resource,
        value: &Value,
        labels: Option<&serde_json::Map<String, Value>>,
    ) -> bool {
        let label = |key: &str| {
            labels
                .and_then(|labels| labels.get(key))
                .and_then(Value::as_str)
        };
        self.labels
            .iter()
            .all(|requirement| requirement.holds(label(&requirement.key)))
            && self
                .fields
                .iter()
                .all(|field| (field_value(row, value, &field.label) == field.value) == field.equal)
    }
}

fn field_value(row: &Resource, value: &Value, label: &str) -> String {
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    match label {
        "metadata.name" => text("/metadata/name"),
        "metadata.namespace" => text("/metadata/namespace"),
        _ => row
            .fields
            .iter()
            .find(|field| field.label == label)
            .map(|field| (field.value)(value))
            .unwrap_or_default(),
    }
}

impl Requirement {
    fn size(&self) -> usize {
        match &self.test {
            Test::In(values) | Test::NotIn(values) => 1 + values.len(),
            _ => 1,
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => {
                value.is_some_and(|value| values.iter().any(|wanted| wanted == value))
            }
            Test::NotIn(values) => {
                value.is_none_or(|value| values.iter().all(|wanted| wanted != value))
            }
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Greater(bound) => number().is_some_and(|number| number > *bound),
            Test::Less(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    split_outside_parentheses(text)
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty())
        .map(parse_label)
        .collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

fn parse_label(part: &str) -> Result<Requirement, String> {
    let make = |key: &str, test: Test| {
        let key = key.trim();
        match is_label_key(key) {
            true => Ok(Requirement {
                key: key.to_owned(),
                test,
            }),
            false => Err(format!("invalid label key {key:?} in {part:?}")),
        }
    };
    if let Some(key) = part.strip_prefix('!') {
        return make(key, Test::Absent);
    }
    if let Some(set) = part.strip_suffix(')') {
        let (head, values) = set
            .split_once('(')
            .ok_or_else(|| format!("found ')' without '(' in {part:?}"))?;
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        let (key, operator) = head
            .trim()
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("no operator in {part:?}"))?;
        return match operator.trim() {
            "in" => make(key, Test::In(values)),
            "notin" => make(key, Test::NotIn(values)),
            other => Err(format!("unknown operator {other:?} in {part:?}")),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return make(key, Test::NotIn(vec![label_value(value, part)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return make(key, Test::In(vec![label_value(value, part)?]));
    }
    for (sign, test) in [('>', Test::Greater as fn(i64) -> Test), ('<', Test::Less)] {
        if let Some((key, bound)) = part.split_once(sign) {
            let bound = bound
                .trim()
                .parse()
                .map_err(|_| format!("{bound:?} is not an integer in {part:?}"))?;
            return make(key, test(bound));
        }
    }
    make(part, Test::Exists)
}

fn label_value(value: &str, part: &str) -> Result<String, String> {
    let value = value.trim();
    let good = value.len() <= 63
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good {
        Ok(value.to_owned())
    } else {
        Err(format!("invalid label value {value:?} in {part:?}"))
    }
}

fn is_label_key(key: &str) -> bool {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    !name.is_empty()
        && name.len() <= 63
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, String> {
    let mut requirements = Vec::new();
    for part in split_escaped(text) {
        if part.is_empty() {
            continue;
        }
        let (label, value, equal) = if let Some((label, value)) = part.split_once("!=") {
            (label, value, false)
        } else if let Some((label, value)) = part.split_once("==").or_else(|| part.split_once('='))
        {
            (label, value, true)
        } else {
            return Err(format!(
                "invalid selector: {text:?}; can't understand {part:?}"
            ));
        };
        requirements.push(FieldRequirement {
            label: label.to_owned(),
            value: unescape(value),
            equal,
        });
    }
    Ok(requirements)
}

fn split_escaped(text: &str) -> Vec<String> {
    let (mut parts, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for character in text.chars() {
        if character == ',' && !escaped {
            parts.push(std::mem::take(&mut current));
            continue;
        }
        escaped = character == '\\' && !escaped;
        current.push(character);
    }
    parts.push(current);
    parts
}

fn unescape(text: &str) -> String {
    let (mut out, mut escaped) = (String::new(), false);
    for character in text.chars() {
        if character == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors() {
        let labels = json!({"app": "web", "tier": "", "n": "5"});
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=", true),
            ("app!=web", false),
            ("gone!=x", true),
            ("app in (a, web),!gone", true),
            ("app notin (web)", false),
            ("gone notin (x)", true),
            ("app,gone", false),
            ("n>4,n<6", true),
            ("n>5", false),
        ] {
            let selector = parse_labels(text).unwrap();
            let value = |key: &str| labels.get(key).and_then(Value::as_str);
            assert_eq!(
                selector.iter().all(|r| r.holds(value(&r.key))),
                want,
                "{text}"
            );
        }
        for bad in ["a in b", "a foo (b)", "=x", "a=b c", "n>x", "a)"] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let parsed =
            parse_fields(r"metadata.name=a\,b,status.phase!=Failed,involvedObject.namespace=")
                .unwrap();
        let plain: Vec<_> = parsed
            .iter()
            .map(|f| (f.label.as_str(), f.value.as_str(), f.equal))
            .collect();
        assert_eq!(
            plain,
            [
                ("metadata.name", "a,b", true),
                ("status.phase", "Failed", false),
                ("involvedObject.namespace", "", true)
            ]
        );
        assert!(parse_fields("nonsense").is_err());
    }
}
