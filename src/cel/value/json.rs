//! JSON to values, and values to JSON.

use std::fmt::Display;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map as JsonMap, Number, Value as Json};

use super::{Blob, EvalError, Evaluated, Key, List, Map, Text, Timestamp, Value, parse_duration};
use crate::cel::schema::{Schema, Shape};

/// Reads JSON, by its schema if it has one.
pub(crate) fn value<'a>(json: &'a Json, schema: Option<&'a Schema>) -> Evaluated<'a> {
    let Some(schema) = schema else {
        return Ok(untyped(json));
    };
    if json.is_null() {
        return match (&schema.shape, schema.nullable) {
            (Shape::Dyn, _) | (_, true) => Ok(Value::Null),
            _ => failed("invalid data, got null for schema with nullable=false"),
        };
    }
    match (&schema.shape, json) {
        (Shape::Dyn | Shape::Unseen, _) => Ok(untyped(json)),
        (Shape::Object(_) | Shape::Map(_), Json::Object(object)) => {
            Ok(Value::Map(Map::Json(object, Some(schema))))
        }
        (Shape::Object(_) | Shape::Map(_), _) => {
            failed("invalid data, expected a map for the provided schema with type=object")
        }
        (Shape::List { .. }, Json::Array(array)) => {
            Ok(Value::List(List::Json(array, Some(schema))))
        }
        (Shape::List { .. }, _) => {
            failed("invalid data, expected an array for the provided schema with type=array")
        }
        (Shape::IntOrString, Json::String(text)) => Ok(Value::String(Text::Borrowed(text))),
        (Shape::IntOrString, Json::Number(number)) => match number.as_i64() {
            Some(number) => Ok(Value::Int(number)),
            None => failed(INT_OR_STRING),
        },
        (Shape::IntOrString, _) => failed(INT_OR_STRING),
        (Shape::Bool, Json::Bool(value)) => Ok(Value::Bool(*value)),
        (Shape::Bool, other) => expected("bool", other),
        (Shape::Int, Json::Number(number)) => match number.as_i64() {
            Some(number) => Ok(Value::Int(number)),
            None => expected("int", json),
        },
        (Shape::Int, other) => expected("int", other),
        (Shape::Double, Json::Number(number)) => {
            Ok(Value::Double(number.as_f64().unwrap_or(f64::NAN)))
        }
        (Shape::Double, other) => expected("float", other),
        (shape, Json::String(text)) => formatted(shape, text),
        (_, other) => expected("string", other),
    }
}

const INT_OR_STRING: &str =
    "invalid data, expected XIntOrString value to be either a string or integer";

fn failed<'a>(message: impl Display) -> Evaluated<'a> {
    Err(EvalError::new(message.to_string()))
}

fn expected<'a>(what: &str, got: &Json) -> Evaluated<'a> {
    let got = match got {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    };
    failed(format!("invalid data, expected {what}, got {got}"))
}

fn untyped(json: &Json) -> Value<'_> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Text::Borrowed(text)),
        Json::Array(array) => Value::List(List::Json(array, None)),
        Json::Object(object) => Value::Map(Map::Json(object, None)),
    }
}

fn formatted<'a>(shape: &Shape, text: &'a str) -> Evaluated<'a> {
    match shape {
        Shape::Bytes => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Value::Bytes(Blob::Shared(bytes.into()))),
            Err(error) => failed(format!("Invalid byte formatted string {text}: {error}")),
        },
        Shape::Duration => match parse_duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => failed(format!(
                "Invalid duration {text}: unable to parse {text} as duration"
            )),
        },
        Shape::Date => match Timestamp::parse_date(text) {
            Some(time) => Ok(Value::Timestamp(time)),
            None => failed(format!("Invalid date formatted string {text}: not a date")),
        },
        Shape::DateTime => match Timestamp::parse_lenient(text) {
            Some(time) => Ok(Value::Timestamp(time)),
            None => failed(format!(
                "Invalid date-time formatted string {text}: not a date-time"
            )),
        },
        _ => Ok(Value::String(Text::Borrowed(text))),
    }
}

impl<'a> Value<'a> {
    /// Reads JSON without a schema: numbers are `int` where they can be, else `double`.
    pub fn from_json(json: &'a Json) -> Self {
        untyped(json)
    }

    /// Reads JSON by its schema. Fails where it does not fit.
    pub fn from_typed_json(json: &'a Json, schema: &'a Schema) -> Result<Self, EvalError> {
        value(json, Some(schema))
    }

    /// The value as JSON, for results that become part of an object.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        Ok(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Uint(value) => Json::from(*value),
            Self::Double(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Self::String(text) => Json::from(&**text),
            Self::Bytes(bytes) => Json::from(STANDARD.encode(&**bytes)),
            Self::Duration(nanos) => Json::from(super::seconds_text(*nanos)),
            Self::Timestamp(time) => Json::from(time.to_string()),
            Self::List(List::Json(array, _)) => Json::Array((*array).clone()),
            Self::List(list) => {
                let items = list.iter().map(|item| item?.to_json());
                Json::Array(items.collect::<Result<_, _>>()?)
            }
            Self::Map(Map::Json(object, _)) => Json::Object((*object).clone()),
            Self::Map(map) => {
                let mut object = JsonMap::new();
                for (key, value) in map.entries()? {
                    let Key::String(name) = key else {
                        let key = super::display::plain(&key.to_value());
                        let message = format!("map key {key} is not a string");
                        return Err(EvalError::new(message));
                    };
                    object.insert(name.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Object(object) => {
                let fields = object.fields.iter();
                let fields = fields.map(|(name, value)| Ok((name.clone(), value.to_json()?)));
                Json::Object(fields.collect::<Result<_, EvalError>>()?)
            }
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Optional(None) => Json::Null,
            other => {
                let message = format!("no JSON for a value of type {}", other.type_name());
                return Err(EvalError::new(message));
            }
        })
    }
}
