//! What a mutation's value makes of an object. Pure.

use serde_json::{Map, Value, json};

use crate::{
    apiserver::{
        admission::evaluation::Expression,
        expressions::Returns,
        patch::{self, PatchType, managed},
        registry::{Resource, kinds::value::text},
        write,
    },
    cel::{self, Environment, Object},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ApplyConfiguration,
    JsonPatch,
}

#[derive(Debug)]
pub struct Mutation {
    pub kind: Kind,
    pub expression: Expression,
}

impl Mutation {
    pub fn new(mutation: &Value, environment: &Environment) -> Self {
        let (kind, member, returns) = match text(mutation, "patchType") {
            "JSONPatch" => (Kind::JsonPatch, "jsonPatch", Returns::JsonPatch),
            _ => (
                Kind::ApplyConfiguration,
                "applyConfiguration",
                Returns::ApplyConfiguration,
            ),
        };
        let given = text(&mutation[member], "expression");
        Self {
            kind,
            expression: Expression::new(environment, given, returns),
        }
    }
}

pub fn patched(
    kind: Kind,
    row: &Resource,
    before: &Value,
    value: &cel::Value<'_>,
) -> Result<Value, String> {
    match kind {
        Kind::ApplyConfiguration => applied(row, before, value),
        Kind::JsonPatch => operated(before, value),
    }
}

fn applied(row: &Resource, before: &Value, value: &cel::Value<'_>) -> Result<Value, String> {
    let cel::Value::Object(object) = value else {
        return Err("unsupported return type from ApplyConfiguration expression".to_owned());
    };
    check_names(object)?;
    let mut configuration = value.to_json().map_err(|error| error.to_string())?;
    for field in ["apiVersion", "kind"] {
        configuration[field] = before[field].clone();
    }
    managed::configured(row, before, configuration, |configuration| {
        let has_metadata = configuration["metadata"].is_object();
        let unknown = write::fit(row, configuration).map_err(|status| status.message)?;
        if let (false, Some(map)) = (has_metadata, configuration.as_object_mut()) {
            map.remove("metadata");
        }
        Ok(unknown)
    })
    .map_err(|why| format!("error applying patch: {why}"))
}

fn operated(before: &Value, value: &cel::Value<'_>) -> Result<Value, String> {
    const NO_LIST: &str = "type mismatch: JSONPatchType.expression should evaluate to array";
    let cel::Value::List(list) = value else {
        return Err(NO_LIST.to_owned());
    };
    let mut operations = Vec::new();
    for item in list.iter() {
        let item = item.map_err(|error| error.to_string())?;
        let cel::Value::Object(object) = &item else {
            return Err(format!("{NO_LIST} of JSONPatch"));
        };
        operations.push(operation(object)?);
    }
    let body = json!(operations).to_string();
    match patch::apply(PatchType::Json, None, before, body.as_bytes()) {
        Ok(new) => Ok(new),
        // A test that fails means that the patch is not wanted.
        Err(status) if status.message.ends_with("test failed") => Ok(before.clone()),
        Err(status) => Err(format!("JSONPath: {}", status.message)),
    }
}

fn operation(object: &Object<'_>) -> Result<Value, String> {
    let mut made = Map::new();
    for (name, value) in object.fields() {
        if let cel::Value::Object(object) = value {
            check_names(object)?;
        }
        let value = value.to_json().map_err(|error| {
            format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}")
        })?;
        if !(name == "from" && value == "") {
            made.insert(name.to_owned(), value);
        }
    }
    for name in ["op", "path"] {
        made.entry(name).or_insert_with(|| "".into());
    }
    Ok(Value::Object(made))
}

/// Objects are named after the fields that they are for.
fn check_names(object: &Object<'_>) -> Result<(), String> {
    check_fields(object, object.type_name()).map_err(|why| format!("type mismatch: {why}"))
}

fn check_fields(object: &Object<'_>, path: &str) -> Result<(), String> {
    if object.type_name() != path {
        return Err(format!(
            "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
            object.type_name()
        ));
    }
    for (name, value) in object.fields() {
        check_value(value, &format!("{path}.{name}"))?;
    }
    Ok(())
}

