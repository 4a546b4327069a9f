//! Custom resources: rows made at run time from their definitions.
//!
//! `content.rs` is what a version is, `convert.rs` asks webhooks, `definition/` checks definitions,
//! `schema/` prunes, defaults and validates, `rules/` evaluates validation rules, `path.rs` reads printer
//! columns, `rows.rs` holds the rows that are served now. A row's names live as long as the process (about
//! a kilobyte for each change of a definition), so that requests under way keep theirs; what is large
//! goes with the definition.

mod content;
pub mod convert;
pub mod definition;
pub mod path;
mod rows;
pub mod rules;
pub mod schema;

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use serde_json::Value;

use self::convert::Converter;
pub use self::{
    content::{Content, Custom, PrinterColumn, SelectableField},
    rows::Rows,
};
use super::{
    Behaviour, Causes, PLAIN, Resource, ScalePaths, Scope, StatusMetadata, Subresource,
    kinds::{
        row::{self, NO_COLLECTION_DELETE},
        value::{flag, items, text, texts},
    },
};
use crate::apiserver::{
    cache::Object,
    objects::Lookup,
    status::{CauseType, Reason, Status, qualified},
};

/// For who holds a row whose definition has gone, or says something else by now.
pub fn gone() -> Status {
    let message = "the server could not find the requested resource";
    Status::new(Reason::NotFound, message)
}

impl Custom {
    /// The form in which objects are stored.
    pub async fn to_stored(&self, lookup: &dyn Lookup, object: Value) -> Result<Value, Status> {
        let content = self.content().ok_or_else(gone)?;
        content
            .convert_one(lookup, &content.stored_as, object)
            .await
    }

    /// Objects from the store in the form of this version; a webhook is asked once for all.
    pub async fn shown_all(
        &self,
        lookup: &dyn Lookup,
        row: &Resource,
        mut objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let content = self.content().ok_or_else(gone)?;
        let version = format!("{}/{}", row.group, row.version);
        let foreign = |object: &Arc<Object>| text(&object.value(), "apiVersion") != version;
        if let Some(converter) = &content.converter {
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
            .map(|object| content.shown(&version, object))
            .collect())
    }
}

impl Content {
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

