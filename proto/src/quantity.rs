//! Amounts such as `500m`, `1Gi` and `3e6`, with the rules of apimachinery's resource.Quantity.
//!
//! A value is exact to one billionth; finer parts round away from zero. Values that do not fit
//! (beyond about 1.7e29) are held at the end of the range.

use std::{cmp::Ordering, fmt, ops};

/// A parsed amount. Equality and order look at the value, not at how it was written.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// Billionths.
    nanos: i128,
    format: Format,
}

/// How the amount was written, and will be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, `Gi`...
    BinarySi,
    /// `m`, none, `k`, `M`...
    DecimalSi,
    /// `e3`, `E6`...
    DecimalExponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// A whole amount.
    pub fn new(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
            format,
        }
    }

    /// Thousandths, printed in decimal.
    pub fn from_milli(milli: i64) -> Self {
        Self {
            nanos: i128::from(milli) * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// A whole amount, printed in decimal.
    pub fn from_value(value: i64) -> Self {
        Self::new(value, Format::DecimalSi)
    }

    /// Bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: u64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            format: Format::BinarySi,
        }
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let negative = text.starts_with('-');
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.is_empty() && fraction.is_empty() {
            return Err(ParseError::Format);
        }
        if !well_formed_suffix(suffix) {
            return Err(ParseError::Format);
        }
        let (scale, format) = interpret(suffix).ok_or(ParseError::Suffix)?;
        let magnitude = magnitude(whole, fraction, scale);
        // Amounts in binary stop at the largest int64.
        let cap = i128::from(i64::MAX) * NANO;
        let binary = format == Format::BinarySi;
        let magnitude = if binary {
            magnitude.min(cap)
        } else {
            magnitude
        };
        let format = if binary && magnitude < NANO && magnitude > 0 {
            Format::DecimalSi
        } else {
            format
        };
        Ok(Self {
            nanos: if negative { -magnitude } else { magnitude },
            format,
        })
    }

    /// The amount in whole units, rounded away from zero, held at the ends of the range.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// The amount in thousandths, rounded away from zero, held at the ends of the range.
    pub fn milli(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// The amount in whole thousandths, rounded away from zero.
    pub fn rounded_to_milli(self) -> Self {
        const MILLI: i128 = NANO / 1000;
        let rounded = div_away(self.nanos, MILLI).checked_mul(MILLI);
        Self {
            nanos: rounded.unwrap_or(self.nanos),
            format: self.format,
        }
    }

    /// The exact amount in billionths.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// As a float, for ratios.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    fn scaled(self, unit: i128) -> i64 {
        let up = div_away(self.nanos, unit);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }

    /// The one text that stands for this amount in this format.
    pub fn canonical(self) -> String {
        if self.nanos == 0 {
            return "0".to_owned();
        }
        let whole = self.nanos % NANO == 0;
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if whole && !small => binary(self.nanos / NANO),
            Format::DecimalExponent => decimal(self.nanos, |exponent| match exponent {
                0 => String::new(),
                exponent => format!("e{exponent}"),
            }),
            Format::BinarySi | Format::DecimalSi => decimal(self.nanos, si_suffix),
        }
    }
}

/// `eEinumkKMGTP` letters, a sign, digits: at most one of each part, in this order.
fn well_formed_suffix(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|byte| byte.is_ascii_digit())
}

/// What a suffix multiplies with.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn interpret(suffix: &str) -> Option<(Scale, Format)> {
    let decimal = |exponent| Some((Scale::Ten(exponent), Format::DecimalSi));
    let binary = |exponent| Some((Scale::Two(exponent), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            Some((Scale::Ten(exponent), Format::DecimalExponent))
        }
    }
}

/// Billionths of `whole.fraction * scale`, finer parts rounded up, too large ones held.
fn magnitude(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let held = match scale {
        Scale::Ten(exponent) => in_ten(whole, fraction, exponent),
        Scale::Two(exponent) => in_two(whole, fraction, exponent),
    };
    held.unwrap_or(i128::MAX)
}

/// `None`: too large.
fn in_ten(whole: &str, fraction: &str, exponent: i32) -> Option<i128> {
    // The first `keep` digits are whole billionths; later ones only round up.
    let keep = i64::try_from(whole.len()).ok()? + 9 + i64::from(exponent);
    let mut value = 0i128;
    let mut rest = false;
    let mut count = 0i64;
    for byte in whole.bytes().chain(fraction.bytes()) {
        if count >= keep {
            rest |= byte != b'0';
        } else {
            value = value
                .checked_mul(10)?
                .checked_add(i128::from(byte - b'0'))?;
        }
        count += 1;
    }
    while count < keep && value != 0 {
        value = value.checked_mul(10)?;
        count += 1;
    }
    value.checked_add(i128::from(rest))
}

