//! Kubernetes' named formats: `format.dns1123Label().validate(name)`.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use regex::Regex;

use super::url;
use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{EvalError, Evaluated, LibraryValue, Timestamp, Value},
};

/// A named format.
#[derive(Debug)]
pub struct Format {
    /// As its type's values compare.
    pub(crate) name: &'static str,
    /// Length of a pattern that checks it: what a check costs is computed with it.
    pub(crate) pattern_length: u64,
    check: fn(&str) -> Vec<String>,
}

/// By the names that expressions use.
static FORMATS: [(&str, &str, Format); 13] = [
    format(
        "dns1123Label",
        "format.dns1123Label",
        "DNS1123Label",
        30,
        dns1123_label,
    ),
    format(
        "dns1123Subdomain",
        "format.dns1123Subdomain",
        "DNS1123Subdomain",
        60,
        subdomain,
    ),
    format(
        "dns1035Label",
        "format.dns1035Label",
        "DNS1035Label",
        30,
        dns1035_label,
    ),
    format(
        "qualifiedName",
        "format.qualifiedName",
        "QualifiedName",
        60,
        qualified_name,
    ),
    format(
        "dns1123LabelPrefix",
        "format.dns1123LabelPrefix",
        "DNS1123LabelPrefix",
        30,
        |text| dns1123_label(&without_dash(text)),
    ),
    format(
        "dns1123SubdomainPrefix",
        "format.dns1123SubdomainPrefix",
        "DNS1123SubdomainPrefix",
        60,
        |text| subdomain(&without_dash(text)),
    ),
    format(
        "dns1035LabelPrefix",
        "format.dns1035LabelPrefix",
        "DNS1035LabelPrefix",
        30,
        |text| dns1035_label(&without_dash(text)),
    ),
    format(
        "labelValue",
        "format.labelValue",
        "LabelValue",
        40,
        label_value,
    ),
    format("uri", "format.uri", "URI", 1103, |text| {
        url::parse(text).err().into_iter().collect()
    }),
    format("uuid", "format.uuid", "uuid", 70, |text| {
        only(is_uuid(text), "does not match the UUID format")
    }),
    format("byte", "format.byte", "byte", 84, |text| {
        only(
            !text.is_empty() && STANDARD.decode(text).is_ok(),
            "invalid base64",
        )
    }),
    format("date", "format.date", "date", 71, |text| {
        only(Timestamp::parse_date(text).is_some(), "invalid date")
    }),
    format("datetime", "format.datetime", "datetime", 71, |text| {
        only(Timestamp::parse_lenient(text).is_some(), "invalid datetime")
    }),
];

const fn format(
    name: &'static str,
    function: &'static str,
    title: &'static str,
    pattern_length: u64,
    check: fn(&str) -> Vec<String>,
) -> (&'static str, &'static str, Format) {
    let format = Format {
        name: title,
        pattern_length,
        check,
    };
    (name, function, format)
}

fn only(valid: bool, message: &str) -> Vec<String> {
    if valid {
        Vec::new()
    } else {
        vec![message.to_owned()]
    }
}

/// A prefix of a name may end with a dash, which what is generated stands behind.
fn without_dash(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let cut = rest.char_indices().next_back().map_or(0, |(at, _)| at);
            format!("{}a", &rest[..cut])
        }
        _ => text.to_owned(),
    }
}

/// A pattern, what it is for, and examples, as messages have them.
struct Rule {
    pattern: LazyLock<Option<Regex>>,
    text: &'static str,
    message: &'static str,
    examples: &'static [&'static str],
}

macro_rules! rule {
    ($name:ident, $pattern:literal, $message:literal, $examples:expr) => {
        static $name: Rule = Rule {
            pattern: LazyLock::new(|| Regex::new(concat!("^(?:", $pattern, ")$")).ok()),
            text: $pattern,
            message: $message,
            examples: &$examples,
        };
    };
}

