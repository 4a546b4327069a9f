//! Regular expressions of Go (RE2), in the syntax of the `regex` crate.
//!
//! Both take linear time. What differs and is translated: `\d`, `\w`, `\s` and `\b` mean ASCII in
//! Go; `[`, `&&`, `--` and `~~` mean nothing inside of a class; a `{` that begins no repetition is a
//! brace; `\Q..\E` quotes.

use super::automaton::Automaton;

/// Largest programs of all patterns of an expression together, in states.
pub(crate) const MAX_STATES: u64 = 100_000;
/// Longest pattern.
const MAX_LENGTH: usize = 64 << 10;

/// Compiles a pattern of Go. The error is what is wrong, without a position.
pub(crate) fn compile(pattern: &str) -> Result<Automaton, String> {
    let broken = |why: &str| format!("error parsing regexp: {why}: `{pattern}`");
    if pattern.len() > MAX_LENGTH {
        return Err("error parsing regexp: expression too large".to_owned());
    }
    if let Some(operator) = double_repetition(pattern) {
        return Err(format!(
            "error parsing regexp: invalid nested repetition operator: `{operator}`"
        ));
    }
    Automaton::new(translate(pattern)).map_err(|why| broken(reason(&why)))
}

/// Where Go has other words for what is wrong, those.
fn reason(why: &str) -> &str {
    match why.strip_prefix("error: ").unwrap_or(why) {
        size if size.contains("exceeded limit") => "expression too large",
        "unopened group" => "unexpected )",
        "unclosed group" => "missing closing )",
        "unclosed character class" => "missing closing ]",
        "repetition operator missing expression" => "missing argument to repetition operator",
        "look-around, including look-ahead and look-behind, is not supported" => {
            "invalid or unsupported Perl syntax"
        }
        "backreferences are not supported" | "unrecognized escape sequence" => {
            "invalid escape sequence"
        }
        other => other,
    }
}

/// A repetition of a repetition without a group, which Go refuses: `a**`, `a++`.
fn double_repetition(pattern: &str) -> Option<String> {
    let mut previous: Option<usize> = None;
    let mut at = 0;
    while let Some(rest) = pattern.get(at..).filter(|rest| !rest.is_empty()) {
        let length = repetition(rest);
        if length > 0 {
            if let Some(start) = previous {
                return Some(pattern[start..at + length].to_owned());
            }
            previous = Some(at);
            at += length;
            // What makes it lazy belongs to it.
            at += usize::from(pattern[at..].starts_with('?'));
            continue;
        }
        previous = None;
        at += match rest.as_bytes()[0] {
            b'\\' if rest.starts_with("\\Q") => rest.find("\\E").map_or(rest.len(), |end| end + 2),
            b'\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            b'[' => rest.len() - class(&rest[1..], &mut String::new()).len(),
            // What follows a group's begin is no repetition: `(?i)`.
            b'(' if rest.starts_with("(?") => 2,
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    None
}

/// Length of the repetition operator that a text begins with, or 0.
fn repetition(text: &str) -> usize {
    match text.as_bytes()[0] {
        b'*' | b'+' | b'?' => 1,
        b'{' if is_repetition(text) => text.find('}').map_or(0, |end| end + 1),
        _ => 0,
    }
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '\\' => escape(&rest[1..], false, &mut out),
            '[' => class(&rest[1..], &mut out),
            '{' if !is_repetition(rest) => {
                out.push_str("\\{");
                &rest[1..]
            }
            other => {
                out.push(other);
                &rest[other.len_utf8()..]
            }
        };
    }
    out
}

/// `{n}`, `{n,}` or `{n,m}`
fn is_repetition(text: &str) -> bool {
    let Some((inner, _)) = text[1..].split_once('}') else {
        return false;
    };
    let (from, to) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !from.is_empty() && digits(from) && digits(to)
}

/// What follows a backslash; gives the text behind it.
fn escape<'p>(text: &'p str, in_class: bool, out: &mut String) -> &'p str {
    let Some(first) = text.chars().next() else {
        out.push('\\');
        return text;
    };
    let rest = &text[first.len_utf8()..];
    let (outside, inside) = match first {
        'd' => ("[0-9]", "0-9"),
        'D' => ("[^0-9]", "[^0-9]"),
        'w' => ("[0-9A-Za-z_]", "0-9A-Za-z_"),
        'W' => ("[^0-9A-Za-z_]", "[^0-9A-Za-z_]"),
        's' => ("[\\t\\n\\f\\r ]", "\\t\\n\\f\\r "),
        'S' => ("[^\\t\\n\\f\\r ]", "[^\\t\\n\\f\\r ]"),
        'b' if !in_class => ("(?-u:\\b)", ""),
        'Q' if !in_class => return quote(rest, out),
        '0'..='7' => return octal(text, out),
        other => {
            out.push('\\');
            out.push(other);
            return rest;
        }
    };
    out.push_str(if in_class { inside } else { outside });
    rest
}

