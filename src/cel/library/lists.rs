//! cel-go's list extensions, version 3.

use std::cmp::Ordering;

use super::{A, comparable, list};
use crate::cel::{
    ast::hidden,
    functions::Functions,
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, List, Value, compare},
};

/// Names of the overloads that sort.
const SORT: [&str; 8] = [
    "list_int_sort",
    "list_uint_sort",
    "list_double_sort",
    "list_bool_sort",
    "list_google.protobuf.Duration_sort",
    "list_google.protobuf.Timestamp_sort",
    "list_string_sort",
    "list_bytes_sort",
];
const SORT_BY: [&str; 8] = [
    "list_int_sortByAssociatedKeys",
    "list_uint_sortByAssociatedKeys",
    "list_double_sortByAssociatedKeys",
    "list_bool_sortByAssociatedKeys",
    "list_google.protobuf.Duration_sortByAssociatedKeys",
    "list_google.protobuf.Timestamp_sortByAssociatedKeys",
    "list_string_sortByAssociatedKeys",
    "list_bytes_sortByAssociatedKeys",
];

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Dyn, Int};
    let f = functions;
    f.member("slice", "list_slice", [list(A), Int, Int], list(A), slice);
    f.member("flatten", "list_flatten", [list(list(A))], list(A), flatten);
    f.member(
        "flatten",
        "list_flatten_int",
        [list(Dyn), Int],
        list(Dyn),
        flatten,
    );
    for (((ty, _), sort_id), by_id) in comparable().into_iter().zip(SORT).zip(SORT_BY) {
        f.member("sort", sort_id, [list(ty.clone())], list(ty.clone()), sort);
        f.member(
            hidden::SORT_BY_KEYS,
            by_id,
            [list(A), list(ty)],
            list(A),
            sort_by,
        );
    }
    f.global("lists.range", "lists_range", [Int], list(Int), range);
    f.member("reverse", "list_reverse", [list(A)], list(A), reverse);
    f.member("distinct", "list_distinct", [list(A)], list(A), distinct);
}

fn made<'a>(items: Vec<Value<'a>>) -> Evaluated<'a> {
    List::new(items).map(Value::List)
}

fn slice<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else {
        return Err(EvalError::no_overload_for("slice", args));
    };
    let refuse = |why: String| {
        Err(EvalError::new(format!(
            "cannot slice({start}, {end}), {why}"
        )))
    };
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return refuse("negative indexes not supported".to_owned());
    };
    if from > to {
        return refuse("start index must be less than or equal to end index".to_owned());
    }
    if list.len() < to {
        return refuse(format!("list is length {}", list.len()));
    }
    meter.work((to - from) as u64)?;
    made(
        list.iter()
            .skip(from)
            .take(to - from)
            .collect::<Result<_, _>>()?,
    )
}

fn flatten<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => {
            let names: Vec<String> = args.iter().map(Value::type_name).collect();
            let rest = names.get(1..).unwrap_or_default().join(", ");
            let target = names.first().cloned().unwrap_or_default();
            return Err(EvalError::new(format!(
                "no such overload: {target}.flatten({rest})"
            )));
        }
    };
    let depth = u32::try_from(depth).map_err(|_| EvalError::new("level must be non-negative"))?;
    let mut items = Vec::new();
    flatten_into(meter, &mut items, list, depth)?;
    made(items)
}

/// Recursion is no deeper than values are nested.
fn flatten_into<'a>(
    meter: &mut Meter<'a>,
    items: &mut Vec<Value<'a>>,
    list: &List<'a>,
    depth: u32,
) -> Result<(), EvalError> {
    for item in list.iter() {
        meter.work(1)?;
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(meter, items, &inner, depth - 1)?,
            other => items.push(other),
        }
    }
    Ok(())
}

fn sort<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::List(list)] => sorted(meter, list, list),
        _ => Err(EvalError::new("no such overload: sort")),
    }
}

fn sort_by<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::List(list), Value::List(keys)] => sorted(meter, list, keys),
        _ => Err(EvalError::new(format!(
            "no such overload: {}",
            hidden::SORT_BY_KEYS
        ))),
    }
}

/// The items in the order of their keys. Stable.
fn sorted<'a>(meter: &mut Meter<'a>, list: &List<'a>, keys: &List<'a>) -> Evaluated<'a> {
    if list.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys \
             list, but got {} and {} elements respectively",
            list.len(),
            keys.len()
        )));
    }
    meter.work(16 * list.len() as u64)?;
    let keys = keys.iter().collect::<Result<Vec<_>, _>>()?;
    if let Some(first) = keys.first() {
        if compare(first, first).is_err() && !matches!(first, Value::Double(_)) {
            return Err(EvalError::new("list elements must be comparable"));
        }
        let kind = first.type_value();
        if keys.iter().any(|key| key.type_value() != kind) {
            return Err(EvalError::new("list elements must have the same type"));
        }
    }
    let mut pairs: Vec<_> = keys.into_iter().zip(list.iter()).collect();
    pairs.sort_by(|one, two| compare(&one.0, &two.0).unwrap_or(Ordering::Equal));
    made(
        pairs
            .into_iter()
            .map(|(_, item)| item)
            .collect::<Result<_, _>>()?,
    )
}

fn range<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::Int(count)] = args else {
        return Err(EvalError::no_overload_for("lists.range", args));
    };
    // The cost is known only afterwards: what could not be paid is not made.
    meter.work(u64::try_from(*count).unwrap_or(0))?;
    made((0..*count).map(Value::Int).collect())
}

fn reverse<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_overload_for("reverse", args));
    };
    meter.work(list.len() as u64)?;
    let mut items = list.iter().collect::<Result<Vec<_>, _>>()?;
    items.reverse();
    made(items)
}

fn distinct<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_overload_for("distinct", args));
    };
    let mut unique = List::new(Vec::new())?;
    for item in list.iter() {
        let item = item?;
        if !super::operators::contains(meter, &unique, &item)? {
            unique = unique.push(item)?;
        }
    }
    Ok(Value::List(unique))
}
