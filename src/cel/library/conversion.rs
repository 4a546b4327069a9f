//! Conversions between types: `int(x)`, `string(x)`, `type(x)`...

use super::A;
use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{
        Blob, EvalError, Evaluated, LibraryValue, Timestamp, Value, double_text, double_to_int,
        double_to_uint, parse_duration, seconds_text,
    },
};

/// A function of one parameter: its name, what it gives, what is called, and its overloads.
type Conversion<'a> = (&'static str, Type, Call, &'a [(&'static str, Type)]);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Bytes, Double, Duration, Int, String, Timestamp, Uint};
    let rows: [Conversion<'_>; 8] = [
        (
            "bool",
            Bool,
            to_bool,
            &[("bool_to_bool", Bool), ("string_to_bool", String)],
        ),
        (
            "bytes",
            Bytes,
            to_bytes,
            &[("bytes_to_bytes", Bytes), ("string_to_bytes", String)],
        ),
        (
            "double",
            Double,
            to_double,
            &[
                ("double_to_double", Double),
                ("int64_to_double", Int),
                ("string_to_double", String),
                ("uint64_to_double", Uint),
            ],
        ),
        (
            "duration",
            Duration,
            to_duration,
            &[
                ("duration_to_duration", Duration),
                ("string_to_duration", String),
            ],
        ),
        (
            "int",
            Int,
            to_int,
            &[
                ("int64_to_int64", Int),
                ("double_to_int64", Double),
                ("duration_to_int64", Duration),
                ("string_to_int64", String),
                ("timestamp_to_int64", Timestamp),
                ("uint64_to_int64", Uint),
            ],
        ),
        (
            "string",
            String,
            to_string,
            &[
                ("string_to_string", String),
                ("bool_to_string", Bool),
                ("bytes_to_string", Bytes),
                ("double_to_string", Double),
                ("duration_to_string", Duration),
                ("int64_to_string", Int),
                ("timestamp_to_string", Timestamp),
                ("uint64_to_string", Uint),
                ("ip_to_string", Type::Library(LibraryType::Ip)),
                ("cidr_to_string", Type::Library(LibraryType::Cidr)),
            ],
        ),
        (
            "timestamp",
            Timestamp,
            to_timestamp,
            &[
                ("timestamp_to_timestamp", Timestamp),
                ("int64_to_timestamp", Int),
                ("string_to_timestamp", String),
            ],
        ),
        (
            "uint",
            Uint,
            to_uint,
            &[
                ("uint64_to_uint64", Uint),
                ("double_to_uint64", Double),
                ("int64_to_uint64", Int),
                ("string_to_uint64", String),
            ],
        ),
    ];
    for (name, result, call, overloads) in rows {
        for (id, parameter) in overloads {
            functions.global(name, id, [parameter.clone()], result.clone(), call);
        }
    }
    functions.global("type", "type", [A], Type::type_of(A), type_of);
    functions.global("dyn", "to_dyn", [A], Type::Dyn, identity);
}

/// Conversions, whose calls with constants are made before a program runs.
pub(crate) fn is_conversion(function: &str) -> bool {
    matches!(
        function,
        "bool"
            | "bytes"
            | "double"
            | "duration"
            | "dyn"
            | "int"
            | "string"
            | "timestamp"
            | "type"
            | "uint"
    )
}

fn conversion<'a>(value: &Value<'a>, to: &Type) -> EvalError {
    let message = format!(
        "type conversion error from '{}' to '{}'",
        value.type_name(),
        to.name()
    );
    EvalError::new(message)
}

fn one<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v Value<'a>, EvalError> {
    args.first().ok_or_else(EvalError::no_such_overload)
}

fn identity<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    one(args).cloned()
}

fn type_of<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Type(one(args)?.type_value()))
}

fn to_bool<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match one(args)? {
        Value::Bool(value) => Ok(Value::Bool(*value)),
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(conversion(&args[0], &Type::Bool)),
        },
        _ => Err(EvalError::no_overload_for("bool", args)),
    }
}

