//! `'%s is %d'.format([..])`

use super::conversion::scalar_text;
use crate::{
    cel::{
        functions::Functions,
        program::Meter,
        types::Type,
        value::{EvalError, Evaluated, Key, List, Map, Value, escaped},
    },
    hex::hex,
};

/// Digits behind the point where a clause says none.
const PRECISION: usize = 6;
/// Most digits a clause may ask for. The original has no limit here and can be made to print for
/// minutes.
const MAX_PRECISION: usize = 1000;

pub(super) fn declare(functions: &mut Functions) {
    let parameters = [Type::String, super::list(Type::Dyn)];
    functions.member("format", "string_format", parameters, Type::String, format);
}

/// One `%` clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    String,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { upper: bool },
    Octal,
}

/// A piece of a format string.
enum Piece<'t> {
    Text(&'t str),
    Clause(Clause),
}

/// What is wrong with a format string. Positions of arguments are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormatError(pub String);

impl Clause {
    /// Types of values that the clause prints.
    pub fn takes(self, ty: &Type) -> bool {
        use Type::{Bool, Bytes, Double, Duration, Int, List, Map, Null, String, Timestamp, Uint};
        match self {
            Self::String => matches!(
                ty,
                List(_)
                    | Map(_)
                    | Int
                    | Uint
                    | Double
                    | Bool
                    | String
                    | Timestamp
                    | Bytes
                    | Duration
                    | Type::Type(_)
                    | Null
            ),
            Self::Decimal | Self::Octal => matches!(ty, Int | Uint),
            Self::Fixed(_) | Self::Scientific(_) => matches!(ty, Double | String),
            Self::Binary => matches!(ty, Int | Uint | Bool),
            Self::Hex { .. } => matches!(ty, Int | Uint | String | Bytes),
        }
    }

    pub fn refusal(self, ty: &str) -> String {
        let what = match self {
            Self::String => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, \
                 lists, types, durations, and timestamps"
            }
            Self::Decimal => "decimal clause can only be used on integers",
            Self::Fixed(_) => "fixed-point clause can only be used on doubles",
            Self::Scientific(_) => "scientific clause can only be used on doubles",
            Self::Binary => "only integers and bools can be formatted as binary",
            Self::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
            Self::Octal => "octal clause can only be used on integers",
        };
        format!("{what}, was given {ty}")
    }
}

/// The clauses of a format string, for a call with so many arguments.
pub(crate) fn clauses(text: &str, args: usize) -> Result<Vec<Clause>, FormatError> {
    let pieces = pieces(text, args)?;
    let clause = |piece: &Piece<'_>| match piece {
        Piece::Clause(clause) => Some(*clause),
        Piece::Text(_) => None,
    };
    Ok(pieces.iter().filter_map(clause).collect())
}

fn pieces(text: &str, args: usize) -> Result<Vec<Piece<'_>>, FormatError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut used = 0;
    while let Some(at) = rest.find('%') {
        pieces.push(Piece::Text(&rest[..at]));
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            pieces.push(Piece::Text("%"));
            rest = after;
            continue;
        }
        if used >= args {
            return Err(FormatError(format!("index {used} out of range")));
        }
        if rest.is_empty() {
            return Err(FormatError("unexpected end of string".to_owned()));
        }
        let (clause, after) = clause(rest)
            .map_err(|why| FormatError(format!("could not parse formatting clause: {why}")))?;
        pieces.push(Piece::Clause(clause));
        rest = after;
        used += 1;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

fn clause(text: &str) -> Result<(Clause, &str), String> {
    let (precision, text) = match text.strip_prefix('.') {
        None => (PRECISION, text),
        Some(rest) => {
            let inside = |why: &str| format!("error while parsing precision: {why}");
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(|| inside("could not find end of precision specifier"))?;
            let number = rest[..end]
                .parse()
                .ok()
                .filter(|number| *number <= MAX_PRECISION);
            let number = number.ok_or_else(|| {
                inside(&format!(
                    "error while converting precision to integer: strconv.Atoi: parsing {:?}: \
                     invalid syntax",
                    &rest[..end]
                ))
            })?;
            (number, &rest[end..])
        }
    };
    let first = text.chars().next().unwrap_or_default();
    let clause = match first {
        's' => Clause::String,
        'd' => Clause::Decimal,
        'f' => Clause::Fixed(precision),
        'e' => Clause::Scientific(precision),
        'b' => Clause::Binary,
        'x' => Clause::Hex { upper: false },
        'X' => Clause::Hex { upper: true },
        'o' => Clause::Octal,
        other => return Err(format!("unrecognized formatting clause \"{other}\"")),
    };
    Ok((clause, &text[1..]))
}

