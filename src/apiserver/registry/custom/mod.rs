//! Custom resources: rows made at run time from their definitions.
//!
//! `convert.rs` asks webhooks, `schema/` prunes, defaults and validates, `path.rs` reads printer columns, `rows.rs` holds
//! the rows that are served now. A row lives as long as the process: a definition that changes
//! leaves its former rows behind (some kilobytes each), so that requests under way keep theirs.

pub mod convert;
pub mod path;
mod rows;
pub mod schema;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use serde_json::{Value, json};

use self::convert::Converter;
pub use self::rows::Rows;
use super::{
    Behaviour, Causes, PLAIN, Resource, ScalePaths, Scope, StatusMetadata, Subresource,
    kinds::{
        cells,
        row::{self, NO_COLLECTION_DELETE},
        value::{flag, items, text, texts},
    },
};
use crate::apiserver::{
    cache::Object,
    objects::Lookup,
    status::{Reason, Status, qualified},
};

/// What a row of a custom resource has besides.
#[derive(Debug)]
pub struct Custom {
    /// The uid of the definition.
    pub definition: &'static str,
    /// Stands for what the definition said when the row was made.
    pub made_of: u64,
    pub list_kind: &'static str,
    /// The schema of this version.
    pub schema: Value,
    pub columns: Vec<PrinterColumn>,
    /// `group/version` of objects that are stored now; older ones may have another.
    stored_as: String,
    /// Absent: versions differ in nothing but their names.
    converter: Option<Arc<Converter>>,
}

#[derive(Debug)]
pub struct PrinterColumn {
    pub name: String,
    /// `integer`, `number`, `string`, `boolean` or `date`.
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    path: String,
}

impl PrinterColumn {
    pub fn cell(&self, object: &Value) -> Value {
        let Some(found) = path::find(object, &self.path) else {
            return Value::Null;
        };
        match (self.kind.as_str(), &found) {
            ("date", Value::String(time)) => cells::since_time(time, jiff::Timestamp::now()).into(),
            ("integer", Value::Number(_))
            | ("number", Value::Number(_))
            | ("boolean", Value::Bool(_)) => found,
            ("string", Value::String(_)) => found,
            ("string", other) => other.to_string().into(),
            _ => Value::Null,
        }
    }
}

impl Custom {
    /// The form in which objects are stored.
    pub async fn to_stored(&self, lookup: &dyn Lookup, object: Value) -> Result<Value, Status> {
        self.convert_one(lookup, &self.stored_as, object).await
    }

    async fn convert_one(
        &self,
        lookup: &dyn Lookup,
        to: &str,
        mut object: Value,
    ) -> Result<Value, Status> {
        if text(&object, "apiVersion") == to {
            return Ok(object);
        }
        match &self.converter {
            Some(converter) => {
                let mut made = converter.convert(lookup, to, vec![object]).await?;
                made.pop()
                    .ok_or_else(|| Status::internal("a conversion made nothing"))
            }
            None => {
                object["apiVersion"] = to.into();
                Ok(object)
            }
        }
    }

    /// Objects from the store in the form of this version; a webhook is asked once for all.
    pub async fn shown_all(
        &self,
        lookup: &dyn Lookup,
        row: &Resource,
        mut objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let version = format!("{}/{}", row.group, row.version);
        let foreign = |object: &Arc<Object>| text(&object.value(), "apiVersion") != version;
        if let Some(converter) = &self.converter {
            let values: Vec<Value> = objects
                .iter()
                .filter(|object| foreign(object))
                .map(|object| (*object.value()).clone())
                .collect();
            if !values.is_empty() {
                let made = converter.convert(lookup, &version, values).await?;
                let places = objects.iter_mut().filter(|object| foreign(object));
                for (place, value) in places.zip(made) {
                    *place = Arc::new(place.converted(value));
                }
            }
        }
        Ok(objects
            .into_iter()
            .map(|object| self.shown(row, object))
            .collect())
    }

