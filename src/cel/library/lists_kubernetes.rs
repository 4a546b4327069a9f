//! Kubernetes' list library: `isSorted`, `sum`, `min`, `max`, `indexOf`, `lastIndexOf`, `includes`.

use std::cmp::Ordering;

use super::{A, comparable, list};
use crate::cel::{
    ast::operator,
    functions::{Call, Feature, Functions},
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, List, Value, compare, equal},
};

/// Names of overloads for the types of [`comparable`].
macro_rules! ids {
    ($prefix:literal, $suffix:literal) => {
        [
            concat!("list_int_", $prefix, "int", $suffix),
            concat!("list_uint_", $prefix, "uint", $suffix),
            concat!("list_double_", $prefix, "double", $suffix),
            concat!("list_bool_", $prefix, "bool", $suffix),
            concat!("list_duration_", $prefix, "duration", $suffix),
            concat!("list_timestamp_", $prefix, "timestamp", $suffix),
            concat!("list_string_", $prefix, "string", $suffix),
            concat!("list_bytes_", $prefix, "bytes", $suffix),
        ]
    };
}

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Dyn, Int};
    let f = functions;
    let sorted = ids!("is_sorted_bool_", "");
    let (least, greatest) = (ids!("min_", ""), ids!("max_", ""));
    for (index, (ty, _)) in comparable().into_iter().enumerate() {
        f.member(
            "isSorted",
            sorted[index],
            [list(ty.clone())],
            Bool,
            is_sorted,
        );
        f.member("min", least[index], [list(ty.clone())], ty.clone(), min);
        f.member("max", greatest[index], [list(ty.clone())], ty, max);
    }
    let sums: [(Type, &'static str, Call); 4] = [
        (Int, "list_int_sum_int", |meter, args| {
            sum(meter, args, Value::Int(0))
        }),
        (Type::Uint, "list_uint_sum_uint", |meter, args| {
            sum(meter, args, Value::Uint(0))
        }),
        (Type::Double, "list_double_sum_double", |meter, args| {
            sum(meter, args, Value::Double(0.0))
        }),
        (
            Type::Duration,
            "list_duration_sum_duration",
            |meter, args| sum(meter, args, Value::Duration(0)),
        ),
    ];
    for (ty, id, call) in sums {
        f.member("sum", id, [list(ty.clone())], ty, call);
    }
    f.member(
        "indexOf",
        "list_a_index_of_int",
        [list(A), A],
        Int,
        index_of,
    );
    f.member(
        "lastIndexOf",
        "list_a_last_index_of_int",
        [list(A), A],
        Int,
        last_index_of,
    );
    f.with(Feature::Stored);
    f.member(
        "includes",
        "list_includes_dyn_dyn",
        [Dyn, Dyn],
        Bool,
        includes,
    );
    f.with(Feature::Always);
}

fn the_list<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v List<'a>, EvalError> {
    match args.first() {
        Some(Value::List(list)) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn is_sorted<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let mut previous: Option<Value<'a>> = None;
    for item in the_list(args)?.iter() {
        meter.work(1)?;
        let item = item?;
        if let Some(previous) = &previous
            && compare(previous, &item)? == Ordering::Greater
        {
            return Ok(Value::Bool(false));
        }
        previous = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(meter: &mut Meter<'a>, args: &[Value<'a>], zero: Value<'a>) -> Evaluated<'a> {
    let add = crate::cel::functions::Functions::known()
        .get(operator::ADD)
        .and_then(|function| function.overloads.first())
        .ok_or_else(EvalError::no_such_overload)?
        .call;
    let mut total = zero;
    for item in the_list(args)?.iter() {
        meter.work(1)?;
        total = add(meter, &[total, item?])?;
    }
    Ok(total)
}

fn extreme<'a>(args: &[Value<'a>], name: &str, wanted: Ordering) -> Evaluated<'a> {
    let mut found: Option<Value<'a>> = None;
    for item in the_list(args)?.iter() {
        let item = item?;
        let better = match &found {
            Some(found) => compare(&item, found)? == wanted,
            None => true,
        };
        if better {
            found = Some(item);
        }
    }
    found.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

fn min<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    extreme(args, "min", Ordering::Less)
}

fn max<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    extreme(args, "max", Ordering::Greater)
}

/// The places of elements equal to the second argument, from one end.
fn place<'a>(
    meter: &mut Meter<'a>,
    args: &[Value<'a>],
    indices: impl Iterator<Item = usize>,
) -> Evaluated<'a> {
    let list = the_list(args)?;
    let wanted = args.get(1).ok_or_else(EvalError::no_such_overload)?;
    for index in indices {
        let Some(item) = list.get(index) else { break };
        match equal(meter, &item?, wanted) {
            Ok(true) => return Ok(Value::Int(i64::try_from(index).unwrap_or(i64::MAX))),
            Err(error) if error.is_final() => return Err(error),
            _ => {}
        }
    }
    Ok(Value::Int(-1))
}

fn index_of<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let length = the_list(args)?.len();
    place(meter, args, 0..length)
}

fn last_index_of<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let length = the_list(args)?.len();
    place(meter, args, (0..length).rev())
}

fn includes<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::List(list), wanted] => {
            super::operators::contains(meter, list, wanted).map(Value::Bool)
        }
        [one, wanted] => match equal(meter, one, wanted) {
            Err(error) if error.is_final() => Err(error),
            found => Ok(Value::Bool(found.unwrap_or(false))),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}
