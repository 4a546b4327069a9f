//! cel-go's sets: lists taken as sets.

use super::{A, list};
use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, List, Value},
};

pub(super) fn declare(functions: &mut Functions) {
    let rows: [(&'static str, &'static str, Call); 3] = [
        ("sets.contains", "list_sets_contains_list", contains),
        ("sets.equivalent", "list_sets_equivalent_list", equivalent),
        ("sets.intersects", "list_sets_intersects_list", intersects),
    ];
    for (name, id, call) in rows {
        functions.global(name, id, [list(A), list(A)], Type::Bool, call);
    }
}

fn lists<'v, 'a>(
    name: &str,
    args: &'v [Value<'a>],
) -> Result<(&'v List<'a>, &'v List<'a>), EvalError> {
    match args {
        [Value::List(one), Value::List(two)] => Ok((one, two)),
        _ => Err(EvalError::no_overload_for(name, args)),
    }
}

fn has_all<'a>(meter: &mut Meter<'a>, set: &List<'a>, part: &List<'a>) -> Result<bool, EvalError> {
    for item in part.iter() {
        if !super::operators::contains(meter, set, &item?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn contains<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (set, part) = lists("sets.contains", args)?;
    has_all(meter, set, part).map(Value::Bool)
}

fn equivalent<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (one, two) = lists("sets.equivalent", args)?;
    let both = has_all(meter, one, two)? && has_all(meter, two, one)?;
    Ok(Value::Bool(both))
}

fn intersects<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (one, two) = lists("sets.intersects", args)?;
    for item in one.iter() {
        if super::operators::contains(meter, two, &item?)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
