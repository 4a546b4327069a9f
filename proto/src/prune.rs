//! What an object may hold: unknown members go, wrong types are named.

use serde_json::Value;

use super::{Shape, Type};

/// Removes unknown members and nulls; returns the paths of the unknown ones.
pub fn prune(ty: &Type, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_object(ty, value, "", &mut unknown);
    unknown
}

fn prune_object(ty: &Type, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    let Value::Object(object) = value else {
        return;
    };
    object.retain(|name, member| match ty.field(name) {
        None => {
            unknown.push(join(path, name));
            false
        }
        Some(_) => !member.is_null(),
    });
    for (name, member) in object.iter_mut() {
        if let Some(field) = ty.field(name) {
            prune_shape(&field.shape, member, &join(path, name), unknown);
        }
    }
}

fn prune_shape(shape: &Shape, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match shape {
        Shape::List(element) | Shape::NamedList(element) => {
            for (index, item) in value.as_array_mut().into_iter().flatten().enumerate() {
                prune_shape(element, item, &format!("{path}[{index}]"), unknown);
            }
        }
        Shape::Map(element) => {
            for (key, item) in value
                .as_object_mut()
                .into_iter()
                .flat_map(|map| map.iter_mut())
            {
                prune_shape(element, item, &join(path, key), unknown);
            }
        }
        Shape::Message(_) => {
            if let Some(ty) = shape.message() {
                prune_object(ty, value, path, unknown);
            }
        }
        _ => {}
    }
}

/// Members whose JSON type is not the declared one, in the words of Go's decoder.
pub fn type_errors(ty: &Type, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check_object(ty, value, ty.short_name(), "", &mut errors);
    errors
}

fn check_object(ty: &Type, value: &Value, root: &str, path: &str, errors: &mut Vec<String>) {
    let Value::Object(object) = value else {
        errors.push(wrong(value, root, path, ty.short_name()));
        return;
    };
    for (name, member) in object {
        if let Some(field) = ty.field(name)
            && !member.is_null()
        {
            check(&field.shape, member, root, &join(path, name), errors);
        }
    }
}

fn check(shape: &Shape, value: &Value, root: &str, path: &str, errors: &mut Vec<String>) {
    let (good, want) = match shape {
        Shape::String | Shape::Enum(_) => (value.is_string(), "string"),
        Shape::Bytes => (value.is_string(), "[]uint8"),
        Shape::Time | Shape::MicroTime => (value.is_string(), "v1.Time"),
        Shape::Duration => (value.is_string(), "v1.Duration"),
        Shape::Bool => (value.is_boolean(), "bool"),
        Shape::Int32 => (
            value
                .as_i64()
                .is_some_and(|number| i32::try_from(number).is_ok()),
            "int32",
        ),
        Shape::Int64 => (value.is_i64() || value.is_u64(), "int64"),
        Shape::Double => (value.is_number(), "float64"),
        Shape::Quantity => (value.is_string() || value.is_number(), "resource.Quantity"),
        Shape::IntOrString => (value.is_string() || value.is_i64(), "intstr.IntOrString"),
        Shape::Raw | Shape::FieldsV1 | Shape::Any => (true, ""),
        Shape::List(element) | Shape::NamedList(element) => match value.as_array() {
            Some(list) => {
                for item in list.iter() {
                    check(element, item, root, path, errors);
                }
                (true, "")
            }
            None => (false, "[]"),
        },
        Shape::Map(element) => match value.as_object() {
            Some(map) => {
                for (key, item) in map.iter().filter(|(_, item)| !item.is_null()) {
                    check(element, item, root, &join(path, key), errors);
                }
                (true, "")
            }
            None => (false, "map[string]"),
        },
        Shape::Message(_) => {
            if let Some(ty) = shape.message() {
                check_object(ty, value, root, path, errors);
            }
            (true, "")
        }
    };
    if !good {
        errors.push(wrong(value, root, path, want));
    }
}

fn wrong(value: &Value, root: &str, path: &str, want: &str) -> String {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) => format!("number {number}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let place = if path.is_empty() {
        "value".to_owned()
    } else {
        format!("struct field {root}.{path}")
    };
    format!("json: cannot unmarshal {found} into Go {place} of type {want}")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    #[test]
    fn unknown_members_go_and_are_named() {
        let pod = schema().get("io.k8s.api.core.v1.Pod").unwrap();
        let mut value = json!({
            "kind": "Pod", "foo": 1, "metadata": {"labels": {"anything": "goes"}},
            "spec": {"containers": [{"name": "a", "imagee": "b"}], "hostNetwork": null},
        });
        assert_eq!(prune(pod, &mut value), ["foo", "spec.containers[0].imagee"]);
        assert_eq!(
            value,
            json!({"kind": "Pod", "metadata": {"labels": {"anything": "goes"}}, "spec": {"containers": [{"name": "a"}]}})
        );
    }

    #[test]
    fn wrong_types_are_named_as_go_does() {
        let deployment = schema().get("io.k8s.api.apps.v1.Deployment").unwrap();
        let errors = type_errors(deployment, &json!({"spec": {"replicas": "3"}}));
        assert_eq!(
            errors,
            [
                "json: cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32"
            ]
        );
    }
}
