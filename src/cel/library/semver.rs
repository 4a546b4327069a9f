//! Kubernetes' semantic versions, with the words of blang/semver for what is none.

use std::cmp::Ordering;

use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{EvalError, Evaluated, LibraryValue, Value, escaped},
};

/// `major.minor.patch-pre.release+build`
#[derive(Clone, Debug)]
pub struct Version {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Identifier {
    Number(u64),
    Text(String),
}

impl Version {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts[..] else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let (rest, build) = match rest.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (rest, None),
        };
        let (patch, pre) = match rest.split_once('-') {
            Some((patch, pre)) => (patch, Some(pre)),
            None => (rest, None),
        };
        let numbers = [
            number(major, "major", "Major")?,
            number(minor, "minor", "Minor")?,
            number(patch, "patch", "Patch")?,
        ];
        let pre = pre.into_iter().flat_map(|pre| pre.split('.'));
        let pre = pre.map(identifier).collect::<Result<_, _>>()?;
        for part in build.into_iter().flat_map(|build| build.split('.')) {
            if part.is_empty() {
                return Err("Build meta data is empty".to_owned());
            }
            if !is_alphanumeric(part) {
                let part = escaped(part);
                return Err(format!(
                    "Invalid character(s) found in build meta data {part}"
                ));
            }
        }
        Ok(Self { numbers, pre })
    }

    /// Reads what people write: `v1`, `01.2`. Only dots and digits are added and taken away.
    fn parse_tolerant(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
        if parts.len() < 3 {
            let last = parts.last().is_some_and(|last| last.contains(['+', '-']));
            if last {
                let why = "short version cannot contain PreRelease/Build meta data";
                return Err(why.to_owned());
            }
            parts.resize(3, "0".to_owned());
        }
        Self::parse(&parts.join("."))
    }

    /// Order of precedence; build metadata does not matter.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| {
            match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => compare_identifiers(&self.pre, &other.pre),
            }
        })
    }
}

fn compare_identifiers(one: &[Identifier], two: &[Identifier]) -> Ordering {
    for (one, two) in one.iter().zip(two) {
        let order = match (one, two) {
            (Identifier::Number(one), Identifier::Number(two)) => one.cmp(two),
            (Identifier::Text(one), Identifier::Text(two)) => one.cmp(two),
            (Identifier::Number(_), Identifier::Text(_)) => Ordering::Less,
            (Identifier::Text(_), Identifier::Number(_)) => Ordering::Greater,
        };
        if order.is_ne() {
            return order;
        }
    }
    one.len().cmp(&two.len())
}

/// The part without zeros in front, one digit left.
fn without_zeros(part: &str) -> String {
    if part.len() <= 1 {
        return part.to_owned();
    }
    let trimmed = part.trim_start_matches('0');
    if trimmed.starts_with(|c: char| c.is_ascii_digit()) {
        trimmed.to_owned()
    } else {
        format!("0{trimmed}")
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_alphanumeric(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    text.bytes().all(known)
}

fn number(text: &str, name: &str, title: &str) -> Result<u64, String> {
    if !is_number(text) {
        let text = escaped(text);
        return Err(format!(
            "Invalid character(s) found in {name} number {text}"
        ));
    }
    if text.len() > 1 && text.starts_with('0') {
        let text = escaped(text);
        return Err(format!(
            "{title} number must not contain leading zeroes {text}"
        ));
    }
    text.parse().map_err(|_| {
        let why = if text.is_empty() {
            "invalid syntax"
        } else {
            "value out of range"
        };
        format!("strconv.ParseUint: parsing {}: {why}", escaped(text))
    })
}

fn identifier(text: &str) -> Result<Identifier, String> {
    if text.is_empty() {
        return Err("Prerelease is empty".to_owned());
    }
    if is_number(text) {
        if text.len() > 1 && text.starts_with('0') {
            let text = escaped(text);
            return Err(format!(
                "Numeric PreRelease version must not contain leading zeroes {text}"
            ));
        }
        let number = text.parse().map_err(|_| {
            format!(
                "strconv.ParseUint: parsing {}: value out of range",
                escaped(text)
            )
        })?;
        return Ok(Identifier::Number(number));
    }
    if !is_alphanumeric(text) {
        let text = escaped(text);
        return Err(format!("Invalid character(s) found in prerelease {text}"));
    }
    Ok(Identifier::Text(text.to_owned()))
}

const SEMVER: Type = Type::Library(LibraryType::Semver);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Int, String};
    let f = functions;
    f.global("semver", "string_to_semver", [String], SEMVER, semver);
    f.global(
        "semver",
        "string_bool_to_semver",
        [String, Bool],
        SEMVER,
        semver,
    );
    f.global("isSemver", "is_semver_string", [String], Bool, is_semver);
    f.global(
        "isSemver",
        "is_semver_string_bool",
        [String, Bool],
        Bool,
        is_semver,
    );
    let two = || [SEMVER, SEMVER];
    f.member(
        "isGreaterThan",
        "semver_is_greater_than",
        two(),
        Bool,
        |_, args| compared("isGreaterThan", args, |order| Value::Bool(order.is_gt())),
    );
    f.member(
        "isLessThan",
        "semver_is_less_than",
        two(),
        Bool,
        |_, args| compared("isLessThan", args, |order| Value::Bool(order.is_lt())),
    );
    f.member("compareTo", "semver_compare_to", two(), Int, |_, args| {
        compared("compareTo", args, |order| Value::Int(order as i64))
    });
    let numbers: [(&'static str, &'static str, Call); 3] = [
        ("major", "semver_major", |_, args| part("major", args, 0)),
        ("minor", "semver_minor", |_, args| part("minor", args, 1)),
        ("patch", "semver_patch", |_, args| part("patch", args, 2)),
    ];
    for (name, id, call) in numbers {
        f.member(name, id, [SEMVER], Int, call);
    }
}

fn read(name: &str, args: &[Value<'_>]) -> Result<Result<Version, String>, EvalError> {
    match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => {
            Ok(Version::parse(text))
        }
        [Value::String(text), Value::Bool(true)] => Ok(Version::parse_tolerant(text)),
        _ => Err(EvalError::no_overload_for(name, args)),
    }
}

fn semver<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let version = read("semver", args)?.map_err(EvalError::new)?;
    Ok(Value::library(LibraryValue::Semver(version)))
}

fn is_semver<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(read("isSemver", args)?.is_ok()))
}

fn the_version<'v>(value: Option<&'v Value<'_>>) -> Option<&'v Version> {
    match value {
        Some(Value::Library(value)) => match &**value {
            LibraryValue::Semver(version) => Some(version),
            _ => None,
        },
        _ => None,
    }
}

fn compared<'a>(name: &str, args: &[Value<'a>], wrap: fn(Ordering) -> Value<'a>) -> Evaluated<'a> {
    match (the_version(args.first()), the_version(args.get(1))) {
        (Some(one), Some(two)) => Ok(wrap(one.compare(two))),
        _ => Err(EvalError::no_overload_for(name, args)),
    }
}

fn part<'a>(name: &str, args: &[Value<'a>], index: usize) -> Evaluated<'a> {
    match the_version(args.first()) {
        // As the original: a number beyond the range wraps.
        Some(version) => Ok(Value::Int(version.numbers[index] as i64)),
        None => Err(EvalError::no_overload_for(name, args)),
    }
}
