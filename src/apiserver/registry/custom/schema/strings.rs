//! Texts: their length, pattern and format.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

use super::Tree;
use crate::apiserver::{registry::Causes, status::CauseType};
use proto::quantity::Quantity;

/// Patterns kept compiled, and the size of one program.
const MAX_PATTERNS: usize = 256;
const MAX_PATTERN_BYTES: usize = 2 << 20;

pub(super) fn strings(schema: &Tree, text: &str, path: &str, causes: &mut Causes) {
    let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        causes.push(CauseType::FieldValueTooLong, path, message);
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        causes.invalid(
            path,
            text,
            &format!("{path} in body should be at least {least} chars long"),
        );
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && compiled(pattern).is_some_and(|regex| !regex.is_match(text))
    {
        causes.invalid(
            path,
            text,
            &format!("{path} in body should match '{pattern}'"),
        );
    }
    if let Some(format) = schema["format"].as_str()
        && !is_of_format(format, text)
    {
        let detail = format!("{path} in body must be of type {format}: {text:?}");
        causes.invalid(path, text, &detail);
    }
}

/// The programs of patterns that are in use.
static PATTERNS: LazyLock<Mutex<HashMap<String, Option<regex::Regex>>>> =
    LazyLock::new(Mutex::default);

/// A pattern's program, made once; `None` if it is none, or too large.
pub fn compiled(pattern: &str) -> Option<regex::Regex> {
    let mut known = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(pattern) {
        return found.clone();
    }
    let made = regex::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .dfa_size_limit(MAX_PATTERN_BYTES)
        .build()
        .ok();
    if known.len() >= MAX_PATTERNS {
        known.clear();
    }
    known.insert(pattern.to_owned(), made.clone());
    made
}

/// Formats that are not known do not restrict, as upstream.
fn is_of_format(format: &str, text: &str) -> bool {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::{Engine, prelude::BASE64_STANDARD};
            BASE64_STANDARD.decode(text).is_ok()
        }
        "quantity" => Quantity::parse(text).is_ok(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_small_programs_and_few_are_kept() {
        assert!(compiled("^[a-z]{1,63}$").is_some());
        assert!(compiled(r"(\pL{1,500}){1,500}").is_none());
        for number in 0..2 * MAX_PATTERNS {
            assert!(compiled(&format!("^{number}$")).is_some());
            assert!(PATTERNS.lock().unwrap().len() <= MAX_PATTERNS);
        }
    }
}
