//! Types of the schema table as OpenAPI schemas.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Field, ListType, Shape, Type};
use serde_json::{Map, Value, json};

use super::{Form, words};
use crate::apiserver::{
    discovery::part,
    registry::{Resource, Subresource, custom::schema},
};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// Any JSON value, which on the wire is a message with its bytes.
const ANY: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

/// Group, version and kind.
pub(super) type Kind<'a> = (&'a str, &'a str, &'a str);

/// Which types are kinds, and of which groups and versions.
pub(super) struct Kinds<'a> {
    of_type: BTreeMap<String, Kind<'a>>,
    custom: BTreeMap<&'a str, &'a Resource>,
    versions: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Kinds<'a> {
    pub(super) fn of(rows: &[&'a Resource]) -> Self {
        let mut kinds = Self {
            of_type: BTreeMap::new(),
            custom: BTreeMap::new(),
            versions: BTreeSet::new(),
        };
        for row in rows {
            kinds.versions.insert((row.group, row.version));
            let own = (row.group, row.version, row.kind);
            if row.custom.is_some() {
                kinds.custom.insert(row.type_name, row);
            }
            kinds.of_type.insert(row.type_name.to_owned(), own);
            for subresource in row.subresources {
                let part = part(row, subresource);
                let name = type_name(row, subresource);
                let kind = (part.group, part.version, part.kind);
                kinds.of_type.entry(name).or_insert(kind);
            }
        }
        kinds
    }

    /// The `x-kubernetes-group-version-kind` of a type, if it is a kind.
    fn extension(&self, name: &str) -> Option<Value> {
        let entry = |group: &str, version: &str, kind: &str| json!({"group": group, "kind": kind, "version": version});
        match name {
            STATUS => return Some(json!([entry("", "v1", "Status")])),
            DELETE_OPTIONS => {
                let of_version =
                    |(group, version): &(&str, &str)| entry(group, version, "DeleteOptions");
                return Some(self.versions.iter().map(of_version).collect());
            }
            _ => {}
        }
        if let Some((group, version, kind)) = self.of_type.get(name) {
            return Some(json!([entry(group, version, kind)]));
        }
        let (group, version, kind) = self.of_type.get(name.strip_suffix("List")?)?;
        Some(json!([entry(group, version, &format!("{kind}List"))]))
    }
}

/// The type of what a subresource takes or gives.
pub(super) fn type_name(row: &Resource, subresource: &Subresource) -> String {
    let part = part(row, subresource);
    let own = row.type_name.rsplit_once('.').map_or("", |(own, _)| own);
    if (part.group, part.version) == (row.group, row.version) {
        return format!("{own}.{}", part.kind);
    }
    let group = match part.group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("io.k8s.api.{group}.{}.{}", part.version, part.kind)
}

