//! Functions of the language itself: sizes, strings, and what macros call.

use super::{A, B, list, map};
use crate::cel::{
    ast::hidden,
    functions::{Call, Functions},
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, Key, Value},
};

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Bytes, Int, String};
    let sizes: [(&'static str, &'static str, Type); 4] = [
        ("size_bytes", "bytes_size", Bytes),
        ("size_list", "list_size", list(A)),
        ("size_map", "map_size", map(A, B)),
        ("size_string", "string_size", String),
    ];
    for (global, member, parameter) in sizes {
        functions.global("size", global, [parameter.clone()], Int, size);
        functions.member("size", member, [parameter], Int, size);
    }
    let strings: [(&'static str, &'static str, Call); 4] = [
        ("contains", "contains_string", contains),
        ("endsWith", "ends_with_string", ends_with),
        ("startsWith", "starts_with_string", starts_with),
        ("matches", "matches_string", matches),
    ];
    for (name, id, call) in strings {
        functions.member(name, id, [String, String], Bool, call);
    }
    functions.global("matches", "matches", [String, String], Bool, matches);
    let of_map = || map(A, B);
    let insert = hidden::MAP_INSERT;
    functions.global(
        insert,
        "cel_@mapInsert_map_key_value",
        [of_map(), A, B],
        of_map(),
        insert_entry,
    );
    functions.global(
        insert,
        "cel_@mapInsert_map_map",
        [of_map(), of_map()],
        of_map(),
        insert_entry,
    );
}

fn size<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            if let Value::String(text) = value {
                meter.work(text.len() as u64 / 32)?;
            }
            Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX)))
        }
        _ => Err(EvalError::new("no such overload: size")),
    }
}

fn texts<'v>(args: &'v [Value<'_>]) -> Result<(&'v str, &'v str), EvalError> {
    match args {
        [Value::String(one), Value::String(two)] => Ok((one, two)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn contains<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part) = texts(args)?;
    meter.work(text.len() as u64 / 8)?;
    Ok(Value::Bool(text.contains(part)))
}

fn ends_with<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part) = texts(args)?;
    Ok(Value::Bool(text.ends_with(part)))
}

fn starts_with<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part) = texts(args)?;
    Ok(Value::Bool(text.starts_with(part)))
}

fn matches<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let Some(Value::String(_)) = args.first() else {
        return Err(EvalError::new("no such overload: matches"));
    };
    let (text, pattern) = texts(args)?;
    let pattern = meter.pattern(pattern)?;
    pattern.is_match(meter, text).map(Value::Bool)
}

/// Adds an entry, or all entries of a map, to a map that has none of these keys.
///
/// Here the first map is shared with the caller and copied; the evaluator adds to a loop's
/// accumulator in place.
fn insert_entry<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Map(map), key, value] => {
            meter.work(map.len() as u64)?;
            map.clone()
                .insert(entry_key(key)?, value.clone())
                .map(Value::Map)
        }
        [Value::Map(map), Value::Map(more)] => {
            meter.work((map.len() + more.len()) as u64)?;
            let mut map = map.clone();
            for (key, value) in more.entries()? {
                map = map.insert(key, value)?;
            }
            Ok(Value::Map(map))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

/// The key that a value is in a map that is made.
pub(crate) fn entry_key<'a>(value: &Value<'a>) -> Result<Key<'a>, EvalError> {
    Key::of(value)
        .ok_or_else(|| EvalError::new(format!("unsupported key type: {}", value.type_name())))
}