fn format<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text), Value::List(values)] = args else {
        return Err(EvalError::no_overload_for("format", args));
    };
    let pieces = pieces(text, values.len()).map_err(|error| EvalError::new(error.0))?;
    let mut out = String::new();
    let mut values = values.iter();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Clause(clause) => {
                let value = values.next().ok_or_else(EvalError::no_such_overload)??;
                let before = out.len();
                print(meter, &mut out, clause, &value)?;
                meter.work((out.len() - before) as u64 / 8)?;
            }
        }
    }
    Ok(Value::text(out))
}

fn print(
    meter: &mut Meter<'_>,
    out: &mut String,
    clause: Clause,
    value: &Value<'_>,
) -> Result<(), EvalError> {
    let refusal = |value: &Value<'_>| {
        let why = clause.refusal(&value.type_name());
        EvalError::new(format!("error during formatting: {why}"))
    };
    let text = match (clause, value) {
        (Clause::String, value) => return string(meter, out, value, refusal),
        (Clause::Decimal, Value::Int(value)) => value.to_string(),
        (Clause::Decimal, Value::Uint(value)) => value.to_string(),
        (Clause::Binary, Value::Int(value)) => signed(*value, |one| format!("{one:b}")),
        (Clause::Binary, Value::Uint(value)) => format!("{value:b}"),
        (Clause::Binary, Value::Bool(value)) => u8::from(*value).to_string(),
        (Clause::Octal, Value::Int(value)) => signed(*value, |one| format!("{one:o}")),
        (Clause::Octal, Value::Uint(value)) => format!("{value:o}"),
        (Clause::Hex { upper }, value) => {
            let hex = match value {
                Value::Int(value) => signed(*value, |one| format!("{one:x}")),
                Value::Uint(value) => format!("{value:x}"),
                Value::String(text) => hex(text.as_bytes()),
                Value::Bytes(bytes) => hex(bytes),
                other => return Err(refusal(other)),
            };
            if upper { hex.to_uppercase() } else { hex }
        }
        (Clause::Fixed(precision), value) => match double(value) {
            Some(number) => fixed(number, precision),
            None => return Err(refusal(value)),
        },
        (Clause::Scientific(precision), value) => match double(value) {
            Some(number) => scientific(number, precision),
            None => return Err(refusal(value)),
        },
        (_, value) => return Err(refusal(value)),
    };
    out.push_str(&text);
    Ok(())
}

fn signed(value: i64, digits: fn(u64) -> String) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", digits(value.unsigned_abs()))
}

/// Doubles, and the names of those that JSON cannot hold.
fn double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(value) => Some(*value),
        Value::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// What is no number is printed as English texts have it.
fn not_finite(value: f64) -> Option<&'static str> {
    match value {
        value if value.is_nan() => Some("NaN"),
        f64::INFINITY => Some("\u{221e}"),
        f64::NEG_INFINITY => Some("-\u{221e}"),
        _ => None,
    }
}

/// With commas between thousands, as English texts have it.
fn fixed(value: f64, precision: usize) -> String {
    if let Some(name) = not_finite(value) {
        return name.to_owned();
    }
    let plain = format!("{value:.precision$}");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.as_str()),
    };
    let (whole, fraction) = match digits.find('.') {
        Some(point) => digits.split_at(point),
        None => (digits, ""),
    };
    let mut out = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// `1.500000×10⁰³`
