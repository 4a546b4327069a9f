//! Optional values. `or` and `orValue` are evaluated by the evaluator: their argument may not be
//! needed.

use super::{A, B, list};
use crate::cel::{
    ast::operator,
    functions::Functions,
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, List, Value, is_zero},
};

pub(super) fn declare(functions: &mut Functions) {
    let f = functions;
    let optional = || Type::optional(A);
    f.global("optional.of", "optional_of", [A], optional(), of);
    f.global(
        "optional.ofNonZeroValue",
        "optional_ofNonZeroValue",
        [A],
        optional(),
        of_non_zero,
    );
    f.global("optional.none", "optional_none", [], optional(), none);
    f.member("value", "optional_value", [optional()], A, value);
    f.member(
        "hasValue",
        "optional_hasValue",
        [optional()],
        Type::Bool,
        has_value,
    );
    f.member(
        "or",
        "optional_or_optional",
        [optional(), optional()],
        optional(),
        lazy,
    );
    f.member(
        "orValue",
        "optional_orValue_value",
        [optional(), A],
        A,
        lazy,
    );
    f.member("first", "list_first", [list(A)], optional(), first);
    f.member("last", "list_last", [list(A)], optional(), last);
    f.global(
        "optional.unwrap",
        "optional_unwrap",
        [list(optional())],
        list(A),
        unwrap,
    );
    f.member(
        "unwrapOpt",
        "optional_unwrapOpt",
        [list(optional())],
        list(A),
        unwrap,
    );
    // The checker finds the type of the field itself.
    let select = operator::OPTIONAL_SELECT;
    f.global(
        select,
        "select_optional_field",
        [Type::Dyn, Type::String],
        Type::optional(B),
        lazy,
    );
}

/// Stands for what the evaluator does itself.
fn lazy<'a>(_: &mut Meter<'a>, _: &[Value<'a>]) -> Evaluated<'a> {
    Err(EvalError::no_such_overload())
}

fn of<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [value] => {
            crate::cel::value::check_depth(value.depth().saturating_add(1))?;
            Ok(Value::some(value.clone()))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn of_non_zero<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [value] if is_zero(value) => Ok(Value::Optional(None)),
        _ => of(meter, args),
    }
}

fn none<'a>(_: &mut Meter<'a>, _: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Optional(None))
}

fn value<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Optional(Some(value))] => Ok((**value).clone()),
        [Value::Optional(None)] => Err(EvalError::new("optional.none() dereference")),
        _ => Err(EvalError::no_overload_for("value", args)),
    }
}

fn has_value<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => Err(EvalError::no_overload_for("hasValue", args)),
    }
}

fn element<'a>(args: &[Value<'a>], name: &str, index: fn(usize) -> usize) -> Evaluated<'a> {
    match args {
        [Value::List(list)] => match list.get(index(list.len())) {
            Some(item) => Ok(Value::some(item?)),
            None => Ok(Value::Optional(None)),
        },
        _ => Err(EvalError::no_overload_for(name, args)),
    }
}

fn first<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    element(args, "first", |_| 0)
}

fn last<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    element(args, "last", |length| length.wrapping_sub(1))
}

fn unwrap<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_overload_for("optional.unwrap", args));
    };
    let mut items = Vec::new();
    for item in list.iter() {
        meter.work(1)?;
        match item? {
            Value::Optional(Some(value)) => items.push((*value).clone()),
            Value::Optional(None) => {}
            other => {
                let shown = super::string_format::shown(&other);
                return Err(EvalError::new(format!("value {shown} is not optional")));
            }
        }
    }
    List::new(items).map(Value::List)
}
