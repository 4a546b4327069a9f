//! Protobuf to JSON, as Go's encoder would write the object that the bytes stand for.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{
    Error, Field, Shape, Type, crd_schema,
    fill::{drop_empty, fill_object},
    normalize::{micro_time, time},
    weigh::{Budget, NODE, json_weight},
    wire::{MAX_DEPTH, Reader, Value},
};

pub fn decode(ty: &Type, bytes: &[u8]) -> Result<Json, Error> {
    Ok(Json::Object(message(ty, bytes, 0, &mut Budget::new())?))
}

pub(crate) fn message(
    ty: &Type,
    bytes: &[u8],
    depth: usize,
    budget: &mut Budget,
) -> Result<Map<String, Json>, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Wire("nested too deep"));
    }
    // Two nodes: what Go always prints is filled in below.
    budget.spend(2 * NODE)?;
    let mut object = Map::new();
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        let Some(field) = ty.fields.iter().find(|field| field.number == number) else {
            continue; // of a newer version
        };
        if field.inline {
            let inner = field
                .shape
                .message()
                .ok_or_else(|| bad(field, "an inlined scalar"))?;
            object.extend(message(inner, bytes_of(field, value)?, depth + 1, budget)?);
            continue;
        }
        put(&mut object, field, value, depth, budget)?;
    }
    drop_empty(ty, &mut object);
    fill_object(ty, &mut object);
    Ok(object)
}

