//! What the node keeps for itself and when it takes things back: the settings, and how they are
//! written on a command line. Pure.

use std::time::Duration;

use super::{
    eviction::{self, Threshold},
    image_gc,
    node::reserved::Amounts,
};

/// Reservations, eviction and garbage collection.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ResourceSettings {
    pub eviction: eviction::Settings,
    /// `None`: as much as suits the machine.
    pub kube_reserved: Option<Amounts>,
    pub system_reserved: Amounts,
    pub image_gc: image_gc::Policy,
}

/// How thresholds are typed: `signal<value,...`, and `signal=value,...` for the other two.
#[derive(Clone, Copy, Debug, Default)]
pub struct TypedThresholds<'a> {
    /// `None`: the defaults. What is given takes the place of all of them.
    pub hard: Option<&'a str>,
    pub soft: &'a str,
    pub soft_grace: &'a str,
    pub minimum_reclaim: &'a str,
}

impl TypedThresholds<'_> {
    pub fn parse(&self) -> Result<Vec<Threshold>, Invalid> {
        eviction::thresholds(self)
    }
}

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: {problem}")]
pub struct Invalid {
    pub flag: &'static str,
    pub problem: String,
}

impl Invalid {
    pub fn new(flag: &'static str, problem: impl Into<String>) -> Self {
        Self {
            flag,
            problem: problem.into(),
        }
    }
}

/// The pairs of `key<separator>value,...`; of a key that comes twice the last one counts.
pub fn pairs<'a>(
    flag: &'static str,
    text: &'a str,
    separator: char,
) -> Result<Vec<(&'a str, &'a str)>, Invalid> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let Some((key, value)) = pair.split_once(separator) else {
            let problem =
                format!("malformed pair {pair:?}, expect string{separator}string, as in {flag}");
            return Err(Invalid::new(flag, problem));
        };
        let (key, value) = (key.trim(), value.trim());
        found.retain(|(other, _)| *other != key);
        found.push((key, value));
    }
    Ok(found)
}

/// `90s`, `1m30s`, `2h`, `500ms`, `0`; not negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration {text:?}, expect something like \"1m30s\"");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let end = unit
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(unit.len());
        let (unit, left) = unit.split_at(end);
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(wrong()),
            };
        rest = left;
    }
    match text.is_empty() {
        true => Err(wrong()),
        false => Duration::try_from_secs_f64(total).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("0", Some(0)),
            ("90s", Some(90_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("500ms", Some(500)),
            ("", None),
            ("5", None),
            ("-5s", None),
            ("5d", None),
            ("s", None),
            ("1e999s", None),
        ] {
            let got = duration(text).ok();
            assert_eq!(got, want.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn lists() {
        let got = pairs("--f", "a<1, b<2,a<3", '<').unwrap();
        assert_eq!(got, [("b", "2"), ("a", "3")]);
        assert!(pairs("--f", "a=1", '<').is_err());
        assert!(pairs("--f", "", '<').unwrap().is_empty());
    }
}
