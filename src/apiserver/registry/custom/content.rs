//! What a version of a custom resource is: its schema, columns, rules and fields.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use serde_json::{Value, json};

use super::{
    convert::Converter,
    path,
    rules::{self, Rules, field_path},
    schema::{self, Tree},
};
use crate::apiserver::registry::kinds::{
    cells,
    value::{items, text},
};

/// Longest text of a schema that is read back: more could not be stored.
const MAX_TEXT: usize = 16 << 20;

/// What a row of a custom resource has besides. The row is there for as long as the process; what is
/// large goes when the definition does.
pub struct Custom {
    /// The uid of the definition.
    pub definition: Box<str>,
    /// Stands for what the definition said when the row was made.
    pub made_of: u64,
    pub list_kind: &'static str,
    /// Fields that selectors may name, without the leading dot.
    pub selectable: Box<[SelectableField]>,
    content: RwLock<Option<Arc<Content>>>,
}

/// A field that lists can be narrowed by.
#[derive(Debug)]
pub struct SelectableField {
    pub label: Box<str>,
    steps: Box<[Box<str>]>,
}

impl SelectableField {
    /// The value as a selector compares it; empty where there is none.
    pub fn value<'v>(&self, object: &'v Value) -> Cow<'v, str> {
        let mut here = object;
        for step in &self.steps {
            match here.get(&**step) {
                Some(next) => here = next,
                None => return Cow::Borrowed(""),
            }
        }
        match here {
            Value::Null => Cow::Borrowed(""),
            Value::String(text) => Cow::Borrowed(text),
            other => Cow::Owned(other.to_string()),
        }
    }
}

/// What goes with the definition.
pub struct Content {
    pub schema: Tree,
    pub columns: Vec<PrinterColumn>,
    /// `group/version` of objects that are stored now; older ones may have another.
    pub(super) stored_as: String,
    /// Absent: versions differ in nothing but their names.
    pub(super) converter: Option<Arc<Converter>>,
    /// The schema with its descriptions and rules, compressed.
    text: Box<[u8]>,
    /// Made when the first object is written.
    rules: OnceLock<Option<Box<Rules>>>,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Custom")
            .field("definition", &self.definition)
            .field("list_kind", &self.list_kind)
            .finish_non_exhaustive()
    }
}

impl Custom {
    pub(super) fn new(
        definition: &str,
        made_of: u64,
        list_kind: &'static str,
        version: &Value,
        content: Content,
    ) -> Self {
        let schema = &version["schema"]["openAPIV3Schema"];
        let fields = items(version, "selectableFields").iter();
        let selectable = fields.filter_map(|field| {
            let path = text(field, "jsonPath");
            let found = field_path::read_plain(path, schema).ok()?;
            Some(SelectableField {
                label: path.trim_start_matches('.').into(),
                steps: found
                    .steps
                    .into_iter()
                    .map(String::into_boxed_str)
                    .collect(),
            })
        });
        Self {
            definition: definition.into(),
            made_of,
            list_kind,
            selectable: selectable.collect(),
            content: RwLock::new(Some(Arc::new(content))),
        }
    }

    /// `None` once nobody is served by this row any more.
    pub fn content(&self) -> Option<Arc<Content>> {
        let content = self.content.read().unwrap_or_else(PoisonError::into_inner);
        content.clone()
    }

    /// Lets go of what is large; requests that hold it go on with it.
    pub fn retire(&self) {
        *self.content.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn selectable(&self, label: &str) -> Option<&SelectableField> {
        self.selectable.iter().find(|field| *field.label == *label)
    }
}

impl Content {
    pub(super) fn new(
        version: &Value,
        stored_as: String,
        converter: Option<Arc<Converter>>,
    ) -> Self {
        let schema = &version["schema"]["openAPIV3Schema"];
        let anything;
        let schema = match schema.is_object() {
            true => schema,
            false => {
                anything = schema::anything();
                &anything
            }
        };
        let text = serde_json::to_vec(schema).unwrap_or_default();
        let packed = zstd::bulk::compress(&text, 3).unwrap_or_else(|error| {
            tracing::error!(%error, "a schema cannot be compressed");
            Vec::new()
        });
        Self {
            schema: Tree::schema(schema),
            columns: columns(version),
            stored_as,
            converter,
            text: packed.into_boxed_slice(),
            rules: OnceLock::new(),
        }
    }

    /// The schema as it was written, with descriptions.
    pub fn document(&self) -> Value {
        let unpacked = zstd::bulk::decompress(&self.text, MAX_TEXT);
        let read = unpacked
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
        read.unwrap_or_else(|error| {
            tracing::error!(error, "a schema cannot be read back");
            self.schema.to_value()
        })
    }

    pub(super) fn rules(&self) -> Option<&Rules> {
        let made = self
            .rules
            .get_or_init(|| rules::compile(&self.document()).map(Box::new));
        made.as_deref()
    }
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
