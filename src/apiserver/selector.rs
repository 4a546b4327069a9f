//! Label and field selectors: text to a predicate. Pure.
//!
//! A selector is parsed once for each request, into a [`Selection`]: authorization reads off it which
//! object is meant, and the verbs make their [`Selector`] of the same.

use serde_json::Value;

use super::{cache::Object, registry::Resource, request::FieldTerm, status::Status};

/// The selectors of a request, taken apart; not yet those of a certain kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

/// What a list or watch wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
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

/// Requirements of one selector, with their values: each is held against each object.
const MAX_REQUIREMENTS: usize = 1000;

impl Selection {
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Status> {
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
        Ok(Self { labels, fields })
    }

    /// The only name that can match; `None` where others can, or where it could not be one.
    pub fn name(&self) -> Option<&str> {
        exact_name(&self.fields)
            .filter(|name| !matches!(*name, "" | "." | "..") && !name.contains(['/', '%']))
    }

    pub fn fields(&self) -> &[FieldTerm] {
        &self.fields
    }
}

/// The value that `metadata.name` must have. Every term must hold, hence the first that asks for
/// one decides.
fn exact_name(fields: &[FieldTerm]) -> Option<&str> {
    let named = |field: &&FieldTerm| field.equal && field.label == "metadata.name";
    fields.iter().find(named).map(|field| field.value.as_str())
}

impl Selector {
    pub fn new(row: &Resource, selection: Selection) -> Result<Self, Status> {
        let Selection { labels, fields } = selection;
        for requirement in &fields {
            let known = requirement.label == "metadata.name"
                || (requirement.label == "metadata.namespace"
                    && row.scope == super::registry::Scope::Namespaced)
                || row
                    .fields
                    .iter()
                    .any(|field| field.label == requirement.label)
                || row
                    .custom
                    .is_some_and(|custom| custom.selectable(&requirement.label).is_some());
            if !known {
                return Err(Status::bad_request(format!(
                    "field label not supported: {}",
                    requirement.label
                )));
            }
        }
        Ok(Self { labels, fields })
    }

    /// From now on also this name and no other.
    pub fn only(&mut self, name: &str) {
        self.fields.push(FieldTerm {
            label: "metadata.name".to_owned(),
            value: name.to_owned(),
            equal: true,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match.
    pub fn name(&self) -> Option<&str> {
        exact_name(&self.fields)
    }

    pub fn matches(&self, row: &Resource, object: &Object) -> bool {
        if self.is_empty() {
            return true;
        }
        // What its key says is asked first: a large object would be parsed for the rest.
        let by_key = |label: &str| match label {
            "metadata.name" => Some(&*object.name),
            "metadata.namespace" => Some(&*object.namespace),
            _ => None,
        };
        let differs = |field: &FieldTerm| {
            by_key(&field.label).is_some_and(|is| (is == field.value) != field.equal)
        };
        if self.fields.iter().any(differs) {
            return false;
        }
        let value = object.value();
        let labels = value["metadata"]["labels"].as_object();
        self.matches_value(row, &value, labels)
    }

    /// As [`Selector::matches`], of a value that is not in the cache.
    pub fn matches_value(
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
            .or_else(|| Some(row.custom?.selectable(label)?.value(value).into_owned()))
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

/// The terms of a field selector. Shared with the reviews of access, which are told selectors too.
pub fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let parts = split_escaped(text).into_iter();
    let term = |part: &str| {
        let (label, equal, value) = split_term(part)
            .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
        Ok(FieldTerm {
            label: label.to_owned(),
            value: unescape(value)?,
            equal,
        })
    };
    parts.filter(|part| !part.is_empty()).map(term).collect()
}

/// Label, whether it must be equal, and the value as it was written: by the first operator.
fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    let starts = |at: &usize| part[*at..].starts_with('=') || part[*at..].starts_with("!=");
    let at = part.char_indices().map(|(at, _)| at).find(starts)?;
    let (label, rest) = part.split_at(at);
    let (equal, value) = match rest.strip_prefix("!=") {
        Some(value) => (false, value),
        None => (true, rest.strip_prefix("==").or(rest.strip_prefix('='))?),
    };
    Some((label, equal, value))
}

/// Parts between commas that are not escaped.
fn split_escaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// A value without its escapes: `\\`, `\,` and `\=`; there are no others, and a bare `,` or `=` is
/// no part of a value.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '\\' => match rest.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    ));
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {character}"
                ));
            }
            plain => out.push(plain),
        }
    }
    Ok(out)
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
        let terms = |text: &str| {
            let parsed = parse_fields(text)?;
            let plain = |f: &FieldTerm| {
                format!("{}{}{}", f.label, if f.equal { "=" } else { "!=" }, f.value)
            };
            Ok::<_, String>(parsed.iter().map(plain).collect::<Vec<_>>())
        };
        for (text, want) in [
            ("", &[][..]),
            (",,", &[]),
            ("a=b", &["a=b"]),
            ("a==b,c!=d", &["a=b", "c!=d"]),
            ("a=,b!=", &["a=", "b!="]),
            (r"a=x\,y\=z\\,b=c", &[r"a=x,y=z\", "b=c"]),
            // An escaped comma ends no term, so what follows it is no term either.
            (
                r"a!=x\,metadata.name\=public",
                &["a!=x,metadata.name=public"],
            ),
            ("!a=b", &["!a=b"]),
        ] {
            assert_eq!(terms(text).expect("terms"), want, "{text}");
        }
        for (bad, why) in [
            (
                "nonsense",
                "invalid selector: 'nonsense'; can't understand 'nonsense'",
            ),
            // What made authorization see a name where the list saw none.
            (
                r"metadata.namespace!=x\,metadata.name=public",
                "invalid field selector: unescaped character in value: =",
            ),
            (
                r"a=\b",
                r"invalid field selector: invalid escape sequence: \b",
            ),
            (
                r"a=b\",
                r"invalid field selector: invalid escape sequence: \",
            ),
            (
                "a===b",
                "invalid field selector: unescaped character in value: =",
            ),
        ] {
            assert_eq!(terms(bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn which_name_a_selection_means() {
        for (fields, want) in [
            ("", None),
            ("metadata.name=a", Some("a")),
            ("metadata.name==a", Some("a")),
            ("metadata.name!=a", None),
            ("metadata.name=a,metadata.name=b", Some("a")),
            ("metadata.name=", None),
            ("metadata.name=..", None),
            ("metadata.name=a/b", None),
            ("x.metadata.name=a", None),
            (r"metadata.namespace!=x\,y,metadata.name=a", Some("a")),
        ] {
            let selection = Selection::parse("", fields).unwrap();
            assert_eq!(selection.name(), want, "{fields}");
        }
    }
}
