//! Quantities: `500m`, `1.5`, `2Gi`, `1e3`; exact decimal arithmetic and the canonical spelling.
//!
//! Source: the rules in apimachinery's documentation of resource.Quantity: no precision is lost,
//! the exponent or suffix is as large as possible, and no fraction is written.

use std::{cmp::Ordering, fmt, ops::Add};

/// An exact number and the family of suffixes it was written with.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// In billionths: Kubernetes keeps no finer precision.
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct ParseError;

const NANO: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    pub fn from_milli(milli: i64) -> Self {
        Self {
            nanos: i128::from(milli) * 1_000_000,
            format: Format::Decimal,
        }
    }

    pub fn from_value(value: i64) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
            format: Format::Decimal,
        }
    }

    /// Bytes, written with binary suffixes.
    pub fn from_bytes(bytes: u64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            format: Format::Binary,
        }
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = unsigned
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, suffix) = unsigned.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 30 {
            return Err(ParseError);
        }
        let (exponent, binary, format) = scale(suffix)?;
        let mut mantissa: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            mantissa = mantissa
                .checked_mul(10)
                .and_then(|m| m.checked_add(i128::from(digit - b'0')))
                .ok_or(ParseError)?;
        }
        mantissa = mantissa
            .checked_shl(binary)
            .filter(|shifted| shifted >> binary == mantissa)
            .ok_or(ParseError)?;
        let places = i32::try_from(fraction.len()).map_err(|_| ParseError)?;
        let mut nanos = scale_by(mantissa, 9 + exponent - places);
        if negative {
            nanos = -nanos;
        }
        Ok(Self { nanos, format })
    }

    /// Whole units, rounded up.
    pub fn value(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO))
    }

    /// Thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        clamp(ceil_div(self.nanos, 1_000_000))
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }
}

/// Decimal exponent, binary shift and format of a suffix.
fn scale(suffix: &str) -> Result<(i32, u32, Format), ParseError> {
    if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((0, *shift, Format::Binary));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((*exponent, 0, Format::Decimal));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let exponent: i32 = exponent
        .strip_prefix('+')
        .unwrap_or(exponent)
        .parse()
        .map_err(|_| ParseError)?;
    if exponent.abs() > 40 {
        return Err(ParseError);
    }
    Ok((exponent, 0, Format::Exponent))
}

/// `number * 10^exponent`; what is finer than a unit is rounded away from zero, what is too large
/// stays at the largest value, as upstream caps it.
fn scale_by(number: i128, exponent: i32) -> i128 {
    if exponent >= 0 {
        let factor = 10_i128.checked_pow(exponent.unsigned_abs());
        let limit = i128::from(i64::MAX) * NANO;
        return factor
            .and_then(|factor| number.checked_mul(factor))
            .unwrap_or(limit)
            .min(limit);
    }
    match 10_i128.checked_pow(exponent.unsigned_abs()) {
        Some(factor) => ceil_div(number, factor),
        None => i128::from(number != 0),
    }
}

fn ceil_div(number: i128, by: i128) -> i128 {
    number.div_euclid(by) + i128::from(number.rem_euclid(by) != 0)
}

fn clamp(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // A fraction, or less than the first binary suffix, is written in decimal.
        if self.format == Format::Binary
            && self.nanos % NANO == 0
            && self.nanos.abs() >= 1024 * NANO
        {
            let value = self.nanos / NANO;
            let fits = BINARY
                .iter()
                .rev()
                .find(|(_, shift)| value % (1_i128 << shift) == 0);
            return match fits {
                Some((suffix, shift)) => write!(f, "{}{suffix}", value >> shift),
                None => write!(f, "{value}"),
            };
        }
        for (suffix, exponent) in DECIMAL.iter().rev() {
            let unit = 10_i128.pow((exponent + 9).unsigned_abs());
            if self.nanos % unit == 0 {
                return match (self.format, exponent) {
                    (Format::Exponent, 1..) | (Format::Exponent, ..=-1) => {
                        write!(f, "{}e{exponent}", self.nanos / unit)
                    }
                    _ => write!(f, "{}{suffix}", self.nanos / unit),
                };
            }
        }
        write!(f, "{}n", self.nanos)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_spelling() {
        for (text, want) in [
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("100", "100"),
            ("1000", "1k"),
            ("123456", "123456"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("0", "0"),
            ("-500m", "-500m"),
            ("1500n", "1500n"),
            ("1048576", "1048576"),
            (".5", "500m"),
            ("5.", "5"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        for (text, value, milli) in [
            ("100m", 1, 100),
            ("1", 1, 1000),
            ("1.0001", 2, 1001),
            ("2Gi", 2 << 30, (2 << 30) * 1000),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!(
                (quantity.value(), quantity.milli()),
                (value, milli),
                "{text}"
            );
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "1x", "1.2.3", "--1", "1 Gi", "1e", "9e99"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }
}
