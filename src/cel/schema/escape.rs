//! Names of properties as identifiers: `a-b` is `a__dash__b`, `if` is `__if__`.

use std::borrow::Cow;

use crate::cel::syntax::RESERVED;

/// Further words that are no identifiers in expressions.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

fn is_reserved(word: &str) -> bool {
    LITERALS.contains(&word) || RESERVED.contains(&word)
}

const ESCAPES: [(&str, &str); 4] = [
    ("__", "__underscores__"),
    (".", "__dot__"),
    ("-", "__dash__"),
    ("/", "__slash__"),
];

/// The identifier for a property's name, or `None` if expressions cannot name it.
pub fn escape(name: &str) -> Option<Cow<'_, str>> {
    let first = name.bytes().next()?;
    if first.is_ascii_digit() {
        return None;
    }
    if is_reserved(name) {
        return Some(Cow::Owned(format!("__{name}__")));
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte);
    if !name.bytes().all(known) {
        return None;
    }
    if !name.contains("__") && !name.contains(['.', '-', '/']) {
        return Some(Cow::Borrowed(name));
    }
    let mut out = String::with_capacity(name.len() + 16);
    let mut rest = name;
    'next: while let Some(first) = rest.chars().next() {
        for (from, to) in ESCAPES {
            if let Some(after) = rest.strip_prefix(from) {
                out.push_str(to);
                rest = after;
                continue 'next;
            }
        }
        out.push(first);
        rest = &rest[first.len_utf8()..];
    }
    Some(Cow::Owned(out))
}

/// The property's name behind an identifier, or `None` if it holds an escape that does not exist.
pub fn unescape(identifier: &str) -> Option<Cow<'_, str>> {
    if !identifier.contains("__") {
        return Some(Cow::Borrowed(identifier));
    }
    let mut out = String::with_capacity(identifier.len());
    let mut rest = identifier;
    while let Some(start) = rest.find("__") {
        out.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let Some(length) = inner
            .find("__")
            .filter(|length| !inner[..*length].contains('_'))
        else {
            out.push_str(&rest[start..start + 1]);
            rest = &rest[start + 1..];
            continue;
        };
        let word = &inner[..length];
        let escapes = |(_, to): &&(&str, &str)| to[2..to.len() - 2] == *word;
        match ESCAPES.iter().find(escapes) {
            Some((from, _)) => out.push_str(from),
            None if is_reserved(word) && word.len() + 4 == identifier.len() => {
                out.push_str(word);
            }
            None if word.is_empty() => out.push_str("____"),
            None => return None,
        }
        rest = &inner[length + 2..];
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}
