//! Equality of values.

use serde_json::Value as Json;

use super::{EvalError, List, Map, Value, compare_numbers, identity};
use crate::cel::{program::Meter, schema::ListKind};

/// Values nested deeper than this are not compared: JSON may be deeper than what expressions make.
const MAX_DEPTH: usize = 400;

/// Whether two values are equal. Values of different types are not, numbers excepted; values of
/// Kubernetes' libraries can be compared with their own kind only.
pub(crate) fn equal(
    meter: &mut Meter<'_>,
    one: &Value<'_>,
    two: &Value<'_>,
) -> Result<bool, EvalError> {
    at_depth(meter, one, two, 0)
}

#[inline]
fn at_depth(
    meter: &mut Meter<'_>,
    one: &Value<'_>,
    two: &Value<'_>,
    depth: usize,
) -> Result<bool, EvalError> {
    if depth > MAX_DEPTH {
        return Err(EvalError::new("value is nested too deep"));
    }
    meter.work(2)?;
    if let (Value::Int(one), Value::Int(two)) = (one, two) {
        return Ok(one == two);
    }
    Ok(match (one, two) {
        (Value::Null, other) | (other, Value::Null) => {
            matches!((one, other), (Value::Null, Value::Null))
        }
        (Value::Bool(one), Value::Bool(two)) => one == two,
        (Value::String(one), Value::String(two)) => {
            meter.work(one.len().min(two.len()) as u64 / 32)?;
            **one == **two
        }
        (Value::Bytes(one), Value::Bytes(two)) => {
            meter.work(one.len().min(two.len()) as u64 / 32)?;
            **one == **two
        }
        (Value::Duration(one), Value::Duration(two)) => one == two,
        (Value::Timestamp(one), Value::Timestamp(two)) => one.total_nanos() == two.total_nanos(),
        (Value::List(one), Value::List(two)) => lists(meter, one, two, depth)?,
        (Value::Map(one), Value::Map(two)) => maps(meter, one, two, depth)?,
        (Value::Optional(one), Value::Optional(two)) => match (one, two) {
            (Some(one), Some(two)) => at_depth(meter, one, two, depth + 1)?,
            (None, None) => true,
            _ => false,
        },
        (Value::Type(one), Value::Type(two)) => one.name() == two.name(),
        (Value::Library(one), Value::Library(two)) => match one.equal(two) {
            Some(equal) => equal,
            None => return Err(EvalError::no_such_overload()),
        },
        (Value::Library(_), _) => return Err(EvalError::no_such_overload()),
        (Value::Object(one), Value::Object(two)) => {
            if one.ty != two.ty || one.fields.len() != two.fields.len() {
                return Ok(false);
            }
            for (name, value) in &one.fields {
                match two.field(name) {
                    Some(other) if at_depth(meter, value, other, depth + 1)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Variables, Value::Variables) => true,
        _ => compare_numbers(one, two).is_some_and(|order| order.is_eq()),
    })
}

fn lists(
    meter: &mut Meter<'_>,
    one: &List<'_>,
    two: &List<'_>,
    depth: usize,
) -> Result<bool, EvalError> {
    if one.len() != two.len() {
        return Ok(false);
    }
    meter.work(3)?; // elements are counted by shared counters
    if *one.kind() != ListKind::Atomic {
        return same_elements(meter, one, two, depth);
    }
    for (one, two) in one.iter().zip(two.iter()) {
        if !at_depth(meter, &one?, &two?, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Equality of sets, and of lists whose elements have keys: order does not matter.
fn same_elements(
    meter: &mut Meter<'_>,
    one: &List<'_>,
    two: &List<'_>,
    depth: usize,
) -> Result<bool, EvalError> {
    let mut left = two.iter().collect::<Result<Vec<_>, _>>()?;
    if let Some(places) = identity::places(one.kind(), &left)?
        && places.len() == left.len()
    {
        for element in one.iter() {
            let element = element?;
            match identity::place(one.kind(), &places, &element)? {
                Some(place) if at_depth(meter, &element, &left[place], depth + 1)? => {}
                _ => return Ok(false),
            }
        }
        return Ok(true);
    }
    for element in one.iter() {
        let element = element?;
        let mut found = None;
        for (index, other) in left.iter().enumerate() {
            if at_depth(meter, &element, other, depth + 1)? {
                found = Some(index);
                break;
            }
        }
        match found {
            Some(index) => left.swap_remove(index),
            None => return Ok(false),
        };
    }
    Ok(left.is_empty())
}

fn maps(
    meter: &mut Meter<'_>,
    one: &Map<'_>,
    two: &Map<'_>,
    depth: usize,
) -> Result<bool, EvalError> {
    if one.len() != two.len() {
        return Ok(false);
    }
    for key in one.keys() {
        meter.work(1)?;
        let key = key.to_value();
        match (one.get(&key), two.get(&key)) {
            (Some(one), Some(two)) => {
                if !at_depth(meter, &one?, &two?, depth + 1)? {
                    return Ok(false);
                }
            }
            (None, None) => {}
            _ => return Ok(false),
        }
    }
    // Fields that expressions do not see are compared as JSON.
    match (one, two) {
        (Map::Json(one, Some(_)), Map::Json(two, Some(_))) => {
            let mut same = true;
            for (key, value) in *one {
                same = same
                    && two
                        .get(key)
                        .is_none_or(|other| json_equal(meter, value, other));
            }
            meter.work(0)?;
            Ok(same)
        }
        _ => Ok(true),
    }
}

/// Compares JSON that no schema describes; scalars and the size of all else count as work.
fn json_equal(meter: &mut Meter<'_>, one: &Json, two: &Json) -> bool {
    meter.add_work(1 + json_size(one, 0));
    one == two
}

fn json_size(json: &Json, depth: usize) -> u64 {
    if depth > MAX_DEPTH {
        return 0;
    }
    match json {
        Json::Array(array) => {
            let sizes = array.iter().map(|one| 1 + json_size(one, depth + 1));
            sizes.sum()
        }
        Json::Object(object) => {
            let sizes = object.values().map(|one| 1 + json_size(one, depth + 1));
            sizes.sum()
        }
        Json::String(text) => text.len() as u64 / 32,
        _ => 0,
    }
}