/// A character by its octal number; one digit that is not zero would be a back reference.
fn octal<'p>(text: &'p str, out: &mut String) -> &'p str {
    let length = text
        .bytes()
        .take(3)
        .take_while(|byte| matches!(byte, b'0'..=b'7'))
        .count();
    let (digits, rest) = text.split_at(length);
    match u32::from_str_radix(digits, 8) {
        Ok(number) if length > 1 || number == 0 => out.push_str(&format!("\\x{{{number:x}}}")),
        _ => out.push_str(&format!("\\{digits}")),
    }
    rest
}

fn quote<'p>(text: &'p str, out: &mut String) -> &'p str {
    let (quoted, rest) = text.split_once("\\E").unwrap_or((text, ""));
    out.push_str(&regex::escape(quoted));
    rest
}

/// What follows the `[` of a class; gives the text behind the class.
fn class<'p>(text: &'p str, out: &mut String) -> &'p str {
    out.push('[');
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    // A bracket at the beginning is one of the class.
    if let Some(after) = rest.strip_prefix(']') {
        out.push_str("\\]");
        rest = after;
    }
    while let Some(first) = rest.chars().next() {
        match first {
            ']' => {
                out.push(']');
                return &rest[1..];
            }
            '\\' => {
                rest = escape(&rest[1..], true, out);
                continue;
            }
            '[' => {
                if let Some(length) = rest.starts_with("[:").then(|| rest.find(":]")).flatten() {
                    out.push_str(&rest[..length + 2]);
                    rest = &rest[length + 2..];
                    continue;
                }
                out.push_str("\\[");
            }
            '&' | '~' => {
                out.push('\\');
                out.push(first);
            }
            // Two dashes are an operator; of a range's dash the second is its end.
            '-' if rest.starts_with("--") => {
                out.push_str("-\\-");
                rest = &rest[2..];
                continue;
            }
            other => out.push(other),
        }
        rest = &rest[first.len_utf8()..];
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::program::{Budget, Meter, Patterns};

    #[test]
    fn as_go_reads_them() {
        for (pattern, text, want) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "\u{661}", false), // no ASCII digit
            (r"^[\w.]+$", "a.b_1", true),
            (r"^\w$", "\u{e9}", false),
            (r"\bfoo\b", "a foo b", true),
            (r"^[a[b]+$", "a[b", true),
            (r"^[a&&b]+$", "&a", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^]a]+$", "bc", true),
            (r"^[+--]+$", "+,-", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^a{2}$", "aa", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"(?i)^ABC$", "abc", true),
            (r"^\pL+$", "\u{e9}", true),
            (r"^a*?b+?[*+]+$", "aab*+", true),
            (r"^\101[\102\0]$", "AB", true),
        ] {
            let compiled = compile(pattern).unwrap();
            let patterns = Patterns::new();
            let mut meter = Meter::new(Budget::for_rules(), &patterns);
            let found = compiled.is_match(&mut meter, text).unwrap();
            assert_eq!(found, want, "{pattern} {text}");
        }
    }

    #[test]
    fn refused() {
        for pattern in [
            "(",
            "a**",
            "x++",
            "a{2}{3}",
            "(?<=a)b",
            r"\1",
            "[a",
            "((a{1000}){1000}){1000}",
        ] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert!(compile(&"a".repeat(MAX_LENGTH + 1)).is_err());
    }
}
