//! JSON that somebody else wrote, read within bounds: the only way in which documents of images are
//! parsed. Pure.
//!
//! A megabyte of `{},{},…` becomes a hundred megabytes of values; so the number of values and their
//! depth are counted before anything is built.

use serde::de::DeserializeOwned;

/// The largest real configurations and indexes have a few thousand.
const MOST_VALUES: usize = 65_536;
const DEEPEST: usize = 32;
/// Of a document in an error: enough to find the place.
const LONGEST_REASON: usize = 200;

/// Reads a document; the reason says what is wrong with it, and is short.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    check(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| excerpt(&error.to_string(), LONGEST_REASON))
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let (mut values, mut depth) = (0_usize, 0_usize);
    let (mut in_text, mut escaped) = (false, false);
    for byte in bytes {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (true, _) => {}
            (false, b'{' | b'[') => {
                depth += 1;
                values += 1;
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            (false, b',') => values += 1,
            (false, _) => {}
        }
        if depth > DEEPEST {
            return Err(format!("it is nested deeper than {DEEPEST}"));
        }
        if values > MOST_VALUES {
            return Err(format!("it has more than {MOST_VALUES} values"));
        }
    }
    Ok(())
}

/// Somebody else's text for an error or an event: its beginning, on one line.
pub fn excerpt(text: &str, most: usize) -> String {
    let mut characters = text.trim().chars();
    let mut short: String = characters
        .by_ref()
        .take(most)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn documents_within_bounds() {
        let many = format!("[{}0]", "0,".repeat(MOST_VALUES));
        let text = format!("[\"{}\\\",{{[\"]", "[,".repeat(MOST_VALUES));
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        for (document, want) in [
            ("[1,{\"a\":\"b\"}]", None),
            (text.as_str(), None), // what is inside a text does not count
            (&deep(DEEPEST), None),
            (&deep(DEEPEST + 1), Some("nested deeper than 32")),
            (&deep(1 << 20), Some("nested deeper than 32")),
            (&many, Some("more than 65536 values")),
            ("[1", Some("EOF")),
            ("", Some("EOF")),
        ] {
            let got = read::<Value>(document.as_bytes());
            let start = excerpt(document, 20);
            match want {
                None => assert!(got.is_ok(), "{start}"),
                Some(want) => assert!(got.unwrap_err().contains(want), "{start}"),
            }
        }
    }

    #[test]
    fn reasons_are_short_and_on_one_line() {
        let long = format!("\"{}\"", "x\\n".repeat(10_000));
        let reason = read::<u32>(long.as_bytes()).unwrap_err();
        assert!(reason.chars().count() <= LONGEST_REASON + 1, "{reason}");
        assert_eq!(excerpt("a\nb\u{7}c", 9), "a b c");
        assert_eq!(excerpt("éé", 1), "é…");
    }
}
