//! Kubernetes' regex library: `find` and `findAll`.

use super::list;
use crate::cel::{
    functions::Functions,
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, Value},
};

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Int, String};
    functions.member("find", "string_find_string", [String, String], String, find);
    let all = "findAll";
    functions.member(
        all,
        "string_find_all_string",
        [String, String],
        list(String),
        find_all,
    );
    functions.member(
        all,
        "string_find_all_string_int",
        [String, String, Int],
        list(String),
        find_all,
    );
}

fn illegal(error: EvalError) -> EvalError {
    match error {
        EvalError::Failed(why) => EvalError::new(format!("Illegal regex: {why}")),
        other => other,
    }
}

fn find<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text), Value::String(pattern)] = args else {
        return Err(EvalError::no_overload_for("find", args));
    };
    let pattern = meter.pattern(pattern).map_err(illegal)?;
    let found = pattern.find(meter, text, 0)?.unwrap_or_default();
    Ok(Value::text(&text[found]))
}

fn find_all<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, pattern, most) = match args {
        [Value::String(text), Value::String(pattern)] => (text, pattern, None),
        [
            Value::String(text),
            Value::String(pattern),
            Value::Int(most),
        ] => {
            // Less than nothing means all.
            (text, pattern, usize::try_from(*most).ok())
        }
        _ => return Err(EvalError::no_overload_for("findAll", args)),
    };
    let pattern = meter.pattern(pattern).map_err(illegal)?;
    let most = most.unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let (mut from, mut last_end) = (0, None);
    while found.len() < most && from <= text.len() {
        meter.work(4)?;
        let Some(place) = pattern.find(meter, text, from)? else {
            break;
        };
        // Nothing is not found where something ended.
        if !(place.is_empty() && last_end == Some(place.end)) {
            found.push(text[place.clone()].to_owned());
            last_end = Some(place.end);
        }
        from = match text[place.end..].chars().next() {
            Some(next) if place.is_empty() => place.end + next.len_utf8(),
            None if place.is_empty() => break,
            _ => place.end,
        };
    }
    Value::strings(found)
}
