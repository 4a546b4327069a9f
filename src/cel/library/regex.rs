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
    let pattern = meter.pattern(pattern, text.len()).map_err(illegal)?;
    let found = pattern.find(text).map_or("", |found| found.as_str());
    Ok(Value::text(found))
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
    let pattern = meter.pattern(pattern, text.len()).map_err(illegal)?;
    let mut found = Vec::new();
    for one in pattern.find_iter(text).take(most.unwrap_or(usize::MAX)) {
        meter.work(2)?;
        found.push(one.as_str().to_owned());
    }
    Value::strings(found)
}
