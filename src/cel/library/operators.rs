//! Operators as functions. `&&`, `||`, `?:`, `==`, `!=` and indexing are evaluated by the evaluator
//! itself; they are declared here for the checker.

use std::cmp::Ordering;

use super::{A, B, list, map};
use crate::cel::{
    ast::operator,
    functions::{Call, Functions},
    program::Meter,
    schema::ListKind,
    types::Type,
    value::{Blob, EvalError, Evaluated, List, Text, Value, compare, equal, identity},
};

pub(super) fn declare(functions: &mut Functions) {
    logic(functions);
    arithmetic(functions);
    relations(functions);
    access(functions);
}

fn logic(functions: &mut Functions) {
    use Type::Bool;
    let bools = [Bool, Bool];
    functions.global(
        operator::CONDITIONAL,
        "conditional",
        [Bool, A, A],
        A,
        evaluator,
    );
    functions.global(operator::AND, "logical_and", bools.clone(), Bool, evaluator);
    functions.global(operator::OR, "logical_or", bools, Bool, evaluator);
    functions.global(operator::NOT, "logical_not", [Bool], Bool, not);
    let strictly = operator::NOT_STRICTLY_FALSE;
    functions.global(strictly, "not_strictly_false", [Bool], Bool, evaluator);
    functions.global(operator::EQUALS, "equals", [A, A], Bool, evaluator);
    functions.global(operator::NOT_EQUALS, "not_equals", [A, A], Bool, evaluator);
}

