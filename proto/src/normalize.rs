//! The one spelling of times, durations and quantities that objects are stored with.

use serde_json::{Value, json};

use super::{Shape, Type, calendar, fill::drop_empty, quantity::Quantity};

/// Rewrites quantities and times of an object in place, and removes empty members that Go's
/// encoder leaves out; what cannot be read stays for validation to complain about. Idempotent.
pub fn normalize(ty: &Type, value: &mut Value) {
    let Value::Object(object) = value else {
        return;
    };
    for (name, member) in object.iter_mut() {
        if let Some(field) = ty.field(name) {
            normalize_shape(&field.shape, member);
        }
    }
    drop_empty(ty, object);
}

fn normalize_shape(shape: &Shape, value: &mut Value) {
    match shape {
        Shape::List(element) | Shape::NamedList(element) => {
            for item in value.as_array_mut().into_iter().flatten() {
                normalize_shape(element, item);
            }
        }
        // The original's defaults of a ResourceList.
        Shape::Map(Shape::Quantity) => {
            for item in { value.as_object_mut() }
                .into_iter()
                .flat_map(|list| list.values_mut())
            {
                rewrite(item, Quantity::rounded_to_milli);
            }
        }
        Shape::Map(element) => {
            for item in value
                .as_object_mut()
                .into_iter()
                .flat_map(|map| map.values_mut())
            {
                normalize_shape(element, item);
            }
        }
        Shape::Message(_) => {
            if let Some(ty) = shape.message() {
                normalize(ty, value);
            }
        }
        Shape::Quantity => rewrite(value, |quantity| quantity),
        Shape::Time | Shape::MicroTime => {
            let parsed = value.as_str().and_then(parse_time);
            if let Some((seconds, nanos)) = parsed {
                *value = match shape {
                    Shape::Time => json!(time(seconds, nanos)),
                    _ => json!(micro_time(seconds, nanos)),
                };
            }
        }
        _ => {}
    }
}

/// The one spelling of what `change` makes of a quantity.
fn rewrite(value: &mut Value, change: impl Fn(Quantity) -> Quantity) {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = Quantity::parse(text.trim()) {
        *value = json!(change(quantity).to_string());
    }
}

/// `2026-01-02T03:04:05Z`.
pub fn time(seconds: i64, _nanos: u32) -> String {
    let (date, clock) = civil(seconds);
    format!("{date}T{clock}Z")
}

/// `2026-01-02T03:04:05.000006Z`.
pub fn micro_time(seconds: i64, nanos: u32) -> String {
    let (date, clock) = civil(seconds);
    format!("{date}T{clock}.{:06}Z", nanos / 1000)
}

/// Date and clock of a Unix time.
fn civil(seconds: i64) -> (String, String) {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = calendar::date_of(days);
    let clock = format!(
        "{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    (format!("{year:04}-{month:02}-{day:02}"), clock)
}

/// Seconds and nanoseconds of an RFC 3339 time.
pub fn parse_time(text: &str) -> Option<(i64, u32)> {
    let bytes = text.as_bytes();
    // Digits alone: numbers in Rust may have a sign.
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<i64>().ok())?
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    let plain = separators
        .iter()
        .all(|(at, want)| bytes.get(*at) == Some(want));
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !plain || !in_range || !matches!(bytes.get(10), Some(b'T')) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        let kept = fraction.get(..digits.min(9))?;
        nanos = format!("{kept:0<9}").parse().ok()?;
        rest = fraction.get(digits..)?;
    }
    let offset = match rest {
        "Z" => 0,
        _ => {
            let sign = match rest.get(..1)? {
                "+" => 1,
                "-" => -1,
                _ => return None,
            };
            let at = text.len() - rest.len();
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            // Go takes 24 hours and 60 minutes too.
            let in_range = hours <= 24 && minutes <= 60;
            if rest.len() != 6 || bytes.get(at + 3) != Some(&b':') || !in_range {
                return None;
            }
            sign * (hours * 3600 + minutes * 60)
        }
    };
    let (month_number, day_number) = (u32::try_from(month).ok()?, u32::try_from(day).ok()?);
    let days = calendar::days_of(year, month_number, day_number);
    // The 31st of February would count on into March.
    if text.get(..10) != Some(civil(days * 86_400).0.as_str()) {
        return None;
    }
    Some((
        days * 86_400 + hour * 3600 + minute * 60 + second - offset,
        nanos,
    ))
}

