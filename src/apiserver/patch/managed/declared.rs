//! What an applied configuration says that its schema does not declare, and what it says twice. Pure.
//!
//! The other ways to write take such fields away, with a warning or an error as asked; who applies
//! would own nothing of what is not there.

use std::collections::{HashMap, HashSet};

use proto::{ListType, Shape, Type};
use serde_json::{Map, Value};

use super::{
    node::{Node, step_of_item, step_of_value},
    set::readable,
};
use crate::apiserver::registry::{Resource, custom::schema::Tree};

/// Faults named at most.
const MAX_NAMED: usize = 100;
/// Paths are cut here: a member's name can be as long as the body.
const MAX_PATH: usize = 1024;

/// One line for each fault: `.spec.foo: field not declared in schema`.
pub fn faults(row: &Resource, config: &Value) -> Vec<String> {
    let mut found = Found::default();
    match row.custom {
        Some(custom) => {
            if let Some(content) = custom.content() {
                found.schema(&content.schema, config, true);
            }
        }
        None => {
            if let Some(ty) = proto::schema().get(row.type_name) {
                found.of_type(ty, config);
            }
        }
    }
    found.faults
}

#[derive(Default)]
struct Found {
    path: String,
    faults: Vec<String>,
}

impl Found {
    fn push(&mut self, what: &str) {
        if self.faults.len() < MAX_NAMED {
            let mut end = self.path.len().min(MAX_PATH);
            while !self.path.is_char_boundary(end) {
                end -= 1;
            }
            let path = self.path.get(..end).unwrap_or_default();
            self.faults.push(format!("{path}: {what}"));
        }
    }

    /// Looks at what lies one step further.
    fn inside(&mut self, step: &str, look: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(step);
        look(self);
        self.path.truncate(length);
    }

    fn undeclared(&mut self, name: &str) {
        self.inside(&format!(".{name}"), |found| {
            found.push("field not declared in schema");
        });
    }

    fn of_type(&mut self, ty: &'static Type, value: &Value) {
        for (name, member) in value.as_object().into_iter().flatten() {
            match ty.field(name) {
                None => self.undeclared(name),
                Some(field) => self.inside(&format!(".{name}"), |found| {
                    found.shape(&field.shape, (field.list, field.list_keys), member);
                }),
            }
        }
    }

