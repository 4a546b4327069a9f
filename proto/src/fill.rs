//! What Go's encoder prints though nobody set it, and what it leaves out though somebody did.

use serde_json::{Map, Value, json};

use super::{Field, Shape, Type};

/// Adds what Go's encoder always prints: structs that are not pointers, and scalars that are not
/// left out when empty (`status: {replicas: 0}` of a new ReplicaSet). Call it after defaulting:
/// a zero is a value to a function that looks for absence. Idempotent.
pub fn fill_zeroes(ty: &Type, value: &mut Value) {
    let Value::Object(object) = value else {
        return;
    };
    for (name, value) in object.iter_mut() {
        if let Some(field) = ty.field(name) {
            fill_shape(&field.shape, value);
        }
    }
    fill_object(ty, object);
}

fn fill_shape(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Message(_), value) => {
            if let Some(ty) = shape.message() {
                fill_zeroes(ty, value);
            }
        }
        (Shape::List(element), Value::Array(list)) => {
            list.iter_mut().for_each(|item| fill_shape(element, item));
        }
        (Shape::Map(element), Value::Object(map)) => {
            map.values_mut().for_each(|item| fill_shape(element, item));
        }
        _ => {}
    }
}

/// One level of [`fill_zeroes`]; what it adds is complete.
pub(crate) fn fill_object(ty: &Type, object: &mut Map<String, Value>) {
    for field in ty.fields {
        if field.inline {
            if let Some(inner) = field.shape.message() {
                fill_object(inner, object);
            }
        } else if !field.pointer
            && !object.contains_key(field.name)
            && let Some(zero) = zero(field)
        {
            object.insert(field.name.to_owned(), zero);
        }
    }
}

/// What stands for an absent non-pointer member; `None` if nothing does.
fn zero(field: &Field) -> Option<Value> {
    if let Some(ty) = field.shape.message() {
        let mut object = Map::new();
        fill_object(ty, &mut object);
        return Some(Value::Object(object));
    }
    if field.omit_empty {
        return None;
    }
    match &field.shape {
        Shape::Bool => Some(Value::Bool(false)),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => Some(json!(0)),
        Shape::String | Shape::Enum(_) => Some(json!("")),
        Shape::Quantity => Some(json!("0")),
        Shape::Duration => Some(json!("0s")),
        // Lists of objects are never null; other lists that Go prints as null are left out.
        Shape::List(_) if field.name == "items" => Some(json!([])),
        _ => None,
    }
}

/// One level: removes empty members that are left out when empty.
pub(crate) fn drop_empty(ty: &Type, object: &mut Map<String, Value>) {
    object.retain(|name, value| {
        ty.field(name).is_none_or(|field| {
            field.pointer || !field.omit_empty || !is_empty(&field.shape, value)
        })
    });
}

fn is_empty(shape: &Shape, value: &Value) -> bool {
    match (shape, value) {
        (_, Value::Null) => true,
        (Shape::Bool, Value::Bool(bit)) => !bit,
        (
            Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString,
            Value::Number(number),
        ) => number.as_f64() == Some(0.0),
        (Shape::String | Shape::Enum(_) | Shape::Bytes, Value::String(text)) => text.is_empty(),
        (Shape::List(_) | Shape::NamedList(_), Value::Array(list)) => list.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{normalize, schema};

    #[test]
    fn normal_form_is_what_go_prints() {
        let ty = schema().get("io.k8s.api.core.v1.Pod").expect("exists");
        let mut pod = json!({
            "metadata": {"name": "p", "labels": {}, "finalizers": []},
            "spec": {
                "containers": [{
                    "name": "c", "command": [], "stdin": false,
                    "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi", "x/y": 2}}
                }],
                "activeDeadlineSeconds": 0,
                "volumes": [{"name": "v", "emptyDir": {}}]
            },
            "status": {"startTime": "2026-11-23T17:00:00.9+01:00"}
        });
        normalize(ty, &mut pod);
        let want = json!({
            "metadata": {"name": "p"},
            "spec": {
                "containers": [{
                    "name": "c",
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi", "x/y": "2"}}
                }],
                // A pointer keeps its zero.
                "activeDeadlineSeconds": 0,
                "volumes": [{"name": "v", "emptyDir": {}}]
            },
            "status": {"startTime": "2026-11-23T16:00:00Z"}
        });
        assert_eq!(pod, want);
        normalize(ty, &mut pod);
        assert_eq!(pod, want);
    }

    #[test]
    fn zeroes_that_go_always_prints_are_added() {
        let ty = schema()
            .get("io.k8s.api.apps.v1.ReplicaSet")
            .expect("exists");
        let containers = json!([{"name": "c"}]);
        let mut set =
            json!({"spec": {"selector": {}, "template": {"spec": {"containers": containers}}}});
        fill_zeroes(ty, &mut set);
        assert_eq!(set["status"], json!({"replicas": 0}));
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"], json!({}));
        assert_eq!(set["metadata"], json!({}));
    }
}