    /// Pruned and defaulted anew, since its definition may have changed since it was written.
    fn shown(&self, row: &Resource, object: Arc<Object>) -> Arc<Object> {
        let mut value = (*object.value()).clone();
        value["apiVersion"] = format!("{}/{}", row.group, row.version).into();
        schema::prune(&self.schema, &mut value);
        if let Err(error) = schema::default(&self.schema, &mut value) {
            // It was stored when its definition had other defaults; hiding it would hide it from
            // those who delete it as well.
            tracing::warn!(key = %object.key, %error, "shown without some of its defaults");
        }
        match value == *object.value() {
            true => object,
            false => Arc::new(object.converted(value)),
        }
    }
}

impl Resource {
    pub fn default_values(&self, object: &mut Value) -> Result<(), Status> {
        (self.behaviour.default)(object);
        if let Some(custom) = self.custom {
            schema::default(&custom.schema, object).map_err(|error| {
                let what = format!("Request entity too large: {error}");
                Status::new(Reason::RequestEntityTooLarge, what)
            })?;
        }
        Ok(())
    }

    pub fn prepare_create(&self, object: &mut Value) {
        (self.behaviour.prepare_create)(object);
        if self.custom.is_some()
            && self.subresources.contains(&Subresource::Status)
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    pub fn validate_new(&self, object: &Value, causes: &mut Causes) {
        (self.behaviour.validate_new)(object, causes);
    }

    pub fn validate(&self, object: &Value, causes: &mut Causes) {
        (self.behaviour.validate)(object, causes);
        if let Some(custom) = self.custom {
            schema::validate(&custom.schema, object, causes);
        }
    }
}

/// An object of one version of a kind in the form of another.
pub async fn converted(
    lookup: &dyn Lookup,
    from: &Resource,
    to: &Resource,
    object: &Value,
) -> Result<Value, Status> {
    let mut object = object.clone();
    if let Some(custom) = to.custom {
        let version = format!("{}/{}", to.group, to.version);
        return custom.convert_one(lookup, &version, object).await;
    }
    if let Some(convert) = from.convert {
        (convert.to_stored)(&mut object);
    }
    if let Some(convert) = to.convert {
        (convert.from_stored)(&mut object);
    }
    Ok(object)
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn leak_all(texts: Vec<&str>) -> &'static [&'static str] {
    let texts: Vec<&'static str> = texts.into_iter().map(leak).collect();
    Box::leak(texts.into_boxed_slice())
}

/// The name of a type in OpenAPI: the group's parts in reverse.
fn type_name(group: &str, version: &str, kind: &str) -> String {
    let parts: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", parts.join("."))
}

/// The rows of a definition whose names are accepted, a row for each served version.
pub fn rows_of(definition: &Value) -> Vec<&'static Resource> {
    let spec = &definition["spec"];
    let group = leak(text(spec, "group"));
    let versions = items(spec, "versions");
    let stored = versions
        .iter()
        .find(|version| flag(version, "storage"))
        .map_or("", |version| text(version, "name"));
    let converter = Converter::new(definition).map(Arc::new);
    let stored_as = format!("{group}/{stored}");
    let names = &definition["status"]["acceptedNames"];
    let plural = leak(text(names, "plural"));
    let storage = leak(&qualified(group, plural));
    let kind = leak(text(names, "kind"));
    let list_kind = leak(text(names, "listKind"));
    let uid = leak(text(definition, "metadata.uid"));
    let made_of = {
        let mut hasher = DefaultHasher::new();
        (spec.to_string(), names.to_string()).hash(&mut hasher);
        hasher.finish()
    };
    let singular = leak(text(names, "singular"));
    let short_names = leak_all(texts(names, "shortNames"));
    let categories = leak_all(texts(names, "categories"));
    // Nothing new once it is being deleted.
    let verbs: &'static [&'static str] =
        match definition["metadata"]["deletionTimestamp"].is_string() {
            true => NO_COLLECTION_DELETE
                .split_first()
                .map_or(&[], |(_, rest)| rest),
            false => row::ALL,
        };
    let served = versions.iter().filter(|version| flag(version, "served"));
    served
        .map(|version| {
            let name = leak(text(version, "name"));
            let schema = version["schema"]["openAPIV3Schema"].clone();
            let schema = if schema.is_object() {
                schema
            } else {
                schema::anything()
            };
            let custom = Custom {
                definition: uid,
                made_of,
                list_kind,
                schema,
                columns: columns(version),
                stored_as: stored_as.clone(),
                converter: converter.clone(),
            };
            let made: &'static Resource = Box::leak(Box::new(Resource {
                scope: match text(spec, "scope") {
                    "Cluster" => Scope::Cluster,
                    _ => Scope::Namespaced,
                },
                singular,
                short_names,
                categories,
                verbs,
                subresources: subresources(version),
                storage,
                columns: &[],
                behaviour: Behaviour {
                    status_metadata: StatusMetadata::Kept,
                    generation: true,
                    unconditional_update: false,
                    ..PLAIN
                },
                custom: Some(Box::leak(Box::new(custom))),
                ..row::namespaced(
                    group,
                    name,
                    kind,
                    plural,
                    singular,
                    leak(&type_name(group, name, kind)),
                )
            }));
            made
        })
        .collect()
}