/// Stands for what the evaluator does itself.
fn evaluator<'a>(_: &mut Meter<'a>, _: &[Value<'a>]) -> Evaluated<'a> {
    Err(EvalError::no_such_overload())
}

/// An overload of an operator: its identifier, what it takes and what it gives.
type Overload = (&'static str, [Type; 2], Type);

fn arithmetic(functions: &mut Functions) {
    use Type::{Bytes, Double, Duration, Int, String, Timestamp, Uint};
    let add: [(&str, [Type; 2], Type); 9] = [
        ("add_bytes", [Bytes, Bytes], Bytes),
        ("add_double", [Double, Double], Double),
        ("add_duration_duration", [Duration, Duration], Duration),
        ("add_duration_timestamp", [Duration, Timestamp], Timestamp),
        ("add_timestamp_duration", [Timestamp, Duration], Timestamp),
        ("add_int64", [Int, Int], Int),
        ("add_list", [list(A), list(A)], list(A)),
        ("add_string", [String, String], String),
        ("add_uint64", [Uint, Uint], Uint),
    ];
    let subtract = [
        ("subtract_double", [Double, Double], Double),
        ("subtract_duration_duration", [Duration, Duration], Duration),
        ("subtract_int64", [Int, Int], Int),
        (
            "subtract_timestamp_duration",
            [Timestamp, Duration],
            Timestamp,
        ),
        (
            "subtract_timestamp_timestamp",
            [Timestamp, Timestamp],
            Duration,
        ),
        ("subtract_uint64", [Uint, Uint], Uint),
    ];
    let multiply = [
        ("multiply_double", [Double, Double], Double),
        ("multiply_int64", [Int, Int], Int),
        ("multiply_uint64", [Uint, Uint], Uint),
    ];
    let divide = [
        ("divide_double", [Double, Double], Double),
        ("divide_int64", [Int, Int], Int),
        ("divide_uint64", [Uint, Uint], Uint),
    ];
    let modulo = [
        ("modulo_int64", [Int, Int], Int),
        ("modulo_uint64", [Uint, Uint], Uint),
    ];
    let groups: [(&'static str, Vec<Overload>, Call); 5] = [
        (operator::ADD, add.into(), self::add),
        (operator::SUBTRACT, subtract.into(), self::subtract),
        (operator::MULTIPLY, multiply.into(), self::multiply),
        (operator::DIVIDE, divide.into(), self::divide),
        (operator::MODULO, modulo.into(), self::modulo),
    ];
    for (name, overloads, call) in groups {
        for (id, parameters, result) in overloads {
            functions.global(name, id, parameters, result, call);
        }
    }
    functions.global(operator::NEGATE, "negate_double", [Double], Double, negate);
    functions.global(operator::NEGATE, "negate_int64", [Int], Int, negate);
}

/// Names of the overloads of a relation.
macro_rules! ids {
    ($relation:literal) => {
        [
            concat!($relation, "_bool"),
            concat!($relation, "_int64"),
            concat!($relation, "_int64_double"),
            concat!($relation, "_int64_uint64"),
            concat!($relation, "_uint64"),
            concat!($relation, "_uint64_double"),
            concat!($relation, "_uint64_int64"),
            concat!($relation, "_double"),
            concat!($relation, "_double_int64"),
            concat!($relation, "_double_uint64"),
            concat!($relation, "_string"),
            concat!($relation, "_bytes"),
            concat!($relation, "_timestamp"),
            concat!($relation, "_duration"),
        ]
    };
}

fn relations(functions: &mut Functions) {
    let rows: [(&str, [&str; 14], Call); 4] = [
        (operator::LESS, ids!("less"), less),
        (operator::LESS_EQUALS, ids!("less_equals"), less_equals),
        (operator::GREATER, ids!("greater"), greater),
        (
            operator::GREATER_EQUALS,
            ids!("greater_equals"),
            greater_equals,
        ),
    ];
    for (name, ids, call) in rows {
        for (id, parameters) in ids.into_iter().zip(pairs()) {
            functions.global(name, id, parameters, Type::Bool, call);
        }
    }
}

/// Types that can be compared, in the order of [`ids!`].
fn pairs() -> [[Type; 2]; 14] {
    use Type::{Bool, Bytes, Double, Duration, Int, String, Timestamp, Uint};
    [
        [Bool, Bool],
        [Int, Int],
        [Int, Double],
        [Int, Uint],
        [Uint, Uint],
        [Uint, Double],
        [Uint, Int],
        [Double, Double],
        [Double, Int],
        [Double, Uint],
        [String, String],
        [Bytes, Bytes],
        [Timestamp, Timestamp],
        [Duration, Duration],
    ]
}

fn access(functions: &mut Functions) {
    let optional = Type::optional;
    let of_map = || map(A, B);
    let index: [(&str, [Type; 2], Type); 4] = [
        ("index_list", [list(A), Type::Int], A),
        ("index_map", [of_map(), A], B),
        (
            "optional_list_index_int",
            [optional(list(A)), Type::Int],
            optional(A),
        ),
        (
            "optional_map_index_value",
            [optional(of_map()), A],
            optional(B),
        ),
    ];
    for (id, parameters, result) in index {
        functions.global(operator::INDEX, id, parameters, result, evaluator);
    }
    let optional_index: [(&str, [Type; 2], Type); 4] = [
        (
            "list_optindex_optional_int",
            [list(A), Type::Int],
            optional(A),
        ),
        (
            "optional_list_optindex_optional_int",
            [optional(list(A)), Type::Int],
            optional(A),
        ),
        ("map_optindex_optional_value", [of_map(), A], optional(B)),
        (
            "optional_map_optindex_optional_value",
            [optional(of_map()), A],
            optional(B),
        ),
    ];
    for (id, parameters, result) in optional_index {
        functions.global(operator::OPTIONAL_INDEX, id, parameters, result, evaluator);
    }
    functions.global(operator::IN, "in_list", [A, list(A)], Type::Bool, contained);
    functions.global(operator::IN, "in_map", [A, of_map()], Type::Bool, contained);
}

fn not<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Bool(value)] => Ok(Value::Bool(!value)),
        _ => Err(EvalError::no_such_overload()),
    }
}

const INT_OVERFLOW: &str = "integer overflow";
const UINT_OVERFLOW: &str = "unsigned integer overflow";
const DURATION_OVERFLOW: &str = "duration overflow";
const TIMESTAMP_OVERFLOW: &str = "timestamp overflow";

fn checked<'a, T>(
    result: Option<T>,
    wrap: fn(T) -> Value<'a>,
    overflow: &'static str,
) -> Evaluated<'a> {
    result.map(wrap).ok_or_else(|| EvalError::new(overflow))
}