fn scientific(value: f64, precision: usize) -> String {
    if let Some(name) = not_finite(value) {
        return name.to_owned();
    }
    let plain = format!("{value:.precision$e}");
    let (mantissa, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ("\u{207b}", digits),
        None => ("", exponent),
    };
    const SUPERSCRIPT: [char; 10] = [
        '\u{2070}', '\u{b9}', '\u{b2}', '\u{b3}', '\u{2074}', '\u{2075}', '\u{2076}', '\u{2077}',
        '\u{2078}', '\u{2079}',
    ];
    let digits: String = format!("{digits:0>2}")
        .bytes()
        .map(|digit| SUPERSCRIPT[usize::from(digit.wrapping_sub(b'0')) % 10])
        .collect();
    format!("{mantissa}\u{d7}10{sign}{digits}")
}

fn string(
    meter: &mut Meter<'_>,
    out: &mut String,
    value: &Value<'_>,
    refusal: impl Fn(&Value<'_>) -> EvalError + Copy,
) -> Result<(), EvalError> {
    match value {
        Value::String(text) => out.push_str(text),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => out.push_str(text),
            Err(_) => {
                let why = "error during formatting: could not convert argument to string";
                return Err(EvalError::new(why));
            }
        },
        Value::Null => out.push_str("null"),
        Value::Type(ty) => out.push_str(ty.name()),
        Value::List(list) => write_list(meter, out, list, refusal)?,
        Value::Map(map) => write_map(meter, out, map, refusal)?,
        other => match scalar_text(other) {
            Some(text) => out.push_str(&text),
            None => return Err(refusal(other)),
        },
    }
    Ok(())
}

fn write_list(
    meter: &mut Meter<'_>,
    out: &mut String,
    list: &List<'_>,
    refusal: impl Fn(&Value<'_>) -> EvalError + Copy,
) -> Result<(), EvalError> {
    out.push('[');
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        nested(meter, out, &item?, refusal)?;
    }
    out.push(']');
    Ok(())
}

/// Entries in the order of their keys as they are printed.
fn write_map(
    meter: &mut Meter<'_>,
    out: &mut String,
    map: &Map<'_>,
    refusal: impl Fn(&Value<'_>) -> EvalError + Copy,
) -> Result<(), EvalError> {
    let mut entries = Vec::with_capacity(map.len());
    for (key, value) in map.entries()? {
        let shown = match &key {
            Key::String(text) => escaped(text),
            other => shown(&other.to_value()),
        };
        entries.push((shown, value));
    }
    entries.sort_by(|one, two| one.0.cmp(&two.0));
    out.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        out.push_str(key);
        out.push(':');
        nested(meter, out, value, refusal)?;
    }
    out.push('}');
    Ok(())
}

/// A value inside of a list or map: printed as it would be written. Values are nested at most a
/// few hundred levels, and each printed one counts as work.
fn nested(
    meter: &mut Meter<'_>,
    out: &mut String,
    value: &Value<'_>,
    refusal: impl Fn(&Value<'_>) -> EvalError + Copy,
) -> Result<(), EvalError> {
    meter.work(4)?;
    match value {
        Value::String(text) => {
            meter.work(text.len() as u64 / 8)?;
            out.push_str(&escaped(text));
            Ok(())
        }
        Value::Bytes(bytes) => {
            meter.work(bytes.len() as u64 / 8)?;
            out.push('b');
            out.push_str(&escaped(&String::from_utf8_lossy(bytes)));
            Ok(())
        }
        Value::Double(number) => {
            out.push_str(&match number {
                number if number.is_nan() => "\"NaN\"".to_owned(),
                number if number.is_infinite() => {
                    let sign = if *number > 0.0 { '+' } else { '-' };
                    format!("\"{sign}Inf\"")
                }
                number => format!("{number:.PRECISION$}"),
            });
            Ok(())
        }
        Value::Duration(_) | Value::Timestamp(_) => {
            let name = if matches!(value, Value::Duration(_)) {
                "duration"
            } else {
                "timestamp"
            };
            let text = scalar_text(value).unwrap_or_default();
            out.push_str(&format!("{name}({text:?})"));
            Ok(())
        }
        Value::Optional(_) | Value::Library(_) | Value::Object(_) | Value::Variables => {
            let why = format!(
                "error during formatting: no formatting function for {}",
                value.type_name()
            );
            Err(EvalError::new(why))
        }
        other => string(meter, out, other, refusal),
    }
}

/// A value in a message.
pub(super) fn shown(value: &Value<'_>) -> String {
    scalar_text(value).unwrap_or_else(|| value.type_name())
}
