//! The schema of a kind, as expressions are checked against it.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use proto::Shape;
use serde_json::{Value, json};

use crate::{
    apiserver::registry::Resource,
    cel::{Schema, Type},
};

/// `None`: nothing is known of it that expressions could use.
pub fn schema_of(row: &Resource) -> Option<Arc<Schema>> {
    if let Some(custom) = row.custom {
        let schema = custom.content()?.schema.to_value();
        return Schema::from_json(&with_metadata(schema), row.kind, true);
    }
    let mut known = Known::default();
    proto::schema()
        .get(row.type_name)
        .map(|ty| known.object(ty))
}

/// Schemas of custom resources say little of what every object has.
fn with_metadata(mut schema: Value) -> Value {
    let text = || json!({"type": "string"});
    let time = || json!({"type": "string", "format": "date-time"});
    let pairs = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let number = || json!({"type": "integer"});
    let open = |schema: Value| json!({"type": "array", "items": schema});
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    schema["properties"]["apiVersion"] = text();
    schema["properties"]["kind"] = text();
    schema["properties"]["metadata"] = json!({"type": "object", "properties": {
        "name": text(), "generateName": text(), "namespace": text(), "uid": text(),
        "resourceVersion": text(), "selfLink": text(), "generation": number(),
        "creationTimestamp": time(), "deletionTimestamp": time(),
        "deletionGracePeriodSeconds": number(), "labels": pairs(), "annotations": pairs(),
        "finalizers": open(text()),
        "ownerReferences": open(json!({"type": "object", "properties": {"apiVersion": text(),
            "kind": text(), "name": text(), "uid": text(), "controller": {"type": "boolean"},
            "blockOwnerDeletion": {"type": "boolean"}}})),
    }});
    schema
}

/// Schemas of the types that were met; a type inside of itself is anything there.
#[derive(Default)]
struct Known(HashMap<&'static str, Arc<Schema>>);

impl Known {
    fn object(&mut self, ty: &'static proto::Type) -> Arc<Schema> {
        if let Some(known) = self.0.get(ty.name) {
            return known.clone();
        }
        if let Some(alias) = &ty.alias {
            return self.shape(alias);
        }
        self.0.insert(ty.name, Schema::scalar(Type::Dyn));
        let fields: Vec<(String, Arc<Schema>)> = ty
            .fields
            .iter()
            .map(|field| (field.name.to_owned(), self.shape(&field.shape)))
            .collect();
        let schema = Schema::object(ty.name, fields);
        self.0.insert(ty.name, schema.clone());
        schema
    }

    fn shape(&mut self, shape: &'static Shape) -> Arc<Schema> {
        static INT_OR_STRING: LazyLock<Option<Arc<Schema>>> = LazyLock::new(|| {
            Schema::from_json(&json!({"x-kubernetes-int-or-string": true}), "", false)
        });
        if let Some(ty) = shape.message() {
            return self.object(ty);
        }
        match shape {
            Shape::String | Shape::Enum(_) | Shape::Duration => Schema::scalar(Type::String),
            Shape::Bool => Schema::scalar(Type::Bool),
            Shape::Int32 | Shape::Int64 => Schema::scalar(Type::Int),
            Shape::Double => Schema::scalar(Type::Double),
            Shape::Bytes => Schema::scalar(Type::Bytes),
            Shape::Time | Shape::MicroTime => Schema::scalar(Type::Timestamp),
            Shape::List(items) | Shape::NamedList(items) => Schema::list(self.shape(items)),
            Shape::Map(values) => Schema::map(self.shape(values)),
            Shape::IntOrString => match &*INT_OR_STRING {
                Some(schema) => schema.clone(),
                None => Schema::scalar(Type::Dyn),
            },
            _ => Schema::scalar(Type::Dyn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one() {
        for row in crate::apiserver::registry::kinds::table() {
            assert!(schema_of(row).is_some(), "{}", row.kind);
        }
    }
}