fn add<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Int(one), Value::Int(two)] => {
            checked(one.checked_add(*two), Value::Int, INT_OVERFLOW)
        }
        [Value::Uint(one), Value::Uint(two)] => {
            checked(one.checked_add(*two), Value::Uint, UINT_OVERFLOW)
        }
        [Value::Double(one), Value::Double(two)] => Ok(Value::Double(one + two)),
        [Value::String(one), Value::String(two)] => {
            meter.work((one.len() + two.len()) as u64 / 32)?;
            Ok(Value::String(Text::Shared(
                [&**one, &**two].concat().into(),
            )))
        }
        [Value::Bytes(one), Value::Bytes(two)] => {
            meter.work((one.len() + two.len()) as u64 / 32)?;
            Ok(Value::Bytes(Blob::Shared([&**one, &**two].concat().into())))
        }
        [Value::List(one), Value::List(two)] => add_lists(meter, one, two),
        [Value::Duration(one), Value::Duration(two)] => {
            checked(one.checked_add(*two), Value::Duration, DURATION_OVERFLOW)
        }
        [Value::Timestamp(time), Value::Duration(nanos)]
        | [Value::Duration(nanos), Value::Timestamp(time)] => {
            let sum = time.plus(i128::from(*nanos));
            checked(sum, Value::Timestamp, TIMESTAMP_OVERFLOW)
        }
        _ => Err(mismatch(operator::ADD, args)),
    }
}

/// Joins lists; sets and lists with keys are merged.
fn add_lists<'a>(meter: &mut Meter<'a>, one: &List<'a>, two: &List<'a>) -> Evaluated<'a> {
    meter.work(3 * (one.len() + two.len()) as u64)?; // new memory costs more than a step
    let mut items = one.iter().collect::<Result<Vec<_>, _>>()?;
    let kind = one.kind();
    if *kind == ListKind::Atomic {
        for item in two.iter() {
            items.push(item?);
        }
        return List::new(items).map(Value::List);
    }
    let places = identity::places(kind, &items)?;
    for item in two.iter() {
        let item = item?;
        let place = match &places {
            Some(places) => identity::place(kind, places, &item)?,
            None => find(meter, &items, &item)?,
        };
        match place {
            Some(place) => items[place] = item,
            None => items.push(item),
        }
    }
    List::of_kind(kind, items).map(Value::List)
}

fn find<'a>(
    meter: &mut Meter<'a>,
    items: &[Value<'a>],
    wanted: &Value<'a>,
) -> Result<Option<usize>, EvalError> {
    for (index, item) in items.iter().enumerate() {
        if equal(meter, item, wanted)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// What is no operand of an operator at all is reported with the operator's name.
fn mismatch(function: &str, args: &[Value<'_>]) -> EvalError {
    let numeric = matches!(
        args.first(),
        Some(Value::Int(_) | Value::Uint(_) | Value::Double(_))
    );
    let known = numeric
        || match (function, args.first()) {
            (operator::ADD, Some(first)) => matches!(
                first,
                Value::String(_)
                    | Value::Bytes(_)
                    | Value::List(_)
                    | Value::Duration(_)
                    | Value::Timestamp(_)
            ),
            (operator::SUBTRACT, Some(first)) => {
                matches!(first, Value::Duration(_) | Value::Timestamp(_))
            }
            _ => false,
        };
    if known {
        return EvalError::no_such_overload();
    }
    EvalError::new(format!("no such overload: {function}"))
}

fn subtract<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Int(one), Value::Int(two)] => {
            checked(one.checked_sub(*two), Value::Int, INT_OVERFLOW)
        }
        [Value::Uint(one), Value::Uint(two)] => {
            checked(one.checked_sub(*two), Value::Uint, UINT_OVERFLOW)
        }
        [Value::Double(one), Value::Double(two)] => Ok(Value::Double(one - two)),
        [Value::Duration(one), Value::Duration(two)] => {
            checked(one.checked_sub(*two), Value::Duration, DURATION_OVERFLOW)
        }
        [Value::Timestamp(one), Value::Timestamp(two)] => {
            let span = i64::try_from(one.total_nanos() - two.total_nanos());
            checked(span.ok(), Value::Duration, DURATION_OVERFLOW)
        }
        [Value::Timestamp(time), Value::Duration(nanos)] => {
            let difference = time.plus(-i128::from(*nanos));
            checked(difference, Value::Timestamp, TIMESTAMP_OVERFLOW)
        }
        _ => Err(mismatch(operator::SUBTRACT, args)),
    }
}

