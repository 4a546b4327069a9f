//! The shapes of names: DNS labels and subdomains, label keys and values, quantities of text.
//!
//! Messages are those of upstream's `k8s.io/apimachinery/pkg/util/validation`.

use serde_json::Value;

use super::value::text;
use crate::apiserver::registry::Causes;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const ENV: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// What is wrong with a DNS label, as upstream says it; empty when nothing is.
pub fn dns_label(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 63 {
        errors.push("must be no more than 63 characters".to_owned());
    }
    if !is_label(name) {
        errors.push(LABEL.to_owned());
    }
    errors
}

/// As [`dns_label`], but the first character is a letter.
pub fn dns_label_1035(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 63 {
        errors.push("must be no more than 63 characters".to_owned());
    }
    if !is_label(name) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        errors.push(LABEL_1035.to_owned());
    }
    errors
}

pub fn dns_subdomain(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 253 {
        errors.push("must be no more than 253 characters".to_owned());
    }
    if !name.split('.').all(is_label) {
        errors.push(SUBDOMAIN.to_owned());
    }
    errors
}

/// As [`dns_subdomain`], of the start of a name: something may follow a dash at its end.
pub fn dns_subdomain_start(name: &str) -> Vec<String> {
    match name.strip_suffix('-') {
        Some(start) if !start.is_empty() => dns_subdomain(&format!("{start}a")),
        _ => dns_subdomain(name),
    }
}

/// A label that begins with a letter: names of services and of versions.
pub fn dns_1035_label(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 63 {
        errors.push("must be no more than 63 characters".to_owned());
    }
    if !is_label(name) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        errors.push("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".to_owned());
    }
    errors
}

/// RBAC names: anything that can be one segment of a path.
pub fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." | ".." => vec![format!("may not be '{name}'")],
        name => ["/", "%"]
            .iter()
            .filter(|bad| name.contains(**bad))
            .map(|bad| format!("may not contain '{bad}'"))
            .collect(),
    }
}

fn is_label(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match name.as_bytes() {
        [] => false,
        [first, .., last] if !alphanumeric(*first) || !alphanumeric(*last) => false,
        [only] => alphanumeric(*only),
        all => all.iter().all(|byte| alphanumeric(*byte) || *byte == b'-'),
    }
}

fn is_qualified_part(name: &str) -> bool {
    match name.as_bytes() {
        [] => false,
        [first, .., last] if !first.is_ascii_alphanumeric() || !last.is_ascii_alphanumeric() => {
            false
        }
        [only] => only.is_ascii_alphanumeric(),
        all => all
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)),
    }
}

/// `[prefix/]name`, the form of label keys, resources and finalizers.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let name = match name.split_once('/') {
        None => name,
        Some((_, rest)) if rest.contains('/') => {
            return vec!["a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_owned()];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns_subdomain(prefix)
                        .into_iter()
                        .map(|error| format!("prefix part {error}")),
                );
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 characters".to_owned());
    }
    if !is_qualified_part(name) {
        errors.push(QUALIFIED.to_owned());
    }
    errors
}

pub fn label_key(key: &str, path: &str, causes: &mut Causes) {
    report(qualified_name(key), key, path, causes);
}

pub fn label_value(value: &str, path: &str, causes: &mut Causes) {
    if value.len() > 63 {
        causes.invalid(path, value, "must be no more than 63 characters");
    }
    if !value.is_empty() && !is_qualified_part(value) {
        causes.invalid(path, value, VALUE);
    }
}

/// A map of labels.
pub fn labels(labels: Option<&Value>, path: &str, causes: &mut Causes) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        label_key(key, path, causes);
        label_value(value.as_str().unwrap_or_default(), path, causes);
    }
}

/// An annotation map's keys.
pub fn annotations(map: Option<&Value>, path: &str, causes: &mut Causes) {
    for key in map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
    {
        report(qualified_name(&key.to_lowercase()), key, path, causes);
    }
}

pub fn env_name(name: &str) -> Vec<String> {
    let fine = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'=';
    if name.is_empty() || !name.as_bytes().iter().all(fine) {
        vec![ENV.to_owned()]
    } else {
        Vec::new()
    }
}

/// Keys of ConfigMaps and Secrets.
pub fn config_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if key.len() > 253 {
        errors.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        errors.push(CONFIG_KEY.to_owned());
    } else if key == "." || key == ".." {
        errors.push(format!("must not be '{key}'"));
    } else if key.starts_with("..") {
        errors.push("must not start with '..'".to_owned());
    }
    errors
}

/// Port names of containers and Services' named target ports.
pub fn port_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 15 {
        errors.push("must be no more than 15 characters".to_owned());
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

pub fn port(value: i64, path: &str, causes: &mut Causes) {
    if !(1..=65535).contains(&value) {
        causes.invalid(path, value, "must be between 1 and 65535, inclusive");
    }
}

pub fn report(errors: Vec<String>, value: &str, path: &str, causes: &mut Causes) {
    for error in errors {
        causes.invalid(path, value, &error);
    }
}

/// Checks `metadata.name` with `rule`, and `metadata.generateName` where there is no name yet.
pub fn object_name(object: &Value, rule: fn(&str) -> Vec<String>, causes: &mut Causes) {
    let name = text(object, "metadata.name");
    if !name.is_empty() {
        report(rule(name), name, "metadata.name", causes);
        return;
    }
    let prefix = text(object, "metadata.generateName");
    if prefix.is_empty() {
        causes.required("metadata.name", "name or generateName is required");
    } else {
        // A trailing dash is fine: something follows it.
        report(
            rule(&format!("{prefix}x")),
            prefix,
            "metadata.generateName",
            causes,
        );
    }
}

/// A number that may not be below zero.
pub fn not_negative(object: &Value, path: &str, causes: &mut Causes) {
    if let Some(value) = super::value::number(object, path).filter(|value| *value < 0) {
        causes.invalid(path, value, "must be greater than or equal to 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        for (name, label, subdomain) in [
            ("web", true, true),
            ("web.example", false, true),
            ("-web", false, false),
            ("Web", false, false),
            ("9web", true, true),
            ("", false, false),
            ("a..b", false, false),
        ] {
            assert_eq!(dns_label(name).is_empty(), label, "{name}");
            assert_eq!(dns_subdomain(name).is_empty(), subdomain, "{name}");
        }
        for (key, fine) in [
            ("app", true),
            ("example.com/App_1", true),
            ("/a", false),
            ("a/b/c", false),
            ("a b", false),
        ] {
            assert_eq!(qualified_name(key).is_empty(), fine, "{key}");
        }
        for (name, fine) in [
            ("http", true),
            ("80", false),
            ("a--b", false),
            ("averyveryverylong", false),
        ] {
            assert_eq!(port_name(name).is_empty(), fine, "{name}");
        }
    }
}
