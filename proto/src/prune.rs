//! Removal of what the schema does not know.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Shape, Type};

/// Most unknown members named in one answer.
const MAX_NAMED: usize = 100;

/// Removes members that the type does not have, and `null`s. Returns the paths of the unknown
/// members as `spec.template.foo` and `spec.containers[0].bar`.
pub fn prune(ty: &Type, value: &mut Value) -> Vec<String> {
    let mut pruner = Pruner {
        path: String::new(),
        unknown: Vec::new(),
    };
    if let Value::Object(object) = value {
        pruner.object(ty, object);
    }
    pruner.unknown
}

struct Pruner {
    path: String,
    unknown: Vec<String>,
}

impl Pruner {
    fn object(&mut self, ty: &Type, object: &mut Map<String, Value>) {
        let mut rejected = Vec::new();
        object.retain(|name, value| {
            let Some(field) = ty.field(name) else {
                rejected.push(name.clone());
                return false;
            };
            if value.is_null() {
                return false;
            }
            let length = self.step(name);
            self.shape(&field.shape, value);
            self.path.truncate(length);
            true
        });
        for name in rejected {
            let length = self.step(&name);
            if self.unknown.len() < MAX_NAMED {
                self.unknown.push(shortened(&self.path));
            }
            self.path.truncate(length);
        }
    }

    /// Appends a member name; returns the length to go back to.
    fn step(&mut self, name: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        length
    }

    fn shape(&mut self, shape: &Shape, value: &mut Value) {
        match (shape, value) {
            (Shape::Message(_), Value::Object(object)) => {
                if let Some(ty) = shape.message() {
                    self.object(ty, object);
                }
            }
            (Shape::List(element), Value::Array(list)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    no_null(element, item);
                    let length = self.path.len();
                    // Writing to a String cannot fail.
                    let _ = write!(self.path, "[{index}]");
                    self.shape(element, item);
                    self.path.truncate(length);
                }
            }
            (Shape::Map(element), Value::Object(map)) => {
                for (key, item) in map {
                    no_null(element, item);
                    let length = self.step(key);
                    self.shape(element, item);
                    self.path.truncate(length);
                }
            }
            (Shape::SchemaOrArray, Value::Array(list)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    let length = self.path.len();
                    // Writing to a String cannot fail.
                    let _ = write!(self.path, "[{index}]");
                    self.crd_schema(item);
                    self.path.truncate(length);
                }
            }
            (Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings, value) => {
                self.crd_schema(value);
            }
            _ => {}
        }
    }

    fn crd_schema(&mut self, value: &mut Value) {
        if let (Some(ty), Value::Object(object)) = (super::crd_schema::props(), value) {
            self.object(ty, object);
        }
    }
}

/// A path as it may stand in an answer: member names can be as long as the body.
pub(crate) fn shortened(path: &str) -> String {
    let mut end = path.len().min(1024);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    path[..end].to_owned()
}

/// In a list or map a `null` is Go's zero value.
fn no_null(element: &Shape, item: &mut Value) {
    if !item.is_null() {
        return;
    }
    *item = match element {
        Shape::Message(_) => json!({}),
        Shape::String | Shape::Enum(_) | Shape::Bytes => json!(""),
        Shape::Bool => json!(false),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => json!(0),
        Shape::Quantity => json!("0"),
        Shape::NamedList(_) => json!([]),
        _ => return,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_are_named_and_gone() {
        let ty = crate::schema()
            .get("io.k8s.api.apps.v1.Deployment")
            .expect("exists");
        let mut value = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "bogus": 1,
            "metadata": {"name": "d", "labels": {"a": null}, "creationTimestamp": null},
            "spec": {"template": {"foo": {}, "spec": {"containers": [{"name": "c", "bar": 1, "Image": "x"}]}}}
        });
        let mut unknown = prune(ty, &mut value);
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "bogus",
                "spec.template.foo",
                "spec.template.spec.containers[0].Image",
                "spec.template.spec.containers[0].bar",
            ]
        );
        assert_eq!(
            value,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "d", "labels": {"a": ""}},
                "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}
            })
        );
    }
}
