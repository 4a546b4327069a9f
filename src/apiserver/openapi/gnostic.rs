//! The protobuf form of an OpenAPI v2 document, the only one kubectl asks for.
//!
//! Source: gnostic, openapiv2/OpenAPIv2.proto. Only what [`super::v2`] produces is written.

use serde_json::{Map, Value};

/// Encodes a v2 document as `openapi.v2.Document`.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    text(&mut out, 1, &document["swagger"]);
    message(&mut out, 2, |out| {
        text(out, 1, &document["info"]["title"]);
        text(out, 2, &document["info"]["version"]);
    });
    message(&mut out, 8, |out| {
        for (name, item) in members(&document["paths"]) {
            named(out, 2, name, |out| path_item(out, item));
        }
    });
    message(&mut out, 9, |out| {
        for (name, definition) in members(&document["definitions"]) {
            named(out, 1, name, |out| schema(out, definition));
        }
    });
    out
}

fn path_item(out: &mut Vec<u8>, item: &Value) {
    for (number, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if let Some(found) = item.get(method) {
            message(out, number, |out| operation(out, found));
        }
    }
    for one in list(&item["parameters"]) {
        message(out, 9, |out| parameter(out, one));
    }
}

fn operation(out: &mut Vec<u8>, operation: &Value) {
    texts(out, 1, &operation["tags"]);
    text(out, 3, &operation["description"]);
    text(out, 5, &operation["operationId"]);
    texts(out, 6, &operation["produces"]);
    texts(out, 7, &operation["consumes"]);
    for one in list(&operation["parameters"]) {
        message(out, 8, |out| parameter(out, one));
    }
    message(out, 9, |out| {
        for (code, response) in members(&operation["responses"]) {
            named(out, 1, code, |out| {
                message(out, 1, |out| {
                    text(out, 1, &response["description"]);
                    if let Some(body) = response.get("schema") {
                        message(out, 2, |out| message(out, 1, |out| schema(out, body)));
                    }
                });
            });
        }
    });
    texts(out, 10, &operation["schemes"]);
    extensions(out, 13, operation);
}

/// A ParametersItem: Parameter, then the alternative for its place.
fn parameter(out: &mut Vec<u8>, parameter: &Value) {
    let place = parameter["in"].as_str().unwrap_or_default();
    message(out, 1, |out| match place {
        "body" => message(out, 1, |out| {
            text(out, 1, &parameter["description"]);
            text(out, 2, &parameter["name"]);
            text(out, 3, &parameter["in"]);
            boolean(out, 4, &parameter["required"]);
            if let Some(body) = parameter.get("schema") {
                message(out, 5, |out| schema(out, body));
            }
        }),
        "path" => message(out, 2, |out| {
            message(out, 4, |out| {
                plain_parameter(out, parameter, [5, 6, 19]);
            });
        }),
        _ => message(out, 2, |out| {
            message(out, 3, |out| {
                plain_parameter(out, parameter, [6, 7, 20]);
            });
        }),
    });
}

/// `numbers`: those of type, format and uniqueItems, which differ between the places.
fn plain_parameter(out: &mut Vec<u8>, parameter: &Value, numbers: [u32; 3]) {
    boolean(out, 1, &parameter["required"]);
    text(out, 2, &parameter["in"]);
    text(out, 3, &parameter["description"]);
    text(out, 4, &parameter["name"]);
    let [kind, format, unique] = numbers;
    text(out, kind, &parameter["type"]);
    text(out, format, &parameter["format"]);
    boolean(out, unique, &parameter["uniqueItems"]);
}

fn schema(out: &mut Vec<u8>, schema: &Value) {
    text(out, 1, &schema["$ref"]);
    text(out, 2, &schema["format"]);
    text(out, 4, &schema["description"]);
    if let Some(default) = schema.get("default") {
        message(out, 5, |out| any(out, default));
    }
    texts(out, 19, &schema["required"]);
    for value in list(&schema["enum"]) {
        message(out, 20, |out| any(out, value));
    }
    if let Some(inner) = schema.get("additionalProperties") {
        message(out, 21, |out| {
            message(out, 1, |out| self::schema(out, inner))
        });
    }
    if schema["type"].is_string() {
        message(out, 22, |out| text(out, 1, &schema["type"]));
    }
    if let Some(inner) = schema.get("items") {
        message(out, 23, |out| {
            message(out, 1, |out| self::schema(out, inner))
        });
    }
    if schema["properties"].is_object() {
        message(out, 25, |out| {
            for (name, property) in members(&schema["properties"]) {
                named(out, 1, name, |out| self::schema(out, property));
            }
        });
    }
    extensions(out, 31, schema);
}

/// Members called `x-...`: a name and YAML, of which JSON is a part.
fn extensions(out: &mut Vec<u8>, number: u32, object: &Value) {
    for (name, value) in members(object) {
        if name.starts_with("x-") {
            named(out, number, name, |out| any(out, value));
        }
    }
}

fn any(out: &mut Vec<u8>, value: &Value) {
    bytes(out, 2, format!("{value}\n").as_bytes());
}

/// A message of a name and a value.
fn named(out: &mut Vec<u8>, number: u32, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    message(out, number, |out| {
        bytes(out, 1, name.as_bytes());
        message(out, 2, value);
    });
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(out: &mut Vec<u8>, number: u32, value: &Value) {
    if let Some(text) = value.as_str() {
        bytes(out, number, text.as_bytes());
    }
}

fn texts(out: &mut Vec<u8>, number: u32, value: &Value) {
    list(value).for_each(|item| text(out, number, item));
}

fn boolean(out: &mut Vec<u8>, number: u32, value: &Value) {
    if value == &Value::Bool(true) {
        varint(out, u64::from(number) << 3);
        varint(out, 1);
    }
}

fn message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    varint(out, u64::from(number) << 3 | 2);
    let start = out.len();
    write(out);
    let mut length = Vec::with_capacity(4);
    varint(&mut length, (out.len() - start) as u64);
    out.splice(start..start, length);
}

fn bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