    fn shape(
        &mut self,
        shape: &'static Shape,
        (list, keys): (ListType, &'static [&'static str]),
        value: &Value,
    ) {
        let unset = (ListType::Unset, [].as_slice());
        match (shape, value) {
            (Shape::Message(_), _) => {
                if let Some(ty) = shape.message() {
                    self.of_type(ty, value);
                }
            }
            (Shape::Map(element), Value::Object(map)) => {
                for (name, member) in map {
                    self.inside(&format!(".{name}"), |found| {
                        found.shape(element, unset, member);
                    });
                }
            }
            (Shape::List(element), Value::Array(items)) => {
                let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
                let steps = self.steps(list, &keys, Node::Element(element), items);
                for (step, item) in steps.iter().zip(items) {
                    self.inside(step, |found| found.shape(element, unset, item));
                }
            }
            _ => {}
        }
    }

    fn schema(&mut self, schema: &Tree, value: &Value, root: bool) {
        match value {
            Value::Object(map) => self.members(schema, map, root),
            Value::Array(items) => {
                let list = match schema["x-kubernetes-list-type"].as_str() {
                    Some("map") => ListType::Map,
                    Some("set") => ListType::Set,
                    _ => ListType::Unset,
                };
                let keys = schema.texts("x-kubernetes-list-map-keys");
                let keys: Vec<String> = keys.map(str::to_owned).collect();
                let inner = &schema["items"];
                let steps = self.steps(list, &keys, Node::Schema(inner), items);
                for (step, item) in steps.iter().zip(items) {
                    self.inside(step, |found| found.schema(inner, item, false));
                }
            }
            _ => {}
        }
    }

    fn members(&mut self, schema: &Tree, map: &Map<String, Value>, root: bool) {
        let whole = root || schema["x-kubernetes-embedded-resource"] == true;
        // Without either, nothing is declared and anything may stand there.
        let open = schema["x-kubernetes-preserve-unknown-fields"] == true
            || schema["x-kubernetes-int-or-string"] == true
            || !schema["properties"].is_object();
        let holder = proto::schema().get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        for (name, member) in map {
            let own = &schema["properties"][name.as_str()];
            let other = &schema["additionalProperties"];
            match name.as_str() {
                "metadata" if whole => {
                    if let Some(ty) = holder {
                        self.inside(".metadata", |found| found.of_type(ty, member));
                    }
                }
                "apiVersion" | "kind" if whole => {}
                _ if own.is_object() => {
                    self.inside(&format!(".{name}"), |found| {
                        found.schema(own, member, false)
                    });
                }
                _ if other.is_object() => {
                    self.inside(&format!(".{name}"), |found| {
                        found.schema(other, member, false);
                    });
                }
                _ if open || *other == true => {}
                _ => self.undeclared(name),
            }
        }
    }

    /// The steps to a list's items; what stands there twice or cannot be told apart is a fault.
    fn steps(
        &mut self,
        list: ListType,
        keys: &[String],
        node: Node<'_>,
        items: &[Value],
    ) -> Vec<String> {
        let mut steps = Vec::with_capacity(items.len());
        let mut seen: HashMap<String, usize> = HashMap::with_capacity(items.len());
        let mut told = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let step = match list {
                ListType::Map => step_of_item(keys, node, item),
                ListType::Set => step_of_value(item),
                _ => {
                    steps.push(format!("[{index}]"));
                    continue;
                }
            };
            if step == "k:{}" {
                let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                let keys = keys.join(", ");
                self.push(&format!(
                    "element {index}: associative list with keys has an element that omits all key fields [{keys}] (and doesn't have default values for any key fields)"
                ));
                steps.push(format!("[{index}]"));
                continue;
            }
            let readable = readable(&step);
            let count = seen.entry(step.clone()).or_default();
            *count += 1;
            if *count > 1 && told.insert(step) {
                self.push(&format!("duplicate entries for key {readable}"));
            }
            steps.push(readable);
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::registry::table;

    #[test]
    fn what_a_built_in_type_does_not_declare() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let pod =
            |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
        for (config, want) in [
            (
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"x.y/z": "1"}}}),
                vec![],
            ),
            (
                json!({"spec": {"replicaz": 1}, "metadata": {"nam": "x"}, "extra": {}}),
                vec![
                    ".extra: field not declared in schema",
                    ".metadata.nam: field not declared in schema",
                    ".spec.replicaz: field not declared in schema",
                ],
            ),
            (
                pod(json!([{"name": "a", "imag": "x"}])),
                vec![
                    ".spec.template.spec.containers[name=\"a\"].imag: field not declared in schema",
                ],
            ),
            (
                pod(
                    json!([{"name": "a", "command": ["x", "x"], "ports": [{"containerPort": 80, "x": 1}]}]),
                ),
                vec![
                    ".spec.template.spec.containers[name=\"a\"].ports[containerPort=80,protocol=\"TCP\"].x: field not declared in schema",
                ],
            ),
            (
                pod(json!([{"name": "a"}, {"name": "b"}, {"name": "a"}, {"name": "a"}])),
                vec![".spec.template.spec.containers: duplicate entries for key [name=\"a\"]"],
            ),
            (
                json!({"metadata": {"finalizers": ["a/b", "a/b"]}}),
                vec![".metadata.finalizers: duplicate entries for key [=\"a/b\"]"],
            ),
            (
                pod(json!([{"image": "x"}])),
                vec![
                    ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
                ],
            ),
            (json!({"spec": "text"}), vec![]), // its type is complained about elsewhere
        ] {
            assert_eq!(faults(row, &config), want, "{config}");
        }
    }

    #[test]
    fn what_the_schema_of_a_definition_does_not_declare() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                    "spec": {"type": "object"}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}}}},
            "closed": {"type": "object", "properties": {"a": {"type": "string"}}}}});
        for (object, want) in [
            (
                json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x"}, "spec": {"anything": {"goes": 1}}}),
                vec![],
            ),
            (
                json!({"unknownField": 1}),
                vec![".unknownField: field not declared in schema"],
            ),
            (
                json!({"metadata": {"unknownMeta": 1}}),
                vec![".metadata.unknownMeta: field not declared in schema"],
            ),
            (
                json!({"spec": {"template": {"apiversion": "v1", "kind": "S", "metadata": {"unknownSubMeta": 1, "name": "s"}, "spec": {"a": 1}}}}),
                vec![
                    ".spec.template.apiversion: field not declared in schema",
                    ".spec.template.metadata.unknownSubMeta: field not declared in schema",
                ],
            ),
            (
                json!({"spec": {"map": {"x": {"b": 1}}, "list": [{"b": 1}]}}),
                vec![
                    ".spec.list[0].b: field not declared in schema",
                    ".spec.map.x.b: field not declared in schema",
                ],
            ),
            (
                json!({"closed": {"b": {"c": 1}}}),
                vec![".closed.b: field not declared in schema"],
            ),
        ] {
            let mut found = Found::default();
            found.schema(&Tree::schema(&schema), &object, true);
            assert_eq!(found.faults, want, "{object}");
        }
    }
}