/// The engine bounds how deep values are nested.
fn check_value(value: &cel::Value<'_>, path: &str) -> Result<(), String> {
    match value {
        cel::Value::Object(object) => check_fields(object, path),
        cel::Value::List(cel::List::Json(..)) | cel::Value::Map(cel::Map::Json(..)) => Ok(()),
        cel::Value::List(list) => {
            for item in list.iter() {
                check_value(&item.map_err(|error| error.to_string())?, path)?;
            }
            Ok(())
        }
        cel::Value::Map(map) => {
            for (_, value) in map.entries().map_err(|error| error.to_string())? {
                check_value(&value, path)?;
            }
            Ok(())
        }
        cel::Value::Optional(Some(inner)) => check_value(inner, path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apiserver::{
            admission::testing::row,
            expressions::{Declared, environment},
        },
        cel::{Activation, Budget, Origin},
    };

    fn made(kind: &str, text: &str, before: &Value) -> Result<Value, String> {
        let declared = Declared {
            patches: true,
            ..Declared::default()
        };
        let environment = environment(declared, Origin::New);
        let member = match kind {
            "JSONPatch" => "jsonPatch",
            _ => "applyConfiguration",
        };
        let mutation = json!({"patchType": kind, member: {"expression": text}});
        let mutation = Mutation::new(&mutation, &environment);
        let mut activation = Activation::new(&environment);
        activation.bind("object", cel::Value::from_json(before));
        let value = mutation
            .expression
            .evaluate(&activation, &mut Budget::for_rules())
            .map_err(|failure| failure.to_string())?;
        patched(mutation.kind, row("deployments"), before, &value)
    }

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {
                "containers": [{"name": "one", "image": "1"}, {"name": "two", "image": "2"}]}}}})
    }

    #[test]
    fn configurations_are_merged() {
        for (text, pointer, want) in [
            (
                "Object{metadata: Object.metadata{labels: {'c': 'd'}}}",
                "/metadata/labels",
                json!({"a": "b", "c": "d"}),
            ),
            (
                "Object{spec: Object.spec{replicas: 3}}",
                "/spec/replicas",
                json!(3),
            ),
            (
                "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: object.spec.template.spec.containers.map(c, Object.spec.template.spec.containers{name: c.name, imagePullPolicy: 'Never'})}}}}",
                "/spec/template/spec/containers",
                json!([{"name": "one", "image": "1", "imagePullPolicy": "Never"}, {"name": "two", "image": "2", "imagePullPolicy": "Never"}]),
            ),
            (
                "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{initContainers: [Object.spec.template.spec.initContainers{name: 'i', image: '3'}]}}}}",
                "/spec/template/spec/initContainers",
                json!([{"name": "i", "image": "3"}]),
            ),
        ] {
            let new = made("ApplyConfiguration", text, &deployment()).expect(text);
            assert_eq!(new.pointer(pointer), Some(&want), "{text}");
        }
    }

    #[test]
    fn configurations_that_do_not_fit() {
        for (text, want) in [
            (
                "Object{spec: Object.spec{template: Object.wrong{}}}",
                "type mismatch: unexpected type name \"Object.wrong\", expected \"Object.spec.template\", which matches field name path from root Object type",
            ),
            (
                "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{nodeSelector: {'a': 'c'}}}}}",
                "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.nodeSelector",
            ),
            (
                "Object{spec: Object.spec{nothing: 1}}",
                "error applying patch: failed to convert patch object to typed object: .spec.nothing: field not declared in schema",
            ),
            (
                "Object{spec: Object.spec{replicas: object.nothing}}",
                "expression 'Object{spec: Object.spec{replicas: object.nothing}}' resulted in error: no such key: nothing",
            ),
        ] {
            assert_eq!(
                made("ApplyConfiguration", text, &deployment()).expect_err(text),
                want
            );
        }
    }

    #[test]
    fn operations_are_applied() {
        for (text, pointer, want) in [
            (
                "[JSONPatch{op: 'replace', path: '/spec/replicas', value: 4}]",
                "/spec/replicas",
                Some(json!(4)),
            ),
            (
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: 'z'}]",
                "/metadata/labels/x~1y",
                Some(json!("z")),
            ),
            (
                "[JSONPatch{op: 'remove', path: '/metadata/labels'}]",
                "/metadata/labels",
                None,
            ),
            (
                "[JSONPatch{op: 'copy', from: '/spec/replicas', path: '/spec/minReadySeconds'}]",
                "/spec/minReadySeconds",
                Some(json!(1)),
            ),
            (
                "[JSONPatch{op: 'test', path: '/spec/replicas', value: 9}, JSONPatch{op: 'replace', path: '/spec/replicas', value: 4}]",
                "/spec/replicas",
                Some(json!(1)),
            ),
            (
                "[JSONPatch{op: 'add', path: '/spec/strategy', value: Object.spec.strategy{type: 'Recreate'}}]",
                "/spec/strategy/type",
                Some(json!("Recreate")),
            ),
        ] {
            let new = made("JSONPatch", text, &deployment()).expect(text);
            assert_eq!(new.pointer(pointer), want.as_ref(), "{text}");
        }
        let why = made(
            "JSONPatch",
            "[JSONPatch{op: 'remove', path: '/nothing'}]",
            &deployment(),
        );
        assert!(why.expect_err("nothing there").starts_with("JSONPath: "));
    }
}