fn to_bytes<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match one(args)? {
        bytes @ Value::Bytes(_) => Ok(bytes.clone()),
        Value::String(text) => {
            meter.work(text.len() as u64 / 32)?;
            Ok(Value::Bytes(Blob::Shared(text.as_bytes().into())))
        }
        _ => Err(EvalError::no_overload_for("bytes", args)),
    }
}

fn to_double<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Double(match one(args)? {
        Value::Double(value) => *value,
        Value::Int(value) => *value as f64,
        Value::Uint(value) => *value as f64,
        Value::String(text) => {
            parse_double(text).ok_or_else(|| conversion(&args[0], &Type::Double))?
        }
        _ => return Err(EvalError::no_overload_for("double", args)),
    }))
}

/// What Go's ParseFloat reads; what is too large is an error.
fn parse_double(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    let unsigned = text.trim_start_matches(['+', '-']);
    let named = unsigned.starts_with(['i', 'I', 'n', 'N']);
    (value.is_finite() || named).then_some(value)
}

fn to_duration<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match one(args)? {
        Value::Duration(nanos) => Ok(Value::Duration(*nanos)),
        Value::String(text) => parse_duration(text)
            .map(Value::Duration)
            .ok_or_else(|| conversion(&args[0], &Type::Duration)),
        _ => Err(EvalError::no_overload_for("duration", args)),
    }
}

fn to_int<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let overflow = || EvalError::new("integer overflow");
    Ok(Value::Int(match one(args)? {
        Value::Int(value) => *value,
        Value::Double(value) => double_to_int(*value).ok_or_else(overflow)?,
        Value::Uint(value) => i64::try_from(*value).map_err(|_| overflow())?,
        Value::Duration(nanos) => *nanos,
        Value::Timestamp(time) => time.seconds(),
        Value::String(text) => text.parse().map_err(|_| conversion(&args[0], &Type::Int))?,
        _ => return Err(EvalError::no_overload_for("int", args)),
    }))
}

fn to_uint<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let overflow = || EvalError::new("unsigned integer overflow");
    Ok(Value::Uint(match one(args)? {
        Value::Uint(value) => *value,
        Value::Double(value) => double_to_uint(*value).ok_or_else(overflow)?,
        Value::Int(value) => u64::try_from(*value).map_err(|_| overflow())?,
        Value::String(text) if !text.starts_with('+') => text
            .parse()
            .map_err(|_| conversion(&args[0], &Type::Uint))?,
        Value::String(_) => return Err(conversion(&args[0], &Type::Uint)),
        _ => return Err(EvalError::no_overload_for("uint", args)),
    }))
}

fn to_string<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::text(match one(args)? {
        text @ Value::String(_) => return Ok(text.clone()),
        Value::Bytes(bytes) => {
            meter.work(bytes.len() as u64 / 32)?;
            std::str::from_utf8(bytes)
                .map_err(|_| EvalError::new("invalid UTF-8 in bytes, cannot convert to string"))?
                .to_owned()
        }
        Value::Library(value) => match &**value {
            LibraryValue::Ip(ip) => ip.to_string(),
            LibraryValue::Cidr(cidr) => cidr.to_string(),
            _ => return Err(EvalError::no_overload_for("string", args)),
        },
        other => scalar_text(other).ok_or_else(|| EvalError::no_overload_for("string", args))?,
    }))
}

/// Scalars that are no strings, as strings.
pub(super) fn scalar_text(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => double_text(*value),
        Value::Duration(nanos) => seconds_text(*nanos),
        Value::Timestamp(time) => time.to_string(),
        _ => return None,
    })
}

fn to_timestamp<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let overflow = || EvalError::new("timestamp overflow");
    let time = match one(args)? {
        Value::Timestamp(time) => *time,
        Value::Int(seconds) => Timestamp::new(*seconds, 0).ok_or_else(overflow)?,
        Value::String(text) => Timestamp::parse(text)
            .map_err(|()| conversion(&args[0], &Type::Timestamp))?
            .ok_or_else(overflow)?,
        _ => return Err(EvalError::no_overload_for("timestamp", args)),
    };
    Ok(Value::Timestamp(time))
}
