//! What webhooks and policies are shown of a request: its objects, in the version they asked for.

use serde_json::{Value, json};

use super::{Operation, Request, matching::operation};
use crate::apiserver::{
    objects::Lookup,
    registry::{Resource, ScalePaths, Subresource, custom, kinds::value::text},
    status::Status,
    verbs, write,
};

/// The objects of a request in the version that a rule names.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    pub row: &'a Resource,
    pub object: Option<&'a Value>,
    pub old: Option<&'a Value>,
}

/// A write through the scale endpoint is shown as a Scale.
fn scale_paths(request: &Request<'_>) -> Option<&'static ScalePaths> {
    let asked = request.subresource == Some("scale");
    let mut all = request.resource.subresources.iter().filter(|_| asked);
    all.find_map(|subresource| match subresource {
        Subresource::Scale(paths) => Some(*paths),
        _ => None,
    })
}

/// Objects that had to be made for it.
pub struct View {
    object: Option<Value>,
    old: Option<Value>,
}

impl View {
    /// `None`: the request's own objects are what is shown.
    pub async fn new(
        request: &Request<'_>,
        row: &Resource,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<Option<Self>, Status> {
        if let Some(paths) = scale_paths(request) {
            return Ok(Some(Self {
                object: object.map(|object| verbs::scale_of(paths, object)),
                old: request.old.map(|old| verbs::scale_of(paths, old)),
            }));
        }
        if std::ptr::eq(row, request.resource) || request.operation == Operation::Connect {
            return Ok(None);
        }
        let mut view = Self {
            object: None,
            old: None,
        };
        for (from, to) in [(object, &mut view.object), (request.old, &mut view.old)] {
            if let Some(from) = from {
                *to = Some(custom::converted(lookup, request.resource, row, from).await?);
            }
        }
        Ok(Some(view))
    }

    pub fn shown<'a>(
        view: Option<&'a Self>,
        row: &'a Resource,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> Shown<'a> {
        match view {
            Some(view) => Shown {
                row,
                object: view.object.as_ref(),
                old: view.old.as_ref(),
            },
            None => Shown { row, object, old },
        }
    }
}

/// The request's object after what was shown of it, in the version of `row`, has become `new`; with
/// nothing unknown in it. `whole` is what it was.
pub async fn taken_back(
    request: &Request<'_>,
    row: &Resource,
    whole: Option<&Value>,
    mut new: Value,
    lookup: &dyn Lookup,
) -> Result<Value, Status> {
    if let (Some(paths), Some(whole)) = (scale_paths(request), whole) {
        let mut scaled = whole.clone();
        let replicas = new["spec"]["replicas"].as_i64().unwrap_or(0);
        verbs::put_replicas(paths, &mut scaled, replicas);
        return Ok(scaled);
    }
    if !std::ptr::eq(row, request.resource) {
        new = custom::converted(lookup, row, request.resource, &new).await?;
    }
    write::fit(request.resource, &mut new)?;
    request.resource.default_values(&mut new)?;
    Ok(new)
}

/// `{group, version, <name>}`.
fn named(row: &Resource, what: &str, name: &str) -> Value {
    json!({"group": row.group, "version": row.version, what: name})
}

/// A kind, or that of a body with a kind of its own: a Scale, the options of a connection.
fn kind(row: &Resource, object: Option<&Value>) -> Value {
    let (version, own) = match object {
        Some(object) => (text(object, "apiVersion"), text(object, "kind")),
        None => ("", ""),
    };
    match own {
        "" => named(row, "kind", row.kind),
        own if own == row.kind => named(row, "kind", own),
        own => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            json!({"group": group, "version": version, "kind": own})
        }
    }
}

/// The request but for its objects, as expressions name it too.
pub fn described(request: &Request<'_>, shown: &Shown<'_>) -> Value {
    let user = request.user;
    let own = match (request.resource.group, request.resource.plural) {
        // A namespace is inside itself.
        ("", "namespaces") => request.name,
        _ => request.namespace,
    };
    let either = shown.object.or(shown.old);
    let options = match request.operation {
        Operation::Create => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Update => json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Delete => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Connect => Value::Null,
    };
    let mut ask = json!({
        "kind": kind(shown.row, either),
        "resource": named(shown.row, "resource", shown.row.plural),
        "requestKind": kind(request.resource, either.filter(|object| text(object, "kind") != shown.row.kind)),
        "requestResource": named(request.resource, "resource", request.resource.plural),
        "operation": operation(request.operation),
        "userInfo": {"username": user.name, "groups": user.groups},
        "dryRun": request.dry_run,
        "options": options,
    });
    for (field, value) in [
        ("subResource", request.subresource.unwrap_or_default()),
        (
            "requestSubResource",
            request.subresource.unwrap_or_default(),
        ),
        ("name", request.name),
        ("namespace", own),
    ] {
        if !value.is_empty() {
            ask[field] = value.into();
        }
    }
    if let Some(uid) = &user.uid {
        ask["userInfo"]["uid"] = uid.as_str().into();
    }
    if !user.extra.is_empty() {
        ask["userInfo"]["extra"] = json!(user.extra);
    }
    ask
}