rule!(
    LABEL,
    "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
    ["my-name", "123-abc"]
);
rule!(
    SUBDOMAIN,
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    ["example.com"]
);
rule!(
    LABEL_1035,
    "[a-z]([-a-z0-9]*[a-z0-9])?",
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
    ["my-name", "abc-123"]
);
rule!(
    QUALIFIED,
    "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    ["MyName", "my.name", "123-abc"]
);
rule!(
    LABEL_VALUE,
    "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    ["MyValue", "my_value", "12345"]
);

impl Rule {
    fn matches(&self, text: &str) -> bool {
        self.pattern
            .as_ref()
            .is_some_and(|pattern| pattern.is_match(text))
    }

    fn refusal(&self) -> String {
        let mut out = format!("{} (e.g. ", self.message);
        for (index, example) in self.examples.iter().enumerate() {
            out.push_str(if index > 0 { " or " } else { "" });
            out.push_str(&format!("'{example}', "));
        }
        out.push_str(&format!("regex used for validation is '{}')", self.text));
        out
    }

    fn check(&self, text: &str, most: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if text.len() > most {
            faults.push(too_long(most));
        }
        if !self.matches(text) {
            faults.push(self.refusal());
        }
        faults
    }
}

fn too_long(most: usize) -> String {
    format!("must be no more than {most} characters")
}

fn dns1123_label(text: &str) -> Vec<String> {
    LABEL.check(text, 63)
}

fn subdomain(text: &str) -> Vec<String> {
    SUBDOMAIN.check(text, 253)
}

fn dns1035_label(text: &str) -> Vec<String> {
    LABEL_1035.check(text, 63)
}

fn label_value(text: &str) -> Vec<String> {
    LABEL_VALUE.check(text, 63)
}

pub(super) fn is_label(text: &str) -> bool {
    dns1123_label(text).is_empty()
}

pub(super) fn is_subdomain(text: &str) -> bool {
    subdomain(text).is_empty()
}

fn qualified_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                let wrong = subdomain(prefix).into_iter();
                faults.extend(wrong.map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            let refusal = QUALIFIED.refusal();
            faults.push(format!(
                "a qualified name {refusal} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            ));
            return faults;
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        faults.push(format!("name part {}", too_long(63)));
    }
    if !QUALIFIED.matches(name) {
        faults.push(format!("name part {}", QUALIFIED.refusal()));
    }
    faults
}

fn is_uuid(text: &str) -> bool {
    static UUID: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let pattern = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
        Regex::new(pattern).ok()
    });
    UUID.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

const FORMAT: Type = Type::Library(LibraryType::Format);

pub(super) fn declare(functions: &mut Functions) {
    let faults = Type::optional(Type::list(Type::String));
    let f = functions;
    f.member(
        "validate",
        "format-validate",
        [FORMAT, Type::String],
        faults,
        validate,
    );
    f.global(
        "format.named",
        "format-named",
        [Type::String],
        Type::optional(FORMAT),
        named,
    );
    macro_rules! constant {
        ($index:literal) => {
            let (_, function, _) = FORMATS[$index];
            let call: Call = |_, _| Ok(Value::library(LibraryValue::Format(&FORMATS[$index].2)));
            f.global(function, function, [], FORMAT, call);
        };
    }
    constant!(0);
    constant!(1);
    constant!(2);
    constant!(3);
    constant!(4);
    constant!(5);
    constant!(6);
    constant!(7);
    constant!(8);
    constant!(9);
    constant!(10);
    constant!(11);
    constant!(12);
}

fn named<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(name)] = args else {
        return Err(EvalError::no_overload_for("format.named", args));
    };
    let found = FORMATS.iter().find(|(known, _, _)| *known == &**name);
    Ok(match found {
        Some((_, _, format)) => Value::some(Value::library(LibraryValue::Format(format))),
        None => Value::Optional(None),
    })
}

fn validate<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::Library(target), Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("validate", args));
    };
    let LibraryValue::Format(format) = &**target else {
        return Err(EvalError::no_overload_for("validate", args));
    };
    meter.work(text.len() as u64 / 2)?;
    let faults = (format.check)(text);
    if faults.is_empty() {
        return Ok(Value::Optional(None));
    }
    Value::strings(faults).map(Value::some)
}
