//! Kubernetes' quantities: `500m`, `1Gi`, `3e6`.
//!
//! `proto::quantity` has the same rules but ends at 1.7e29; here whole numbers go up to 1.7e38,
//! because expressions may add to large ones. One of the two can take the other's place.

use std::cmp::Ordering;

use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{EvalError, Evaluated, LibraryValue, Value},
};

const NANO: u32 = 1_000_000_000;
const WRONG_FORMAT: &str = "quantities must match the regular expression \
                            '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const WRONG_SUFFIX: &str = "unable to parse quantity's suffix";

/// An amount, exact to a billionth.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    whole: i128,
    /// Billionths above `whole`, below one.
    nanos: u32,
    /// Written with digits behind the point, or a suffix below one: no integer, whatever its value.
    fractional: bool,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.compare(other).is_eq()
    }
}

impl Quantity {
    fn compare(&self, other: &Self) -> Ordering {
        (self.whole, self.nanos).cmp(&(other.whole, other.nanos))
    }

    /// Reads a quantity. What is finer than a billionth rounds away from zero; what is too large is
    /// held at the end of the range.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, suffix) = unsigned.split_at(end.unwrap_or(unsigned.len()));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.is_empty() && fraction.is_empty() {
            return Err(WRONG_FORMAT);
        }
        if !suffix
            .bytes()
            .all(|byte| b"eEinumkKMGTP+-0123456789".contains(&byte))
        {
            return Err(WRONG_FORMAT);
        }
        let scale = Scale::of(suffix).ok_or(WRONG_SUFFIX)?;
        let mut amount = scale.apply(whole, fraction);
        if negative {
            amount = Self::default_zero().minus(amount);
        }
        amount.fractional = match scale {
            Scale::Ten(exponent) => i64::from(exponent) < fraction.len() as i64,
            Scale::Two(_) => !fraction.is_empty() && amount.nanos != 0,
        };
        Ok(amount)
    }

    fn default_zero() -> Self {
        Self::from_whole(0)
    }

    fn from_whole(whole: i128) -> Self {
        Self {
            whole,
            nanos: 0,
            fractional: false,
        }
    }

    fn is_zero(self) -> bool {
        self.whole == 0 && self.nanos == 0
    }

    fn plus(self, other: Self) -> Self {
        let nanos = self.nanos + other.nanos;
        let whole = self.whole.saturating_add(other.whole);
        Self {
            whole: whole.saturating_add(i128::from(nanos / NANO)),
            nanos: nanos % NANO,
            fractional: self.fractional || other.fractional,
        }
    }

    fn minus(self, other: Self) -> Self {
        let negated = match other.nanos {
            0 => Self {
                whole: other.whole.saturating_neg(),
                ..other
            },
            nanos => Self {
                whole: other.whole.saturating_neg().saturating_sub(1),
                nanos: NANO - nanos,
                ..other
            },
        };
        self.plus(negated)
    }

    fn integer(self) -> Option<i64> {
        let whole = i64::try_from(self.whole).ok();
        whole.filter(|_| self.nanos == 0 && !self.fractional)
    }

    fn approximate(self) -> f64 {
        self.whole as f64 + f64::from(self.nanos) / f64::from(NANO)
    }
}

/// What a suffix multiplies with.
#[derive(Clone, Copy)]
enum Scale {
    /// A power of ten.
    Ten(i32),
    /// A power of two.
    Two(u32),
}

impl Scale {
    fn of(suffix: &str) -> Option<Self> {
        Some(match suffix {
            "" => Self::Ten(0),
            "n" => Self::Ten(-9),
            "u" => Self::Ten(-6),
            "m" => Self::Ten(-3),
            "k" => Self::Ten(3),
            "M" => Self::Ten(6),
            "G" => Self::Ten(9),
            "T" => Self::Ten(12),
            "P" => Self::Ten(15),
            "E" => Self::Ten(18),
            "Ki" => Self::Two(10),
            "Mi" => Self::Two(20),
            "Gi" => Self::Two(30),
            "Ti" => Self::Two(40),
            "Pi" => Self::Two(50),
            "Ei" => Self::Two(60),
            other => {
                let exponent = other.strip_prefix(['e', 'E'])?;
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let parsed = exponent.parse::<i64>().ok().filter(|_| whole)?;
                Self::Ten(i32::try_from(parsed.clamp(-1000, 1000)).ok()?)
            }
        })
    }

    fn apply(self, whole: &str, fraction: &str) -> Quantity {
        match self {
            Self::Ten(exponent) => decimal(whole, fraction, exponent),
            Self::Two(power) => {
                let amount = decimal(whole, fraction, 0);
                let factor = 1_i128 << power;
                let nanos = i128::from(amount.nanos) * factor;
                let carried = nanos / i128::from(NANO);
                let product = amount.whole.saturating_mul(factor).saturating_add(carried);
                Quantity {
                    whole: product.min(i128::from(i64::MAX)),
                    // Smaller than a billion.
                    nanos: u32::try_from(nanos % i128::from(NANO)).unwrap_or(0),
                    fractional: false,
                }
            }
        }
    }
}

