//! Spans of time as Go writes them: `1h30m`, `-1.5s`, `250ms`.

/// Nanoseconds of a duration, or `None` if the text is none or out of range.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Some(0);
    }
    let mut rest = unsigned;
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let (unit, after) = unit(after)?;
        total = total.checked_add(amount(number, unit)?)?;
        rest = after;
    }
    let signed = if text.starts_with('-') { -total } else { total };
    i64::try_from(signed).ok()
}

/// Nanoseconds of the unit a text begins with, and the text behind it.
fn unit(text: &str) -> Option<(i128, &str)> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let found = |(name, nanos): &(&str, i128)| Some((*nanos, text.strip_prefix(*name)?));
    UNITS.iter().find_map(found)
}

fn amount(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 19 {
        return None;
    }
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut nanos = whole * unit;
    let mut place = unit;
    let mut part: f64 = 0.0;
    for digit in fraction.bytes().take(18) {
        place /= 10;
        part += f64::from(digit - b'0') * place as f64;
    }
    // Below a nanosecond nothing is kept.
    nanos += part as i128;
    Some(nanos)
}

/// A duration in seconds, as it is printed: `5400s`, `0.25s`.
pub(crate) fn seconds_text(nanos: i64) -> String {
    let whole = nanos / 1_000_000_000;
    let rest = nanos % 1_000_000_000;
    format!("{}s", whole as f64 + rest as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_printed() {
        for (text, want) in [
            ("1h30m", "5400s"),
            ("-1.5s", "-1.5s"),
            ("250ms", "0.25s"),
            ("0", "0s"),
            ("1h2m3s4ms5us6ns", "3723.004005006s"),
            (".5s", "0.5s"),
            ("2540400h10m10s", "9145440610s"),
        ] {
            assert_eq!(
                parse_duration(text).map(seconds_text),
                Some(want.to_owned()),
                "{text}"
            );
        }
        for text in [
            "", "1", "s", "1d", "1.2.3s", "1s2", "-", "3000000h", ".s", "é",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
