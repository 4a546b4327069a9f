//! OpenAPI v3 schemas of definitions, read into types and sizes.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map, Value};

use super::{ListKind, MAX_REQUEST_BYTES, ObjectType, Schema, Shape, escape};
use crate::cel::types::Type;

/// Schemas nested deeper are not seen by expressions. JSON itself stops at 128 levels.
const MAX_DEPTH: usize = 100;

/// Sizes of formatted strings as JSON (bytes).
const MAX_FORMATTED: u64 = 32;
const DATE_BYTES: u64 = 12;

pub(super) fn schema(json: &Value, name: &str, root: bool) -> Option<Arc<Schema>> {
    let schema = read(
        json,
        name,
        root || flag(json, "x-kubernetes-embedded-resource"),
        0,
    );
    (!matches!(schema.shape, Shape::Unseen)).then_some(schema)
}

fn flag(json: &Value, name: &str) -> bool {
    json.get(name).and_then(Value::as_bool) == Some(true)
}

fn bound(json: &Value, name: &str) -> Option<u64> {
    let number = json.get(name)?;
    // What is below nothing is nothing.
    number.as_u64().or_else(|| number.as_i64().map(|_| 0))
}

fn read(json: &Value, name: &str, root: bool, depth: usize) -> Arc<Schema> {
    let nullable = flag(json, "nullable");
    let unseen = Schema {
        ty: Type::Dyn,
        shape: Shape::Unseen,
        max_elements: 0,
        min_size: 0,
        nullable,
    };
    if depth > MAX_DEPTH {
        return Arc::new(unseen);
    }
    if flag(json, "x-kubernetes-int-or-string") {
        return Arc::new(Schema {
            shape: Shape::IntOrString,
            max_elements: four_bytes_each(json).unwrap_or(MAX_REQUEST_BYTES - 2),
            min_size: 1,
            ..unseen
        });
    }
    let fixed = |ty: Type, shape: Shape, min_size: u64| Schema {
        ty,
        shape,
        max_elements: 0,
        min_size,
        nullable,
    };
    // The root of a resource is an object, whatever it says.
    Arc::new(match json.get("type").and_then(Value::as_str) {
        Some("object") => object(json, name, root, depth, unseen),
        _ if root => object(json, name, root, depth, unseen),
        Some("array") => list(json, name, depth, unseen),
        Some("string") => string(json, unseen),
        Some("boolean") => fixed(Type::Bool, Shape::Bool, 4),
        Some("number") => fixed(Type::Double, Shape::Double, 1),
        Some("integer") => fixed(Type::Int, Shape::Int, 1),
        _ => unseen,
    })
}

/// Most bytes of a string of `maxLength` characters.
fn four_bytes_each(json: &Value) -> Option<u64> {
    bound(json, "maxLength").map(|length| length.saturating_mul(4))
}

fn string(json: &Value, unseen: Schema) -> Schema {
    let (ty, shape, max_elements, min_size) = match json.get("format").and_then(Value::as_str) {
        Some("byte") => {
            let most = bound(json, "maxLength").unwrap_or(MAX_REQUEST_BYTES - 2);
            (Type::Bytes, Shape::Bytes, most, 2)
        }
        Some("duration") => (Type::Duration, Shape::Duration, MAX_FORMATTED, 3),
        Some("date") => (Type::Timestamp, Shape::Date, DATE_BYTES, DATE_BYTES),
        Some("date-time") => (Type::Timestamp, Shape::DateTime, MAX_FORMATTED, 21),
        _ => {
            let most = four_bytes_each(json)
                .or_else(|| longest_choice(json))
                .unwrap_or(MAX_REQUEST_BYTES - 2);
            (Type::String, Shape::String, most, 2)
        }
    };
    Schema {
        ty,
        shape,
        max_elements,
        min_size,
        nullable: unseen.nullable,
    }
}

fn longest_choice(json: &Value) -> Option<u64> {
    let choices = json.get("enum")?.as_array().filter(|all| !all.is_empty())?;
    let lengths = choices.iter().filter_map(Value::as_str).map(str::len);
    Some(lengths.max().unwrap_or(0) as u64)
}