/// The row of the version in which objects are stored, whether it is served or not.
pub fn stored_row(definition: &Value) -> Option<&'static Resource> {
    let mut definition = definition.clone();
    let versions = definition["spec"]["versions"].as_array_mut()?;
    for version in versions {
        version["served"] = version["storage"].clone();
    }
    rows_of(&definition).into_iter().next()
}

fn columns(version: &Value) -> Vec<PrinterColumn> {
    let own = items(version, "additionalPrinterColumns");
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "CreationTimestamp is a timestamp representing the server time when this object was created."});
    let all = if own.is_empty() {
        std::slice::from_ref(&age)
    } else {
        own
    };
    all.iter()
        .map(|column| PrinterColumn {
            name: text(column, "name").to_owned(),
            kind: text(column, "type").to_owned(),
            format: text(column, "format").to_owned(),
            description: text(column, "description").to_owned(),
            priority: column["priority"].as_i64().unwrap_or(0),
            path: text(column, "jsonPath").to_owned(),
        })
        .collect()
}

fn subresources(version: &Value) -> &'static [Subresource] {
    let mut all = Vec::new();
    let asked = &version["subresources"];
    if asked["scale"].is_object() {
        let pointer = |name: &str| leak(&text(&asked["scale"], name).replace('.', "/"));
        let paths: &'static ScalePaths = Box::leak(Box::new(ScalePaths {
            spec_replicas: pointer("specReplicasPath"),
            status_replicas: pointer("statusReplicasPath"),
            selector: pointer("labelSelectorPath"),
        }));
        all.push(Subresource::Scale(paths));
    }
    if asked["status"].is_object() {
        all.push(Subresource::Status);
    }
    Box::leak(all.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_becomes_rows() {
        let definition = json!({"metadata": {"name": "tabs.a.example.com"}, "spec": {
            "group": "a.example.com", "scope": "Namespaced", "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                    "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}]},
                {"name": "v0", "served": false, "storage": false},
            ]}, "status": {"acceptedNames": {"plural": "tabs", "kind": "Tab", "listKind": "TabList", "singular": "tab"}}});
        let rows = rows_of(&definition);
        let [row] = rows.as_slice() else {
            panic!("one served version")
        };
        assert_eq!(
            (row.type_name, row.storage),
            ("com.example.a.v1.Tab", "tabs.a.example.com")
        );
        assert_eq!(row.subresources.len(), 2);
        let Some(custom) = row.custom else {
            panic!("custom")
        };
        assert_eq!(custom.columns[0].cell(&json!({"spec": {"n": 3}})), 3);
        assert_eq!(custom.columns[0].cell(&json!({})), Value::Null);
    }
}
