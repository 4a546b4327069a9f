//! One operation, rendered in either form.

use serde_json::{Map, Value, json};

use super::{
    Form,
    parameters::{self, Parameter},
    schemas::{DELETE_OPTIONS, Kind, PATCH, Schemas},
};
use crate::apiserver::patch::PatchType;

const MEDIA: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
/// What custom resources are given in.
const CUSTOM_MEDIA: &[&str] = &["application/json", "application/yaml"];

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    List,
    Create,
    DeleteCollection,
    Get,
    Replace,
    Patch,
    Delete,
    /// A stream or a proxied call; the method it is served on.
    Connect(&'static str),
}

impl Action {
    /// The member of a path item.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::List | Self::Get => "get",
            Self::Create => "post",
            Self::DeleteCollection | Self::Delete => "delete",
            Self::Replace => "put",
            Self::Patch => "patch",
            Self::Connect(method) => method,
        }
    }

    /// `x-kubernetes-action`.
    fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Create => "post",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::Replace => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::Connect(_) => "connect",
        }
    }

    /// The first word of the operation's id.
    fn verb(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Create => "create",
            Self::DeleteCollection | Self::Delete => "delete",
            Self::Get => "read",
            Self::Replace => "replace",
            Self::Patch => "patch",
            Self::Connect("get") => "connectGet",
            Self::Connect(_) => "connectPost",
        }
    }

    fn parameters(self) -> &'static [Parameter] {
        match self {
            Self::List | Self::DeleteCollection => parameters::LIST,
            Self::Create | Self::Replace => parameters::WRITE,
            Self::Patch => parameters::PATCH,
            Self::Delete => parameters::DELETE,
            Self::Get | Self::Connect(_) => &[],
        }
    }
}

/// An operation before it is rendered.
pub(super) struct Operation<'a> {
    pub(super) action: Action,
    /// Group and version of the path, for the tag and the id.
    pub(super) group: &'a str,
    pub(super) version: &'a str,
    /// The rest of the id: `NamespacedPodStatus`.
    pub(super) subject: String,
    pub(super) kind: Kind<'a>,
    /// Type of the body of create and replace.
    pub(super) object: &'a str,
    /// Type of the answer; `None`: text.
    pub(super) answer: Option<&'a str>,
    /// Of a custom resource, which takes fewer forms of patches.
    pub(super) custom: bool,
}

impl Operation<'_> {
    pub(super) fn render(&self, schemas: &mut Schemas<'_>) -> Value {
        let form = schemas.form;
        let mut operation = Map::new();
        let mut put = |name: &str, value: Value| operation.insert(name.to_owned(), value);
        let tag = self.tag();
        put("tags", json!([snake(&tag)]));
        put("operationId", json!(self.id(&tag)));
        put("x-kubernetes-action", json!(self.action.name()));
        let (group, version, kind) = self.kind;
        put(
            "x-kubernetes-group-version-kind",
            json!({"group": group, "kind": kind, "version": version}),
        );
        let mut parameters = parameters::query(form, self.action.parameters());
        let body = self.body(schemas);
        match form {
            Form::V2 => {
                put("produces", json!(self.media()));
                put("consumes", self.consumes());
                put("schemes", json!(["https"]));
                if let Some(schema) = body {
                    let required = self.action != Action::Delete;
                    parameters.insert(
                        0,
                        json!({"name": "body", "in": "body", "required": required, "schema": schema}),
                    );
                }
            }
            Form::V3 => {
                if let Some(schema) = body {
                    let content = self.content(&schema);
                    put("requestBody", json!({"content": content}));
                }
            }
        }
        if !parameters.is_empty() {
            put("parameters", Value::Array(parameters));
        }
        let responses = self.responses(schemas);
        operation.insert("responses".to_owned(), responses);
        Value::Object(operation)
    }

    fn body(&self, schemas: &mut Schemas<'_>) -> Option<Value> {
        let name = match self.action {
            Action::Create | Action::Replace => self.object,
            Action::Patch => PATCH,
            Action::Delete | Action::DeleteCollection => DELETE_OPTIONS,
            Action::List | Action::Get | Action::Connect(_) => return None,
        };
        Some(schemas.reference(name))
    }

    fn media(&self) -> &'static [&'static str] {
        if self.custom { CUSTOM_MEDIA } else { MEDIA }
    }

    /// The forms of patches that are taken: kubectl sends the first that it knows.
    fn patches(&self) -> Vec<&'static str> {
        PatchType::served(self.custom)
            .map(PatchType::content_type)
            .collect()
    }

    fn consumes(&self) -> Value {
        match self.action {
            Action::Patch => json!(self.patches()),
            _ if self.custom => json!(CUSTOM_MEDIA),
            _ => json!(["*/*"]),
        }
    }

    fn content(&self, schema: &Value) -> Value {
        let media = match self.action {
            Action::Patch => self.patches(),
            _ if self.custom => CUSTOM_MEDIA.to_vec(),
            _ => vec!["*/*"],
        };
        let each = media
            .iter()
            .map(|media| ((*media).to_owned(), json!({"schema": schema})));
        Value::Object(each.collect())
    }

    fn responses(&self, schemas: &mut Schemas<'_>) -> Value {
        let schema = match self.answer {
            Some(name) => schemas.reference(name),
            None => json!({"type": "string"}),
        };
        let success = |text: &str| match schemas.form {
            Form::V2 => json!({"description": text, "schema": schema}),
            Form::V3 => {
                let media: &[&str] = if self.answer.is_some() {
                    self.media()
                } else {
                    &["*/*"]
                };
                let each = media
                    .iter()
                    .map(|media| ((*media).to_owned(), json!({"schema": schema})));
                json!({"description": text, "content": Value::Object(each.collect())})
            }
        };
        let mut all = Map::new();
        all.insert("200".to_owned(), success("OK"));
        match self.action {
            Action::Create => {
                all.insert("201".to_owned(), success("Created"));
                all.insert("202".to_owned(), success("Accepted"));
            }
            Action::Replace | Action::Patch => {
                all.insert("201".to_owned(), success("Created"));
            }
            Action::Delete => {
                all.insert("202".to_owned(), success("Accepted"));
            }
            _ => {}
        }
        all.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        Value::Object(all)
    }

    /// `CoreV1`, `RbacAuthorizationV1`.
    fn tag(&self) -> String {
        let group = match self.group {
            "" => "core",
            group => group.strip_suffix(".k8s.io").unwrap_or(group),
        };
        let words = group.split(['.', '-']).chain([self.version]);
        words.map(capital).collect()
    }

    fn id(&self, tag: &str) -> String {
        let collection = match self.action {
            Action::DeleteCollection => "Collection",
            _ => "",
        };
        format!("{}{tag}{collection}{}", self.action.verb(), self.subject)
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// `RbacAuthorizationV1` as a tag: `rbacAuthorization_v1`.
fn snake(tag: &str) -> String {
    let version = tag.rfind('V').unwrap_or(tag.len());
    let (group, version) = tag.split_at(version);
    let mut letters = group.chars();
    let group: String = match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    };
    format!("{group}_{}", version.to_lowercase())
}