fn list(json: &Value, name: &str, depth: usize, unseen: Schema) -> Schema {
    let Some(items) = json.get("items") else {
        return unseen;
    };
    let embedded = flag(items, "x-kubernetes-embedded-resource");
    let items = read(items, &format!("{name}.@idx"), embedded, depth + 1);
    if matches!(items.shape, Shape::Unseen) {
        return unseen;
    }
    let most = (MAX_REQUEST_BYTES - 2) / (items.min_size + 1);
    let kind = match json.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = strings(json.get("x-kubernetes-list-map-keys"));
            let names = keys
                .iter()
                .map(|key| escape(key).map_or(key.clone(), Cow::into_owned));
            ListKind::Map(names.collect())
        }
        _ => ListKind::Atomic,
    };
    Schema {
        ty: Type::list(items.to_type()),
        shape: Shape::List { items, kind },
        max_elements: bound(json, "maxItems").unwrap_or(most),
        min_size: 2,
        nullable: unseen.nullable,
    }
}

fn strings(json: Option<&Value>) -> Box<[String]> {
    let all = json.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn object(json: &Value, name: &str, root: bool, depth: usize, unseen: Schema) -> Schema {
    if let Some(values) = json
        .get("additionalProperties")
        .filter(|one| one.is_object())
    {
        return map(json, values, name, depth, unseen);
    }
    let none = Map::new();
    let declared = json
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let required = strings(json.get("required"));
    let mut min_size: u64 = 2;
    let mut fields = Vec::with_capacity(declared.len());
    for (key, inner) in declared {
        let embedded = flag(inner, "x-kubernetes-embedded-resource");
        let schema = read(inner, &format!("{name}.{key}"), embedded, depth + 1);
        let defaulted = inner.get("default").is_some_and(|one| !one.is_null());
        if required.contains(key) && !defaulted && !matches!(schema.shape, Shape::Unseen) {
            min_size += key.len() as u64 + schema.min_size + 4;
        }
        fields.push((key.clone(), schema));
    }
    if root {
        add_meta(name, &mut fields);
    }
    let object = Arc::new(ObjectType::new(name, fields));
    Schema {
        ty: Type::Object(Arc::clone(&object)),
        shape: Shape::Object(object),
        max_elements: 0,
        min_size,
        nullable: unseen.nullable,
    }
}

/// What every resource has: `apiVersion`, `kind`, `metadata.name` and `metadata.generateName`, in
/// place of what the schema says of them unless it declares all of these.
fn add_meta(name: &str, fields: &mut Vec<(String, Arc<Schema>)>) {
    let text = || {
        Arc::new(Schema {
            ty: Type::String,
            shape: Shape::String,
            max_elements: MAX_REQUEST_BYTES - 2,
            min_size: 2,
            nullable: false,
        })
    };
    let is_text = |schema: &Schema| matches!(schema.ty, Type::String);
    let find = |key: &str| fields.iter().find(|(name, _)| name == key);
    let complete = ["apiVersion", "kind"]
        .iter()
        .all(|key| find(key).is_some_and(|(_, schema)| is_text(schema)))
        && find("metadata").is_some_and(|(_, schema)| match &schema.shape {
            Shape::Object(object) => ["name", "generateName"]
                .iter()
                .all(|key| object.property(key).is_some_and(|one| is_text(&one.schema))),
            _ => false,
        });
    if complete {
        return;
    }
    let metadata = Schema::object(
        &format!("{name}.metadata"),
        ["name", "generateName"].map(|key| (key.to_owned(), text())),
    );
    fields.retain(|(name, _)| !["apiVersion", "kind", "metadata"].contains(&name.as_str()));
    fields.push(("apiVersion".to_owned(), text()));
    fields.push(("kind".to_owned(), text()));
    fields.push(("metadata".to_owned(), metadata));
}

fn map(json: &Value, values: &Value, name: &str, depth: usize, unseen: Schema) -> Schema {
    let embedded = flag(values, "x-kubernetes-embedded-resource");
    let values = read(values, &format!("{name}.@elem"), embedded, depth + 1);
    if matches!(values.shape, Shape::Unseen) {
        return unseen;
    }
    // An entry has a key of no characters at least: `"":1,`.
    let most = (MAX_REQUEST_BYTES - 2) / (values.min_size + 6);
    Schema {
        ty: Type::map(Type::String, values.to_type()),
        shape: Shape::Map(values),
        max_elements: bound(json, "maxProperties").unwrap_or(most),
        min_size: 2,
        nullable: unseen.nullable,
    }
}