/// `whole.fraction` times ten to a power.
fn decimal(whole: &str, fraction: &str, exponent: i32) -> Quantity {
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    // The point's place in the digits; beyond either end there are zeros.
    let point = whole.len() as i64 + i64::from(exponent);
    let digit = |place: i64| {
        let index = usize::try_from(place).ok();
        index
            .and_then(|index| digits.get(index))
            .map_or(0, |digit| digit - b'0')
    };
    let mut value: i128 = 0;
    for place in 0..point.min(digits.len() as i64 + 60) {
        let next = value.saturating_mul(10);
        value = next.saturating_add(i128::from(digit(place)));
    }
    let mut nanos: u32 = 0;
    for place in point..point + 9 {
        nanos = nanos * 10 + u32::from(digit(place));
    }
    let rest = (point + 9).max(0)..digits.len() as i64;
    let more = rest.into_iter().any(|place| digit(place) != 0);
    let up = Quantity {
        whole: 0,
        nanos: u32::from(more),
        fractional: false,
    };
    Quantity {
        whole: value,
        nanos,
        fractional: false,
    }
    .plus(up)
}

const QUANTITY: Type = Type::Library(LibraryType::Quantity);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Double, Int, String};
    let f = functions;
    f.global(
        "quantity",
        "string_to_quantity",
        [String],
        QUANTITY,
        quantity,
    );
    f.global(
        "isQuantity",
        "is_quantity_string",
        [String],
        Bool,
        is_quantity,
    );
    f.global("sign", "quantity_sign", [QUANTITY], Int, sign);
    let two = || [QUANTITY, QUANTITY];
    f.member(
        "isGreaterThan",
        "quantity_is_greater_than",
        two(),
        Bool,
        |_, args| compared("isGreaterThan", args, |order| Value::Bool(order.is_gt())),
    );
    f.member(
        "isLessThan",
        "quantity_is_less_than",
        two(),
        Bool,
        |_, args| compared("isLessThan", args, |order| Value::Bool(order.is_lt())),
    );
    f.member("compareTo", "quantity_compare_to", two(), Int, |_, args| {
        compared("compareTo", args, |order| Value::Int(order as i64))
    });
    f.member(
        "asApproximateFloat",
        "quantity_get_float",
        [QUANTITY],
        Double,
        approximate,
    );
    f.member("asInteger", "quantity_get_int", [QUANTITY], Int, as_integer);
    f.member(
        "isInteger",
        "quantity_is_integer",
        [QUANTITY],
        Bool,
        is_integer,
    );
    let sums: [(&'static str, &'static str, &'static str, Call); 2] = [
        ("add", "quantity_add", "quantity_add_int", |_, args| {
            combined("add", args, Quantity::plus)
        }),
        ("sub", "quantity_sub", "quantity_sub_int", |_, args| {
            combined("sub", args, Quantity::minus)
        }),
    ];
    for (name, id, with_int, call) in sums {
        f.member(name, id, two(), QUANTITY, call);
        f.member(name, with_int, [QUANTITY, Int], QUANTITY, call);
    }
}

fn the_quantity(value: &Value<'_>) -> Option<Quantity> {
    match value {
        Value::Library(value) => match &**value {
            LibraryValue::Quantity(quantity) => Some(*quantity),
            _ => None,
        },
        _ => None,
    }
}

fn target(name: &str, args: &[Value<'_>]) -> Result<Quantity, EvalError> {
    let first = args.first().and_then(the_quantity);
    first.ok_or_else(|| EvalError::no_overload_for(name, args))
}

fn quantity<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("quantity", args));
    };
    let parsed = Quantity::parse(text).map_err(EvalError::new)?;
    Ok(Value::library(LibraryValue::Quantity(parsed)))
}

fn is_quantity<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(Quantity::parse(text).is_ok())),
        _ => Err(EvalError::no_overload_for("isQuantity", args)),
    }
}

fn sign<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let quantity = target("sign", args)?;
    Ok(Value::Int(match quantity {
        zero if zero.is_zero() => 0,
        negative if negative.whole < 0 => -1,
        _ => 1,
    }))
}

fn compared<'a>(name: &str, args: &[Value<'a>], wrap: fn(Ordering) -> Value<'a>) -> Evaluated<'a> {
    let one = target(name, args)?;
    let two = args.get(1).and_then(the_quantity);
    let two = two.ok_or_else(|| EvalError::no_overload_for(name, args))?;
    Ok(wrap(one.compare(&two)))
}

fn combined<'a>(
    name: &str,
    args: &[Value<'a>],
    combine: fn(Quantity, Quantity) -> Quantity,
) -> Evaluated<'a> {
    let one = target(name, args)?;
    let two = match args.get(1) {
        Some(Value::Int(number)) => Some(Quantity::from_whole(i128::from(*number))),
        Some(other) => the_quantity(other),
        None => None,
    };
    let two = two.ok_or_else(|| EvalError::no_overload_for(name, args))?;
    Ok(Value::library(LibraryValue::Quantity(combine(one, two))))
}

fn approximate<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Double(
        target("asApproximateFloat", args)?.approximate(),
    ))
}

fn as_integer<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let integer = target("asInteger", args)?.integer();
    let integer = integer.ok_or_else(|| EvalError::new("cannot convert value to integer"))?;
    Ok(Value::Int(integer))
}

fn is_integer<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(target("isInteger", args)?.integer().is_some()))
}
