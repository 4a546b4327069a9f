//! Whether a JSON value has the declared shape, in the words of Go's decoder.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

use super::{
    Shape, Type,
    normalize::{parse_duration, parse_time},
    quantity::Quantity,
};

/// The JSON kind in the words of Go's decoder.
fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Violations named at most; Go's decoder stops at the first.
const MAX_NAMED: usize = 20;

/// Every place where `value` has not the shape of `ty`:
/// `json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`.
/// Empty if all is well. `null` fits everywhere.
pub fn type_errors(ty: &Type, value: &Value) -> Vec<String> {
    let mut checker = Checker {
        path: Vec::new(),
        owner: "",
        errors: Vec::new(),
    };
    match value {
        Value::Object(object) => checker.object(ty, object),
        other => checker.errors.push(format!(
            "json: cannot unmarshal {} into Go value of type {}",
            json_kind(other),
            ty.go_name()
        )),
    }
    checker.errors
}

struct Checker<'a> {
    /// JSON names from the root; list indices and map keys are not in Go's messages.
    path: Vec<&'a str>,
    /// The struct that declares the member being looked at.
    owner: &'static str,
    errors: Vec<String>,
}

impl<'a> Checker<'a> {
    fn object(&mut self, ty: &'a Type, object: &'a Map<String, Value>) {
        for (name, value) in object {
            let Some(field) = ty.field(name) else {
                continue;
            };
            if self.errors.len() >= MAX_NAMED {
                return;
            }
            let outer = std::mem::replace(&mut self.owner, ty.short_name());
            self.path.push(name);
            self.value(&field.shape, value);
            self.path.pop();
            self.owner = outer;
        }
    }

    fn value(&mut self, shape: &'a Shape, value: &'a Value) {
        match (shape, value) {
            (_, Value::Null)
            | (Shape::Bool, Value::Bool(_))
            | (Shape::String | Shape::Enum(_), Value::String(_))
            | (Shape::Double, Value::Number(_))
            | (Shape::Any | Shape::FieldsV1, _)
            | (Shape::Raw, Value::Object(_)) => {}
            (Shape::Int32, Value::Number(number)) => {
                if number
                    .as_i64()
                    .is_none_or(|wide| i32::try_from(wide).is_err())
                {
                    self.mismatch(&format!("number {number}"), "int32".to_owned());
                }
            }
            (Shape::Int64, Value::Number(number)) => {
                if !number.is_i64() {
                    self.mismatch(&format!("number {number}"), "int64".to_owned());
                }
            }
            (Shape::IntOrString, Value::String(_)) => {}
            (Shape::IntOrString, Value::Number(_)) => self.value(&Shape::Int32, value),
            (Shape::Bytes, Value::String(text)) => {
                if BASE64_STANDARD.decode(text).is_err() {
                    let at = text
                        .bytes()
                        .position(|byte| !(byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)))
                        .unwrap_or(text.len() / 4 * 4);
                    self.errors
                        .push(format!("illegal base64 data at input byte {at}"));
                }
            }
            (Shape::Time, Value::String(text)) => self.time(text, "2006-01-02T15:04:05Z07:00"),
            (Shape::MicroTime, Value::String(text)) => {
                self.time(text, "2006-01-02T15:04:05.000000Z07:00");
            }
            (Shape::Duration, Value::String(text)) => {
                if parse_duration(text).is_none() {
                    self.errors.push(format!("time: invalid duration {text:?}"));
                }
            }
            (Shape::Quantity, Value::String(text)) => self.quantity(text),
            (Shape::Quantity, Value::Number(number)) => self.quantity(&number.to_string()),
            (Shape::Message(_), Value::Object(object)) => {
                if let Some(ty) = shape.message() {
                    self.object(ty, object);
                }
            }
            (Shape::List(element) | Shape::NamedList(element), Value::Array(list)) => {
                for item in list {
                    self.value(element, item);
                }
            }
            (Shape::Map(element), Value::Object(map)) => {
                for item in map.values() {
                    self.value(element, item);
                }
            }
            (Shape::SchemaOrArray, Value::Array(list)) => {
                for item in list {
                    self.crd_schema(item);
                }
            }
            (Shape::SchemaOrStrings, Value::Array(list)) => {
                for item in list {
                    self.value(&Shape::String, item);
                }
            }
            (Shape::SchemaOrBool, Value::Bool(_)) => {}
            (Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings, value) => {
                self.crd_schema(value);
            }
            (shape, value) => self.mismatch(json_kind(value), go_type(shape)),
        }
    }

    fn crd_schema(&mut self, value: &'a Value) {
        match (super::crd_schema::props(), value) {
            (Some(ty), Value::Object(object)) => self.object(ty, object),
            (_, other) => self.mismatch(json_kind(other), "v1.JSONSchemaProps".to_owned()),
        }
    }

    fn mismatch(&mut self, found: &str, want: String) {
        self.errors.push(format!(
            "json: cannot unmarshal {found} into Go struct field {}.{} of type {want}",
            self.owner,
            self.path.join(".")
        ));
    }

    fn time(&mut self, text: &str, layout: &str) {
        if parse_time(text).is_none() {
            self.errors.push(format!(
                "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
            ));
        }
    }

    fn quantity(&mut self, text: &str) {
        if let Err(error) = Quantity::parse(text.trim()) {
            self.errors.push(error.to_string());
        }
    }
}

/// The Go type as error messages print it.
fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 | Shape::IntOrString => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::String | Shape::Time | Shape::MicroTime | Shape::Duration | Shape::Quantity => {
            "string".to_owned()
        }
        Shape::Enum(index) | Shape::Message(index) => super::TYPES[*index].go_name().to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Raw => "map[string]interface {}".to_owned(),
        Shape::FieldsV1 => "v1.FieldsV1".to_owned(),
        Shape::Any => "v1.JSON".to_owned(),
        Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => {
            "v1.JSONSchemaProps".to_owned()
        }
        Shape::List(element) => format!("[]{}", go_type(element)),
        Shape::Map(element) => format!("map[string]{}", go_type(element)),
        Shape::NamedList(element) => format!("[]{}", go_type(element)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_read_like_go() {
        let ty = crate::schema()
            .get("io.k8s.api.apps.v1.Deployment")
            .expect("exists");
        let template = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        for (value, want) in [
            (
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 3.5}}),
                "json: cannot unmarshal number 3.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                template(json!({"containers": {}})),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                template(json!({"containers": [{"name": 1}]})),
                "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
            ),
            (
                template(json!({"containers": [{"resources": {"limits": {"cpu": "one"}}}]})),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(type_errors(ty, &value), [want]);
        }
        assert_eq!(
            type_errors(ty, &json!([])),
            ["json: cannot unmarshal array into Go value of type v1.Deployment"]
        );
        let fine = json!({"spec": {"replicas": 3, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}}});
        assert!(type_errors(ty, &fine).is_empty());
    }
}