fn put(
    object: &mut Map<String, Json>,
    field: &Field,
    value: Value<'_>,
    depth: usize,
    budget: &mut Budget,
) -> Result<(), Error> {
    match field.shape {
        Shape::List(element) => {
            let list = object.entry(field.name).or_insert_with(|| json!([]));
            if let Json::Array(list) = list {
                packed(field, element, value, depth, list, budget)?;
            }
        }
        Shape::Map(element) => {
            let (key, value) = entry(field, element, bytes_of(field, value)?, depth, budget)?;
            let map = object.entry(field.name).or_insert_with(|| json!({}));
            if let Json::Object(map) = map {
                map.insert(key, value);
            }
        }
        ref shape => {
            let value = scalar(field, shape, value, depth, budget)?;
            if is_zero(&value) && field.omit_empty && !field.pointer {
                object.remove(field.name);
            } else if !value.is_null() {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// Numbers of a list may come packed into one field.
fn packed(
    field: &Field,
    element: &Shape,
    value: Value<'_>,
    depth: usize,
    list: &mut Vec<Json>,
    budget: &mut Budget,
) -> Result<(), Error> {
    if let (Shape::Bool | Shape::Int32 | Shape::Int64, Value::Bytes(bytes)) = (element, value) {
        let mut prefixed = Vec::with_capacity(bytes.len() + 1);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| byte & 0x80 == 0) {
            prefixed.clear();
            prefixed.push(1 << 3);
            prefixed.extend(rest.get(..=end).unwrap_or_default());
            if let Some((_, value)) = Reader::new(&prefixed).next()? {
                list.push(scalar(field, element, value, depth, budget)?);
            }
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        return Ok(());
    }
    list.push(scalar(field, element, value, depth, budget)?);
    Ok(())
}

fn entry(
    field: &Field,
    element: &Shape,
    bytes: &[u8],
    depth: usize,
    budget: &mut Budget,
) -> Result<(String, Json), Error> {
    let (mut key, mut found) = (String::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        match number {
            1 => key = text(field, value)?,
            2 => found = Some(scalar(field, element, value, depth, budget)?),
            _ => {}
        }
    }
    let value = match found {
        Some(value) => value,
        None => scalar(field, element, Value::Bytes(&[]), depth, budget)?,
    };
    Ok((key, value))
}

fn scalar(
    field: &Field,
    shape: &Shape,
    value: Value<'_>,
    depth: usize,
    budget: &mut Budget,
) -> Result<Json, Error> {
    budget.spend_value(match value {
        // What lies deeper is counted there.
        Value::Bytes(_) if shape.is_message_on_the_wire() => 0,
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    })?;
    Ok(match shape {
        Shape::String | Shape::Enum(_) => json!(text(field, value)?),
        Shape::Bool => json!(number(field, value)? != 0),
        // Negative 32-bit numbers lie on the wire as 64 bits.
        Shape::Int32 => json!(number(field, value)? as i32),
        Shape::Int64 => json!(number(field, value)?),
        Shape::Double => match value {
            Value::Fixed64(bits) => json!(f64::from_bits(bits)),
            _ => return Err(bad(field, "not a double")),
        },
        Shape::Bytes => json!(BASE64_STANDARD.encode(bytes_of(field, value)?)),
        Shape::Time | Shape::MicroTime => {
            let (seconds, nanos) = timestamp(field, bytes_of(field, value)?)?;
            match (seconds, nanos) {
                // Go's zero time and a message without members both stand for "unset".
                (None, _) | (Some(-62_135_596_800), _) => Json::Null,
                (Some(seconds), nanos) if *shape == Shape::Time => json!(time(seconds, nanos)),
                (Some(seconds), nanos) => json!(micro_time(seconds, nanos)),
            }
        }
        Shape::Duration => {
            let nanos = one_number(bytes_of(field, value)?)?;
            json!(super::normalize::duration(nanos))
        }
        Shape::Quantity => match one_text(field, bytes_of(field, value)?)? {
            text if text.is_empty() => json!("0"),
            text => json!(text),
        },
        Shape::IntOrString => int_or_string(field, bytes_of(field, value)?)?,
        Shape::Raw | Shape::FieldsV1 | Shape::Any => {
            let raw = one_bytes(bytes_of(field, value)?)?;
            if raw.is_empty() {
                return Ok(Json::Null);
            }
            budget.spend(json_weight(raw))?;
            serde_json::from_slice(raw).map_err(|_| bad(field, "bytes that are not JSON"))?
        }
        Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => {
            crd_schema::decode(shape, bytes_of(field, value)?, depth, budget)?
        }
        Shape::NamedList(element) => {
            let mut list = Vec::new();
            let mut reader = Reader::new(bytes_of(field, value)?);
            while let Some((number, value)) = reader.next()? {
                if number == 1 {
                    list.push(scalar(field, element, value, depth + 1, budget)?);
                }
            }
            Json::Array(list)
        }
        Shape::Message(_) => {
            let inner = shape
                .message()
                .ok_or_else(|| bad(field, "an unknown type"))?;
            Json::Object(message(inner, bytes_of(field, value)?, depth + 1, budget)?)
        }
        Shape::List(_) | Shape::Map(_) => return Err(bad(field, "a list of lists")),
    })
}

fn int_or_string(field: &Field, bytes: &[u8]) -> Result<Json, Error> {
    let (mut kind, mut int, mut string) = (0, 0, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        match (number, value) {
            (1, Value::Varint(value)) => kind = value,
            (2, Value::Varint(value)) => int = value as i32,
            (3, value) => string = text(field, value)?,
            _ => {}
        }
    }
    Ok(if kind == 0 { json!(int) } else { json!(string) })
}

fn timestamp(field: &Field, bytes: &[u8]) -> Result<(Option<i64>, u32), Error> {
    let (mut seconds, mut nanos) = (None, 0);
    let mut reader = Reader::new(bytes);
    while let Some((tag, value)) = reader.next()? {
        match tag {
            1 => seconds = Some(number(field, value)?),
            2 => {
                nanos = u32::try_from(number(field, value)?)
                    .map_err(|_| bad(field, "negative nanoseconds"))?
            }
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

fn one_number(bytes: &[u8]) -> Result<i64, Error> {
    let mut found = 0;
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        if let (1, Value::Varint(value)) = (number, value) {
            found = value as i64;
        }
    }
    Ok(found)
}

fn one_bytes(bytes: &[u8]) -> Result<&[u8], Error> {
    let mut found: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        if let (1, Value::Bytes(value)) = (number, value) {
            found = value;
        }
    }
    Ok(found)
}

fn one_text(field: &Field, bytes: &[u8]) -> Result<String, Error> {
    text(field, Value::Bytes(one_bytes(bytes)?))
}

fn text(field: &Field, value: Value<'_>) -> Result<String, Error> {
    let bytes = bytes_of(field, value)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| bad(field, "text that is not UTF-8"))
}

fn number(field: &Field, value: Value<'_>) -> Result<i64, Error> {
    match value {
        Value::Varint(value) => Ok(value as i64),
        Value::Fixed64(value) => Ok(value as i64),
        Value::Fixed32(value) => Ok(i64::from(value)),
        Value::Bytes(_) => Err(bad(field, "bytes where a number belongs")),
    }
}

fn bytes_of<'a>(field: &Field, value: Value<'a>) -> Result<&'a [u8], Error> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        _ => Err(bad(field, "a number where bytes belong")),
    }
}

fn is_zero(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(value) => !value,
        Json::Number(value) => value.as_f64() == Some(0.0),
        Json::String(value) => value.is_empty(),
        Json::Array(_) | Json::Object(_) => false,
    }
}

fn bad(field: &Field, reason: &'static str) -> Error {
    Error::Field {
        field: field.name.to_owned(),
        reason,
    }
}
