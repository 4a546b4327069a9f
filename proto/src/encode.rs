//! JSON to protobuf, readable by Go's generated code. Absent members are not written, where Go
//! writes empty ones: it reads both alike, and messages stay small.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value as Json;

use super::{
    Error, Field, Shape, Type, crd_schema,
    normalize::{parse_duration, parse_time},
    wire::{MAX_DEPTH, put_bytes, put_double, put_number},
};

/// Members that the type does not know are left out.
pub fn encode(ty: &Type, value: &Json) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    message(ty, value, &mut out, 0)?;
    Ok(out)
}

pub(crate) fn message(
    ty: &Type,
    value: &Json,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Wire("nested too deep"));
    }
    for field in ty.fields {
        if field.number == 0 {
            continue;
        }
        if field.inline {
            let inner = field
                .shape
                .message()
                .ok_or_else(|| bad(field, "an inlined scalar"))?;
            let mut bytes = Vec::new();
            message(inner, value, &mut bytes, depth + 1)?;
            put_bytes(out, field.number, &bytes);
            continue;
        }
        match value.get(field.name) {
            // To Go that is the zero value, and for a pointer absence: just what was meant.
            None | Some(Json::Null) => {}
            Some(value) => member(field, value, out, depth)?,
        }
    }
    Ok(())
}

fn member(field: &Field, value: &Json, out: &mut Vec<u8>, depth: usize) -> Result<(), Error> {
    match field.shape {
        Shape::List(element) => {
            for item in value.as_array().ok_or_else(|| bad(field, "not a list"))? {
                scalar(field, field.number, element, item, out, depth)?;
            }
        }
        Shape::Map(element) => {
            for (key, item) in value.as_object().ok_or_else(|| bad(field, "not a map"))? {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                scalar(field, 2, element, item, &mut entry, depth)?;
                put_bytes(out, field.number, &entry);
            }
        }
        ref shape => scalar(field, field.number, shape, value, out, depth)?,
    }
    Ok(())
}

fn scalar(
    field: &Field,
    number: u32,
    shape: &Shape,
    value: &Json,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    let text = || value.as_str().ok_or_else(|| bad(field, "not a string"));
    let mut inner = Vec::new();
    match shape {
        Shape::String | Shape::Enum(_) => put_bytes(out, number, text()?.as_bytes()),
        Shape::Bool => put_number(
            out,
            number,
            value
                .as_bool()
                .ok_or_else(|| bad(field, "not a boolean"))?
                .into(),
        ),
        Shape::Int32 | Shape::Int64 => put_number(out, number, integer(field, value)? as u64),
        Shape::Double => put_double(
            out,
            number,
            value.as_f64().ok_or_else(|| bad(field, "not a number"))?,
        ),
        Shape::Bytes => {
            let bytes = BASE64_STANDARD
                .decode(text()?)
                .map_err(|_| bad(field, "not base64"))?;
            put_bytes(out, number, &bytes);
        }
        Shape::Time | Shape::MicroTime => {
            let (seconds, nanos) = parse_time(text()?).ok_or_else(|| bad(field, "not a time"))?;
            put_number(&mut inner, 1, seconds as u64);
            put_number(
                &mut inner,
                2,
                if *shape == Shape::Time {
                    0
                } else {
                    nanos.into()
                },
            );
            put_bytes(out, number, &inner);
        }
        Shape::Duration => {
            let nanos = parse_duration(text()?).ok_or_else(|| bad(field, "not a duration"))?;
            put_number(&mut inner, 1, nanos as u64);
            put_bytes(out, number, &inner);
        }
        Shape::Quantity => {
            match value {
                Json::String(text) => put_bytes(&mut inner, 1, text.as_bytes()),
                Json::Number(plain) => put_bytes(&mut inner, 1, plain.to_string().as_bytes()),
                _ => return Err(bad(field, "not a quantity")),
            }
            put_bytes(out, number, &inner);
        }
        Shape::IntOrString => {
            let (kind, int, string) = match value {
                Json::String(text) => (1, 0, text.as_str()),
                _ => (0, integer(field, value)?, ""),
            };
            put_number(&mut inner, 1, kind);
            put_number(&mut inner, 2, int as u64);
            put_bytes(&mut inner, 3, string.as_bytes());
            put_bytes(out, number, &inner);
        }
        Shape::Raw | Shape::FieldsV1 | Shape::Any => {
            let json = serde_json::to_vec(value).map_err(|_| bad(field, "not JSON"))?;
            put_bytes(&mut inner, 1, &json);
            put_bytes(out, number, &inner);
        }
        Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => {
            crd_schema::encode(shape, value, &mut inner, depth)?;
            put_bytes(out, number, &inner);
        }
        Shape::NamedList(element) => {
            for item in value.as_array().ok_or_else(|| bad(field, "not a list"))? {
                scalar(field, 1, element, item, &mut inner, depth + 1)?;
            }
            put_bytes(out, number, &inner);
        }
        Shape::Message(_) => {
            let ty = shape
                .message()
                .ok_or_else(|| bad(field, "an unknown type"))?;
            if !value.is_object() {
                return Err(bad(field, "not an object"));
            }
            message(ty, value, &mut inner, depth + 1)?;
            put_bytes(out, number, &inner);
        }
        Shape::List(_) | Shape::Map(_) => return Err(bad(field, "a list of lists")),
    }
    Ok(())
}

fn integer(field: &Field, value: &Json) -> Result<i64, Error> {
    let whole = |float: f64| (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64);
    value
        .as_i64()
        .or_else(|| value.as_f64().and_then(whole))
        .ok_or_else(|| bad(field, "not an integer"))
}

fn bad(field: &Field, reason: &'static str) -> Error {
    Error::Field {
        field: field.name.to_owned(),
        reason,
    }
}
