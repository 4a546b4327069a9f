//! Members of a custom resource's schema that are a schema or something simpler.
//!
//! Wire: `JSONSchemaPropsOrBool{1 allows, 2 schema}`, `…OrArray{1 schema, 2 schemas}` and
//! `…OrStringArray{1 schema, 2 strings}`.

use serde_json::Value as Json;

use super::{
    Error, Shape, Type,
    decode::message as decode_message,
    encode::message as encode_message,
    schema,
    weigh::Budget,
    wire::{Reader, Value, put_bytes, put_number},
};

/// The type of a custom resource's schema.
pub(crate) fn props() -> Option<&'static Type> {
    schema().get("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
}

const NO_TYPE: Error = Error::Wire("the table has no schema type");

pub(crate) fn decode(
    shape: &Shape,
    bytes: &[u8],
    depth: usize,
    budget: &mut Budget,
) -> Result<Json, Error> {
    let props = props().ok_or(NO_TYPE)?;
    let mut one = None;
    let mut many = Vec::new();
    let mut allows = false;
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        match (shape, number, value) {
            (Shape::SchemaOrBool, 1, Value::Varint(bit)) => allows = bit != 0,
            (Shape::SchemaOrBool, 2, Value::Bytes(bytes))
            | (Shape::SchemaOrArray | Shape::SchemaOrStrings, 1, Value::Bytes(bytes)) => {
                one = Some(Json::Object(decode_message(
                    props,
                    bytes,
                    depth + 1,
                    budget,
                )?));
            }
            (Shape::SchemaOrArray, 2, Value::Bytes(bytes)) => {
                many.push(Json::Object(decode_message(
                    props,
                    bytes,
                    depth + 1,
                    budget,
                )?));
            }
            (Shape::SchemaOrStrings, 2, Value::Bytes(bytes)) => {
                budget.spend_value(bytes.len())?;
                many.push(Json::String(String::from_utf8_lossy(bytes).into_owned()));
            }
            _ => {}
        }
    }
    Ok(match (shape, one) {
        (_, Some(schema)) => schema,
        (Shape::SchemaOrBool, None) => Json::Bool(allows),
        (_, None) => Json::Array(many),
    })
}

/// The message's content; its frame is the caller's.
pub(crate) fn encode(
    shape: &Shape,
    value: &Json,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    let props = props().ok_or(NO_TYPE)?;
    let mut put = |number: u32, value: &Json| {
        let mut inner = Vec::new();
        encode_message(props, value, &mut inner, depth + 1)?;
        put_bytes(out, number, &inner);
        Ok(())
    };
    match (shape, value) {
        (Shape::SchemaOrBool, Json::Bool(allows)) => put_number(out, 1, u64::from(*allows)),
        (Shape::SchemaOrBool, Json::Object(_)) => {
            put(2, value)?;
            // A schema is also an allowance, as Go's decoder sets it.
            put_number(out, 1, 1);
        }
        (Shape::SchemaOrArray | Shape::SchemaOrStrings, Json::Object(_)) => put(1, value)?,
        (Shape::SchemaOrArray, Json::Array(list)) if list.iter().all(Json::is_object) => {
            list.iter().try_for_each(|item| put(2, item))?;
        }
        (Shape::SchemaOrStrings, Json::Array(list)) => {
            for item in list {
                let text = item.as_str().ok_or(Error::Wire("not a string"))?;
                put_bytes(out, 2, text.as_bytes());
            }
        }
        _ => return Err(Error::Wire("neither a schema nor what may stand for one")),
    }
    Ok(())
}