fn multiply<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Int(one), Value::Int(two)] => {
            checked(one.checked_mul(*two), Value::Int, INT_OVERFLOW)
        }
        [Value::Uint(one), Value::Uint(two)] => {
            checked(one.checked_mul(*two), Value::Uint, UINT_OVERFLOW)
        }
        [Value::Double(one), Value::Double(two)] => Ok(Value::Double(one * two)),
        _ => Err(mismatch(operator::MULTIPLY, args)),
    }
}

fn divide<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::new("division by zero"))
        }
        [Value::Int(one), Value::Int(two)] => {
            checked(one.checked_div(*two), Value::Int, INT_OVERFLOW)
        }
        [Value::Uint(one), Value::Uint(two)] => Ok(Value::Uint(one / two)),
        [Value::Double(one), Value::Double(two)] => Ok(Value::Double(one / two)),
        _ => Err(mismatch(operator::DIVIDE, args)),
    }
}

fn modulo<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::new("modulus by zero"))
        }
        [Value::Int(one), Value::Int(two)] => {
            checked(one.checked_rem(*two), Value::Int, INT_OVERFLOW)
        }
        [Value::Uint(one), Value::Uint(two)] => Ok(Value::Uint(one % two)),
        [Value::Double(_), _] => Err(EvalError::new("no such overload: _%_")),
        _ => Err(mismatch(operator::MODULO, args)),
    }
}

fn negate<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::Int(value)] => checked(value.checked_neg(), Value::Int, INT_OVERFLOW),
        [Value::Double(value)] => Ok(Value::Double(-value)),
        [Value::Duration(value)] => {
            checked(value.checked_neg(), Value::Duration, DURATION_OVERFLOW)
        }
        [Value::Bool(_)] => Err(EvalError::no_such_overload()),
        _ => Err(EvalError::new("no such overload: -_")),
    }
}

fn relation<'a>(args: &[Value<'a>], function: &str, holds: fn(Ordering) -> bool) -> Evaluated<'a> {
    let [one, two] = args else {
        return Err(EvalError::no_such_overload());
    };
    match one {
        Value::Null
        | Value::List(_)
        | Value::Map(_)
        | Value::Optional(_)
        | Value::Type(_)
        | Value::Library(_)
        | Value::Object(_)
        | Value::Variables => Err(EvalError::new(format!("no such overload: {function}"))),
        _ => Ok(Value::Bool(holds(compare(one, two)?))),
    }
}

fn less<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    relation(args, operator::LESS, Ordering::is_lt)
}

fn less_equals<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    relation(args, operator::LESS_EQUALS, Ordering::is_le)
}

fn greater<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    relation(args, operator::GREATER, Ordering::is_gt)
}

fn greater_equals<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    relation(args, operator::GREATER_EQUALS, Ordering::is_ge)
}

fn contained<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [value, Value::List(list)] => contains(meter, list, value).map(Value::Bool),
        [value, Value::Map(map)] => match map.get(value) {
            Some(Err(error)) => Err(error),
            found => Ok(Value::Bool(found.is_some())),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Whether a list has an element equal to `value`.
pub(super) fn contains<'a>(
    meter: &mut Meter<'a>,
    list: &List<'a>,
    value: &Value<'a>,
) -> Result<bool, EvalError> {
    for item in list.iter() {
        // Elements that cannot be compared are other ones.
        match equal(meter, &item?, value) {
            Ok(true) => return Ok(true),
            Err(error) if error.is_final() => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}
