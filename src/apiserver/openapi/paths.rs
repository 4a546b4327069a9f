//! The paths of one row and the operations on them.

use serde_json::{Map, Value, json};

use super::{
    base_path,
    operation::{Action, Operation},
    parameters,
    schemas::{STATUS, Schemas, type_name},
};
use crate::apiserver::{
    discovery::part,
    registry::{Resource, Scope, Subresource},
};

/// Adds every path of `row`, and what its operations refer to.
pub(super) fn add(row: &Resource, schemas: &mut Schemas<'_>, paths: &mut Map<String, Value>) {
    let base = base_path(row.group, row.version);
    let namespaced = row.scope == Scope::Namespaced;
    let scope = if namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{base}{scope}/{}", row.plural);
    let item = format!("{collection}/{{name}}");
    let word = if namespaced { "Namespaced" } else { "" };
    let subject = format!("{word}{}", row.kind);
    let mut path = Path {
        row,
        schemas,
        paths,
    };
    let list = format!("{}List", row.type_name);
    for verb in row.verbs {
        let (at, action, answer) = match *verb {
            "list" => (&collection, Action::List, list.as_str()),
            "create" => (&collection, Action::Create, row.type_name),
            "deletecollection" => (&collection, Action::DeleteCollection, STATUS),
            "get" => (&item, Action::Get, row.type_name),
            "update" => (&item, Action::Replace, row.type_name),
            "patch" => (&item, Action::Patch, row.type_name),
            "delete" => (&item, Action::Delete, STATUS),
            _ => continue,
        };
        path.main(at, action, &subject, answer);
        if action == Action::List && namespaced {
            let everywhere = format!("{base}/{}", row.plural);
            let subject = format!("{}ForAllNamespaces", row.kind);
            path.main(&everywhere, action, &subject, answer);
        }
    }
    for subresource in row.subresources {
        path.subresource(&item, &subject, subresource);
    }
}

struct Path<'a, 'b> {
    row: &'a Resource,
    schemas: &'a mut Schemas<'b>,
    paths: &'a mut Map<String, Value>,
}

impl Path<'_, '_> {
    fn main(&mut self, at: &str, action: Action, subject: &str, answer: &str) {
        let row = self.row;
        self.put(
            at,
            &Operation {
                action,
                group: row.group,
                version: row.version,
                subject: subject.to_owned(),
                kind: (row.group, row.version, row.kind),
                object: row.type_name,
                answer: Some(answer),
                custom: row.custom.is_some(),
            },
        );
    }

    fn subresource(&mut self, item: &str, subject: &str, subresource: &Subresource) {
        let row = self.row;
        let part = part(row, subresource);
        let object = type_name(row, subresource);
        let known = proto::schema().get(&object).is_some();
        // Streams and proxies name the kind of their options; logs are text.
        let connects =
            matches!(subresource, Subresource::Special(_)) && part.kind.ends_with("Options");
        let at = format!("{item}/{}", part.name);
        let subject = format!("{subject}{}", words(part.name));
        for verb in part.verbs {
            let action = match (*verb, connects) {
                ("get", true) => Action::Connect("get"),
                ("create", true) => Action::Connect("post"),
                ("get", false) => Action::Get,
                ("create", false) => Action::Create,
                ("update", false) => Action::Replace,
                ("patch", false) => Action::Patch,
                _ => continue,
            };
            let text = connects || part.name == "log" || !known;
            self.put(
                &at,
                &Operation {
                    action,
                    group: row.group,
                    version: row.version,
                    subject: subject.clone(),
                    kind: (part.group, part.version, part.kind),
                    object: &object,
                    answer: (!text).then_some(object.as_str()),
                    custom: row.custom.is_some(),
                },
            );
        }
    }

    fn put(&mut self, at: &str, operation: &Operation<'_>) {
        let rendered = operation.render(self.schemas);
        let form = self.schemas.form;
        let item = self
            .paths
            .entry(at)
            .or_insert_with(|| json!({"parameters": parameters::of_path(form, at)}));
        item[operation.action.method()] = rendered;
    }
}

/// `ephemeralcontainers` as part of an operation's id: `Ephemeralcontainers`.
fn words(name: &str) -> String {
    let mut letters = name.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}