/// Nanoseconds as Go writes them: `1h2m3.5s`.
pub fn duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    let (sign, total) = if nanos < 0 {
        ("-", nanos.unsigned_abs())
    } else {
        ("", nanos.unsigned_abs())
    };
    let fraction = |whole: u64, unit: u64, name: &str| {
        let part = format!("{:0width$}", whole % unit, width = unit.ilog10() as usize);
        let part = part.trim_end_matches('0');
        let dot = if part.is_empty() { "" } else { "." };
        format!("{sign}{}{dot}{part}{name}", whole / unit)
    };
    match total {
        0..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => fraction(total, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(total, 1_000_000, "ms"),
        _ => {
            let (hours, minutes) = (total / 3_600_000_000_000, total / 60_000_000_000 % 60);
            let seconds = fraction(total % 60_000_000_000, 1_000_000_000, "s");
            let seconds = seconds.trim_start_matches('-');
            match (hours, minutes) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, _) => format!("{sign}{minutes}m{seconds}"),
                _ => format!("{sign}{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// Nanoseconds of a Go duration.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let (unit, nanos) = [
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 60e9),
            ("h", 3600e9),
        ]
        .into_iter()
        .find(|(unit, _)| rest.starts_with(unit))?;
        total += number * nanos;
        rest = rest.get(unit.len()..)?;
    }
    (!text.is_empty()).then_some((sign * total) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T12:00:00Z", 951_825_600, 0),
            ("2026-11-23T14:37:00.123456Z", 1_795_444_620, 123_456_000),
            ("2026-11-23T16:37:00+02:00", 1_795_444_620, 0),
            ("2026-11-23T12:07:00-02:30", 1_795_444_620, 0),
            ("2026-11-24T14:37:00+24:00", 1_795_444_620, 0),
        ] {
            assert_eq!(parse_time(text), Some((seconds, nanos)), "{text}");
        }
        assert_eq!(time(1_795_444_620, 0), "2026-11-23T14:37:00Z");
        assert_eq!(
            micro_time(951_825_600, 1_500),
            "2000-02-29T12:00:00.000001Z"
        );
        for bad in [
            "",
            "2026-13-01T00:00:00Z",
            "2026-02-31T00:00:00Z",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T-1:00:00Z",
            "2026-01-01T+1:00:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00z",
            "2026-01-01T00:00:00+25:00",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+-1:00",
            "2026-01-01T00:00:00+01:00:00",
            "2026-01-01T00:00:00+01ü00",
            // Found by fuzzing: more seconds than a number holds.
            "2022-01-01T00:00:00-100:000004000008123281907466",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn resource_lists_hold_whole_thousandths() {
        let pod = crate::schema().get("io.k8s.api.core.v1.Pod").unwrap();
        for (given, want) in [
            (json!("0.0001"), "1m"),
            (json!("100u"), "1m"),
            (json!("1n"), "1m"),
            (json!("1.0001"), "1001m"),
            (json!("-1.0001"), "-1001m"),
            (json!(0.25), "250m"),
            (json!("0.1Ki"), "102400m"),
            (json!("1.00001Ki"), "1024011m"),
            (json!("2e-4"), "1e-3"),
            (json!("0"), "0"),
            (json!("1Gi"), "1Gi"),
        ] {
            let mut value = json!({"spec": {
                "containers": [{"name": "c", "resources": {"requests": {"cpu": given}}}],
                "overhead": {"cpu": given}}});
            normalize(pod, &mut value);
            let spec = &value["spec"];
            assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], want);
            assert_eq!(spec["overhead"]["cpu"], want);
        }
        // An amount by itself is no such list.
        let mut value = json!({"spec": {"volumes": [{"emptyDir": {"sizeLimit": "0.0001"}}]}});
        normalize(pod, &mut value);
        assert_eq!(value["spec"]["volumes"][0]["emptyDir"]["sizeLimit"], "100u");
    }

    #[test]
    fn durations() {
        for (nanos, text) in [
            (0, "0s"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (250_000_000, "250ms"),
            (-1_000_000_000, "-1s"),
        ] {
            assert_eq!(duration(nanos), text);
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
        }
    }
}
