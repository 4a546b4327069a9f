//! The Table form: what `kubectl get` prints.

use serde_json::{Value, json};

use crate::apiserver::{
    cache::Object,
    registry::{Column, Resource, custom::Custom},
    response::Page,
};

/// What a row carries besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    Metadata,
    Object,
    None,
}

impl Include {
    pub fn parse(text: Option<&str>) -> Result<Self, crate::apiserver::status::Status> {
        match text {
            None | Some("" | "Metadata") => Ok(Self::Metadata),
            Some("Object") => Ok(Self::Object),
            Some("None") => Ok(Self::None),
            Some(other) => Err(crate::apiserver::status::Status::bad_request(format!(
                "unrecognized includeObject {other:?}: must be one of None, Metadata, Object"
            ))),
        }
    }
}

fn table(row: &Resource, metadata: Value, rows: Vec<Value>) -> Value {
    let mut columns = Vec::new();
    if !names_itself(row) {
        columns.push(json!({"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "Name of the object"}));
    }
    columns.extend(row.columns.iter().map(definition));
    let content = row.custom.and_then(Custom::content);
    for column in content.iter().flat_map(|content| &content.columns) {
        columns.push(
            json!({"name": column.name, "type": column.kind, "format": column.format,
            "priority": column.priority, "description": column.description}),
        );
    }
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

/// Whether the row places its Name column itself instead of having it first.
fn names_itself(row: &Resource) -> bool {
    row.columns.iter().any(|column| column.name == "Name")
}

fn definition(column: &Column) -> Value {
    json!({"name": column.name, "type": column.kind, "format": "", "priority": column.priority, "description": column.name})
}

pub(super) fn line(row: &Resource, object: &Object, include: Include) -> Value {
    let mut cells = Vec::new();
    if !names_itself(row) {
        cells.push(json!(&*object.name));
    }
    cells.extend(
        row.columns
            .iter()
            .map(|column| (column.cell)(&object.value())),
    );
    let content = row.custom.and_then(Custom::content);
    let custom = content.iter().flat_map(|content| &content.columns);
    cells.extend(custom.map(|column| column.cell(&object.value())));
    match include {
        Include::None => json!({"cells": cells}),
        Include::Object => json!({"cells": cells, "object": &*object.value()}),
        Include::Metadata => json!({"cells": cells, "object": super::partial(object, true)}),
    }
}

pub fn of_object(row: &Resource, object: &Object, include: Include) -> Value {
    table(
        row,
        json!({"resourceVersion": object.revision.to_string()}),
        vec![line(row, object, include)],
    )
}

pub fn of_page(row: &Resource, page: &Page, include: Include) -> Value {
    let rows = page
        .objects
        .iter()
        .map(|object| line(row, object, include))
        .collect();
    table(row, Value::Object(super::list_metadata(page)), rows)
}

/// A bookmark is a table too; what it marks lies on its row's object.
pub fn of_bookmark(row: &Resource, bookmark: &Value, revision: u64) -> Value {
    let mut cells = vec![json!("")];
    cells.extend(row.columns.iter().map(|_| json!("")));
    let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": bookmark["metadata"]});
    table(
        row,
        json!({"resourceVersion": revision.to_string()}),
        vec![json!({"cells": cells, "object": object})],
    )
}

/// A page's table up to its first row: the rows come last.
pub(super) fn head_of_page(row: &Resource, page: &Page) -> String {
    let metadata = Value::Object(super::list_metadata(page));
    let mut text = table(row, metadata, Vec::new()).to_string();
    text.truncate(text.len() - "]}".len());
    text
}