/// Collects the schemas that a document refers to.
pub(super) struct Schemas<'a> {
    pub(super) form: Form,
    kinds: &'a Kinds<'a>,
    wanted: Vec<String>,
    seen: BTreeSet<String>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(form: Form, kinds: &'a Kinds<'a>) -> Self {
        Self {
            form,
            kinds,
            wanted: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// A reference to a type, which thereby becomes part of the document.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if self.seen.insert(name.to_owned()) {
            self.wanted.push(name.to_owned());
        }
        let place = match self.form {
            Form::V2 => "#/definitions/",
            Form::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{place}{name}")})
    }

    /// All schemas that were referred to, directly or by one another.
    pub(super) fn finish(mut self) -> Map<String, Value> {
        let mut all = Map::new();
        while let Some(name) = self.wanted.pop() {
            let of_type = proto::schema().get(&name).filter(|_| name != ANY);
            let mut schema = match of_type {
                Some(ty) => self.object(ty),
                None => match self.custom(&name) {
                    Some(schema) => schema,
                    None => self.wire_form(&name),
                },
            };
            if let Some(kinds) = self.kinds.extension(&name) {
                schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds);
            }
            all.insert(name, Value::Object(schema));
        }
        all
    }

    /// The schema of a custom resource, or of a list of them.
    fn custom(&mut self, name: &str) -> Option<Map<String, Value>> {
        let kinds = self.kinds;
        if let Some(element) = name.strip_suffix("List")
            && kinds.custom.contains_key(element)
        {
            let metadata = self.reference(&format!("{META}.ListMeta"));
            let items = self.reference(element);
            let list = json!({"type": "object", "required": ["items"], "properties": {
                "apiVersion": words::api_version(), "kind": words::kind(), "metadata": metadata,
                "items": {"type": "array", "items": items},
            }});
            return list.as_object().cloned();
        }
        let custom = kinds.custom.get(name)?.custom?;
        let document = custom.content()?.document();
        let free = document["x-kubernetes-preserve-unknown-fields"] == true;
        let mut schema = match self.form {
            // Clients that check with version 2 would refuse what is not named.
            Form::V2 if free => return json!({"type": "object"}).as_object().cloned(),
            Form::V2 => schema::for_v2(&document),
            Form::V3 => document,
        };
        if !custom.selectable.is_empty() {
            let fields = custom.selectable.iter();
            let fields: Value = fields
                .map(|field| json!({"fieldPath": field.label}))
                .collect();
            schema["x-kubernetes-selectable-fields"] = fields;
        }
        let metadata = self.reference(&format!("{META}.ObjectMeta"));
        let metadata = match self.form {
            Form::V2 => {
                let mut metadata = metadata;
                metadata["description"] = words::METADATA.into();
                metadata
            }
            Form::V3 => json!({"allOf": [metadata], "description": words::METADATA}),
        };
        for (member, schema_of) in [
            ("apiVersion", words::api_version()),
            ("kind", words::kind()),
            ("metadata", metadata),
        ] {
            schema["properties"][member] = schema_of;
        }
        schema.as_object().cloned()
    }

    fn object(&mut self, ty: &'static Type) -> Map<String, Value> {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in ty.members() {
            let mut property = self.property(field);
            if ty.name.ends_with(".v1.ObjectMeta")
                && let Some(description) = words::of_metadata(field.name)
            {
                property["description"] = description.into();
            }
            properties.insert(field.name.to_owned(), property);
            if field.required || !(field.optional || field.omit_empty) {
                required.push(field.name);
            }
        }
        let mut schema = Map::new();
        schema.insert("type".to_owned(), json!("object"));
        if !required.is_empty() {
            schema.insert("required".to_owned(), json!(required));
        }
        if !properties.is_empty() {
            schema.insert("properties".to_owned(), Value::Object(properties));
        }
        if ty.atomic {
            schema.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        schema
    }

    fn property(&mut self, field: &Field) -> Value {
        let extensions = extensions(field);
        let schema = self.shape(&field.shape);
        if extensions.is_empty() {
            return schema;
        }
        let mut schema = match schema {
            // Beside a reference nothing counts in version 3.
            Value::Object(schema) if self.form == Form::V3 && schema.contains_key("$ref") => {
                Map::from_iter([("allOf".to_owned(), json!([schema]))])
            }
            Value::Object(schema) => schema,
            other => return other,
        };
        schema.extend(extensions);
        Value::Object(schema)
    }

    fn shape(&mut self, shape: &Shape) -> Value {
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Enum(_) => match shape.values() {
                [] => json!({"type": "string"}),
                values => json!({"type": "string", "enum": values}),
            },
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Time => self.reference(&format!("{META}.Time")),
            Shape::MicroTime => self.reference(&format!("{META}.MicroTime")),
            Shape::Duration => self.reference(&format!("{META}.Duration")),
            Shape::FieldsV1 => self.reference(&format!("{META}.FieldsV1")),
            Shape::Quantity => self.reference("io.k8s.apimachinery.pkg.api.resource.Quantity"),
            Shape::IntOrString => self.reference("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
            Shape::Raw => self.reference("io.k8s.apimachinery.pkg.runtime.RawExtension"),
            Shape::Any | Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => {
                self.reference(ANY)
            }
            Shape::List(element) | Shape::NamedList(element) => {
                json!({"type": "array", "items": self.shape(element)})
            }
            Shape::Map(element) => {
                json!({"type": "object", "additionalProperties": self.shape(element)})
            }
            Shape::Message(_) => match shape.message() {
                Some(ty) => self.reference(ty.name),
                None => json!({"type": "object"}),
            },
        }
    }

    /// Types that are a form of their own instead of an object with members.
    fn wire_form(&self, name: &str) -> Map<String, Value> {
        let v3 = self.form == Form::V3;
        let schema = match name.rsplit('.').next().unwrap_or(name) {
            "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
            "Duration" => json!({"type": "string"}),
            "Quantity" if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            "Quantity" => json!({"type": "string"}),
            "IntOrString" if v3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            "IntOrString" => json!({"type": "string", "format": "int-or-string"}),
            "JSON" => json!({"description": "Any valid JSON value."}),
            _ => json!({"type": "object"}),
        };
        match schema {
            Value::Object(schema) => schema,
            _ => Map::new(),
        }
    }
}

/// How lists and maps merge, and the default.
fn extensions(field: &Field) -> Map<String, Value> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| {
        all.insert(format!("x-kubernetes-{name}"), value);
    };
    let is_list = matches!(field.shape, Shape::List(_) | Shape::NamedList(_));
    match field.list {
        ListType::Unset => {}
        ListType::Atomic if is_list => put("list-type", json!("atomic")),
        ListType::Atomic => put("map-type", json!("atomic")),
        ListType::Set => put("list-type", json!("set")),
        ListType::Map => {
            put("list-type", json!("map"));
            put("list-map-keys", json!(field.list_keys));
        }
    }
    let strategy = match (field.merge, field.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => "",
    };
    if !strategy.is_empty() {
        put("patch-strategy", json!(strategy));
    }
    if !field.merge_key.is_empty() {
        put("patch-merge-key", json!(field.merge_key));
    }
    if let Ok(default) = serde_json::from_str(field.default) {
        all.insert("default".to_owned(), default);
    }
    all
}