/// `None`: too large. The first 18 digits of the fraction count, later ones only round up.
fn in_two(whole: &str, fraction: &str, exponent: u32) -> Option<i128> {
    let factor = 1i128 << exponent;
    let whole = whole.bytes().try_fold(0i128, |value, byte| {
        value.checked_mul(10)?.checked_add(i128::from(byte - b'0'))
    })?;
    let (fraction, rest) = fraction.split_at(fraction.len().min(18));
    let mut part = 0i128;
    let mut unit = 1i128;
    for byte in fraction.bytes() {
        part = part * 10 + i128::from(byte - b'0');
        unit *= 10;
    }
    let part = part * factor;
    let nanos = part % unit * NANO;
    let round = nanos % unit != 0 || rest.bytes().any(|byte| byte != b'0');
    whole
        .checked_mul(factor)?
        .checked_add(part / unit)?
        .checked_mul(NANO)?
        .checked_add(nanos / unit + i128::from(round))
}

fn div_away(value: i128, unit: i128) -> i128 {
    let part = value / unit;
    match (value % unit).cmp(&0) {
        Ordering::Equal => part,
        Ordering::Greater => part + 1,
        Ordering::Less => part - 1,
    }
}

fn binary(mut value: i128) -> String {
    let mut step = 0;
    while value % 1024 == 0 && step < 6 {
        value /= 1024;
        step += 1;
    }
    let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step];
    format!("{value}{suffix}")
}

/// Digits without trailing zeros, the exponent a multiple of three.
fn decimal(nanos: i128, suffix: impl Fn(i32) -> String) -> String {
    let (mut value, mut exponent) = (nanos, -9);
    while value % 1000 == 0 && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    format!("{value}{}", suffix(exponent))
}

fn si_suffix(exponent: i32) -> String {
    let suffix = match exponent {
        -9 => "n",
        -6 => "u",
        -3 => "m",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        18 => "E",
        _ => "",
    };
    suffix.to_owned()
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
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

/// A sum keeps the left format; a zero takes the other's, as upstream.
impl ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format: if self.is_zero() {
                other.format
            } else {
                self.format
            },
        }
    }
}

impl ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format: if self.is_zero() {
                other.format
            } else {
                self.format
            },
        }
    }
}

impl ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl ops::Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            nanos: self.nanos.saturating_neg(),
            format: self.format,
        }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, ops::Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("1023Mi", "1023Mi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("1Ki", "1Ki"),
            // Small binary amounts are printed in decimal.
            ("0.5Ki", "512"),
            ("0.5Mi", "512Ki"),
            // Not whole: decimal.
            ("1.0001Ki", "1024102400u"),
            ("1000000", "1M"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("12e2", "1200"),
            ("1E3", "1e3"),
            ("1E", "1E"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("-1000m", "-1"),
            ("+5", "5"),
            (".5", "500m"),
            ("1.", "1"),
            ("8Ei", "9223372036854775807"),
            ("100E", "100E"),
        ] {
            let parsed = Quantity::parse(text).expect(text);
            assert_eq!(parsed.canonical(), want, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "", "-", ".", "1..2", "1 Gi", "1Gib", "abc", "1e3x", "1.2.3", "1e3.5", " 1",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
        assert_eq!(Quantity::parse("1KiMi"), Err(ParseError::Suffix));
        assert_eq!(Quantity::parse("1K"), Err(ParseError::Suffix));
    }

    #[test]
    fn values_round_up() {
        for (text, milli, value) in [
            ("250m", 250, 1),
            ("1100m", 1100, 2),
            ("1u", 1, 1),
            ("-1100m", -1100, -2),
            ("1Gi", 1_073_741_824_000, 1_073_741_824),
            ("10E", i64::MAX, i64::MAX),
        ] {
            let parsed = Quantity::parse(text).expect(text);
            assert_eq!((parsed.milli(), parsed.value()), (milli, value), "{text}");
        }
    }

    #[test]
    fn sums_keep_the_left_format() {
        let parse = |text| Quantity::parse(text).expect("a quantity");
        assert_eq!((parse("1Gi") + parse("1024Mi")).canonical(), "2Gi");
        assert_eq!((Quantity::ZERO + parse("1Gi")).canonical(), "1Gi");
        assert_eq!((parse("1") - parse("100m")).canonical(), "900m");
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1000m"), parse("1"));
    }

    proptest! {
        #[test]
        fn canonical_text_keeps_the_value(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,9})?(n|u|m|k|M|G|Ki|Mi|Gi|e[0-9]|E-[0-6])?") {
            let parsed = Quantity::parse(&text).expect("well formed");
            let again = Quantity::parse(&parsed.canonical()).expect("canonical parses");
            prop_assert_eq!(parsed, again);
            prop_assert_eq!(parsed.canonical(), again.canonical());
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }
    }
}
