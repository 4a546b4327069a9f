//! The values of literals: numbers and quoted texts.

use crate::cel::ast::Literal;

/// An integer literal, its minus sign included.
pub(crate) fn int(text: &str, negative: bool) -> Option<i64> {
    let magnitude = match text.strip_prefix("0x") {
        Some(digits) => i128::from(u64::from_str_radix(digits, 16).ok()?),
        None => i128::from(text.parse::<u64>().ok()?),
    };
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// An unsigned literal with its `u`.
pub(crate) fn uint(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['u', 'U']);
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// A floating point literal; what is too large for one is refused, as in Go.
pub(crate) fn double(text: &str, negative: bool) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    value
        .is_finite()
        .then_some(if negative { -value } else { value })
}

/// A string literal with its quotes and prefix.
pub(crate) fn string(text: &str) -> Result<Literal, &'static str> {
    let bytes = unquote(text, false)?;
    let text = String::from_utf8(bytes).map_err(|_| "invalid unicode code point")?;
    Ok(Literal::String(text.into()))
}

/// A bytes literal with its quotes and prefixes.
pub(crate) fn bytes(text: &str) -> Result<Literal, &'static str> {
    Ok(Literal::Bytes(unquote(&text[1..], true)?.into()))
}

fn unquote(text: &str, is_bytes: bool) -> Result<Vec<u8>, &'static str> {
    const BROKEN: &str = "unable to unescape string";
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (raw, text) = match text.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    let quote = text.get(..1).ok_or(BROKEN)?;
    let triple = text.len() >= 6 && text.starts_with(&quote.repeat(3));
    let edge = if triple { 3 } else { 1 };
    let inner = text.get(edge..text.len() - edge).ok_or(BROKEN)?;
    if raw || !inner.contains('\\') {
        return Ok(inner.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = unescape(&rest[at + 1..], is_bytes, &mut out)?;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

/// Decodes the escape sequence after a backslash; gives what follows it.
fn unescape<'t>(text: &'t str, is_bytes: bool, out: &mut Vec<u8>) -> Result<&'t str, &'static str> {
    const BROKEN: &str = "unable to unescape string";
    let first = text
        .chars()
        .next()
        .ok_or("unable to unescape string, found '\\' as last character")?;
    let rest = &text[first.len_utf8()..];
    let simple = match first {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '\'' | '"' | '`' | '?' => first as u8,
        'x' | 'X' => return number(rest, 2, 16, is_bytes, out),
        'u' | 'U' if is_bytes => return Err(BROKEN),
        'u' => return number(rest, 4, 16, false, out),
        'U' => return number(rest, 8, 16, false, out),
        '0'..='3' => return number(text, 3, 8, is_bytes, out),
        _ => return Err(BROKEN),
    };
    out.push(simple);
    Ok(rest)
}

fn number<'t>(
    text: &'t str,
    length: usize,
    radix: u32,
    is_bytes: bool,
    out: &mut Vec<u8>,
) -> Result<&'t str, &'static str> {
    let digits = text.get(..length).ok_or("unable to unescape string")?;
    let value = u32::from_str_radix(digits, radix).map_err(|_| "unable to unescape string")?;
    if is_bytes {
        out.push(u8::try_from(value).map_err(|_| "unable to unescape string")?);
    } else {
        let one = char::from_u32(value).ok_or("invalid unicode code point")?;
        out.extend_from_slice(one.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Ok(&text[length..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings() {
        for (text, want) in [
            (r#"'a"b'"#, "a\"b"),
            (
                r#""tab\tA\x41\101\u00e9\U0001F600""#,
                "tab\tAAA\u{e9}\u{1F600}",
            ),
            (r"r'a\nb'", r"a\nb"),
            ("'''a\r\nb'''", "a\nb"),
            (r#""""x"y""""#, "x\"y"),
            ("''", ""),
            (r"'\a\b\f\v\?\`'", "\u{7}\u{8}\u{c}\u{b}?`"),
        ] {
            assert_eq!(string(text), Ok(Literal::String(want.into())), "{text}");
        }
        assert_eq!(string(r"'\ud800'"), Err("invalid unicode code point"));
    }

    #[test]
    fn bytes_are_not_code_points() {
        let want = Literal::Bytes([0xff, b'a', 0xc3, 0xa9, 0o377].into());
        assert_eq!(bytes(r"b'\xffa\u00e9'"), Err("unable to unescape string"));
        assert_eq!(bytes("b'\\xffa\u{e9}\\377'"), Ok(want));
    }

    #[test]
    fn numbers() {
        assert_eq!(int("9223372036854775808", true), Some(i64::MIN));
        assert_eq!(int("9223372036854775808", false), None);
        assert_eq!(int("0xF", true), Some(-15));
        assert_eq!(uint("0xFFu"), Some(255));
        assert_eq!(uint("18446744073709551616u"), None);
        assert_eq!(double("1.99e90000009", false), None);
        assert_eq!(double("1e3", true), Some(-1000.0));
    }
}