    /// Pruned and defaulted anew, since its definition may have changed since it was written.
    fn shown(&self, version: &str, object: Arc<Object>) -> Arc<Object> {
        let mut value = (*object.value()).clone();
        value["apiVersion"] = version.into();
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

    /// `old`: of an update; `part`: its subresource.
    fn validate(
        &self,
        row: &Resource,
        object: &Value,
        old: Option<&Value>,
        part: Option<&str>,
        causes: &mut Causes,
    ) -> Vec<String> {
        let schema = &self.schema;
        match part {
            Some("status") => {
                let own = &schema["properties"]["status"];
                if let Some(status) = object.get("status").filter(|_| own.is_object()) {
                    let old = old.and_then(|old| old.get("status"));
                    schema::check(own, status, old, "status", causes);
                }
            }
            _ => {
                schema::validate(schema, object, old, causes);
                schema::embedded(schema, object, "", causes);
            }
        }
        scale(row, object, part, causes);
        let had_duplicates =
            old.is_some_and(|old| !causes.probe(|inner| schema::unique(schema, old, "", inner)));
        if !had_duplicates {
            schema::unique(schema, object, "", causes);
        }
        let Some(rules) = self.rules() else {
            return Vec::new();
        };
        // Rules may count on what the schema says.
        if causes.0.iter().any(|cause| blocks(cause.reason)) {
            let message = "Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            causes.push(CauseType::FieldValueInvalid, "<nil>", message.to_owned());
            return Vec::new();
        }
        rules::evaluate(rules, schema, object, old, causes)
    }
}

fn blocks(reason: CauseType) -> bool {
    use CauseType::*;
    matches!(
        reason,
        FieldValueNotSupported
            | FieldValueRequired
            | FieldValueTooLong
            | FieldValueTooMany
            | FieldValueTypeInvalid
    )
}

/// The numbers that the scale subresource shows are small and not negative.
fn scale(row: &Resource, object: &Value, part: Option<&str>, causes: &mut Causes) {
    let scales = row.subresources.iter().find_map(|one| match one {
        Subresource::Scale(paths) => Some(paths),
        _ => None,
    });
    let Some(paths) = scales else {
        return;
    };
    for (pointer, of_spec) in [(paths.spec_replicas, true), (paths.status_replicas, false)] {
        if of_spec && part == Some("status") {
            continue;
        }
        let Some(value) = object.pointer(pointer).filter(|value| !value.is_null()) else {
            continue;
        };
        let path = pointer.replace('/', ".");
        match value.as_i64() {
            Some(number) if number < 0 => {
                causes.invalid(path, number, "should be a non-negative integer");
            }
            Some(number) if number > i64::from(i32::MAX) => {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                causes.invalid(path, number, &detail);
            }
            Some(_) => {}
            None => {
                let detail = format!("{path} accessor error: {value} is not an integer");
                causes.invalid(path, 0, &detail);
            }
        }
    }
}

impl Resource {
    pub fn default_values(&self, object: &mut Value) -> Result<(), Status> {
        (self.behaviour.default)(object);
        if let Some(custom) = self.custom {
            let content = custom.content().ok_or_else(gone)?;
            schema::default(&content.schema, object).map_err(|error| {
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
        (self.behaviour.validate_new)(object, causes);
        self.validate_custom(object, None, None, causes);
    }

    /// As [`Resource::validate`], of an update through the object's main endpoint or `part`: what has
    /// not changed may be as a new object may not. Answers with warnings.
    pub fn validate_changed(
        &self,
        object: &Value,
        old: &Value,
        part: Option<&str>,
        causes: &mut Causes,
    ) -> Vec<String> {
        (self.behaviour.validate)(object, causes);
        self.validate_custom(object, Some(old), part, causes)
    }

    fn validate_custom(
        &self,
        object: &Value,
        old: Option<&Value>,
        part: Option<&str>,
        causes: &mut Causes,
    ) -> Vec<String> {
        let Some(custom) = self.custom else {
            return Vec::new();
        };
        match custom.content() {
            Some(content) => content.validate(self, object, old, part, causes),
            None => {
                causes.forbidden("", "the definition of this resource has changed meanwhile");
                Vec::new()
            }
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
        let content = custom.content().ok_or_else(gone)?;
        return content.convert_one(lookup, &version, object).await;
    }
    if let Some(convert) = from.convert {
        (convert.to_stored)(&mut object);
    }
    if let Some(convert) = to.convert {
        (convert.from_stored)(&mut object);
    }
    Ok(object)
}

/// A text that stays; the same one is kept once, however often its definition comes and goes.
fn leak(text: &str) -> &'static str {
    static KEPT: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(text) {
        return known;
    }
    let made: &'static str = Box::leak(text.to_owned().into_boxed_str());
    kept.insert(made);
    made
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

/// The rows of a definition with its accepted names, a row for each served version.
pub fn rows_of(definition: &Value, names: &Value) -> Vec<&'static Resource> {
    let spec = &definition["spec"];
    let group = leak(text(spec, "group"));
    let versions = items(spec, "versions");
    let stored = versions
        .iter()
        .find(|version| flag(version, "storage"))
        .map_or("", |version| text(version, "name"));
    let converter = Converter::new(definition).map(Arc::new);
    let stored_as = format!("{group}/{stored}");
    let plural = leak(text(names, "plural"));
    let storage = leak(&qualified(group, plural));
    let kind = leak(text(names, "kind"));
    let list_kind = leak(text(names, "listKind"));
    let uid = text(definition, "metadata.uid");
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
            let content = Content::new(version, stored_as.clone(), converter.clone());
            let custom = Custom::new(uid, made_of, list_kind, version, content);
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
    rows_of(&definition, &definition["status"]["acceptedNames"])
        .into_iter()
        .next()
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
    use serde_json::json;

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
        let rows = rows_of(&definition, &definition["status"]["acceptedNames"]);
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
        let content = custom.content().expect("it is served");
        assert_eq!(content.columns[0].cell(&json!({"spec": {"n": 3}})), 3);
        assert_eq!(content.columns[0].cell(&json!({})), Value::Null);
        custom.retire();
        assert!(custom.content().is_none());
    }
}
