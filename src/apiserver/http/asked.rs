//! A request understood: what is to be done, and the rights that takes. Pure but for the asking.
//!
//! [`Asked`] is made once, of method, path, query and headers. The rights are read off the very
//! [`Action`] that is carried out afterwards, and [`Granted`], without which there is no action, is
//! only given out when all of them are there. Handlers see neither method nor path again, and the
//! query without what was understood of it here.

use http::{HeaderMap, Method, Uri, header};

use super::path::{self, Names, Place, ResourcePath};
use crate::apiserver::{
    aggregation::Remotes,
    authz::{Authorizer, Decision, forbidden},
    query::Query,
    registry::custom::Rows,
    request::{Attributes, Target, User},
    selector::Selection,
    status::{Details, Reason, Status},
};

/// A request that nobody has been asked about yet.
#[derive(Debug)]
pub(super) struct Asked {
    needed: Vec<Attributes>,
    action: Action,
}

/// A request whose user may do it.
pub(super) struct Granted {
    user: User,
    action: Action,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    Resource(ResourcePath, Operation),
    /// `log`, `exec`, `attach`, `portforward` and `proxy`: somebody else answers.
    Connect(ResourcePath, Passed),
    /// Another server's group and version.
    Remote(Names, Passed),
    Discovery(Vec<String>),
    Document(String),
    /// Nothing that is served: what whoever may ask is told.
    Refused(Status),
}

/// What is done to a resource. A subresource takes those that concern one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    List(Selection),
    Watch(Selection),
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection(Selection),
}

/// What of the request's first line goes on to another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub method: Method,
    pub path: String,
    pub query: String,
    /// Whether the connection may become another protocol's.
    pub upgrades: bool,
}

const STREAMS: [&str; 3] = ["exec", "attach", "portforward"];
/// What at a kubelet runs or enters programs, whatever the method.
const SESSIONS: [&str; 6] = ["exec", "attach", "portForward", "run", "cri", "checkpoint"];

impl Operation {
    /// `None`: there is no such method.
    fn read(method: &Method, path: &Names, query: &mut Query) -> Result<Option<Self>, Status> {
        let (named, whole) = (!path.name.is_empty(), path.subresource.is_empty());
        let watching = query.take_flag("watch");
        let labels = query.take("labelSelector").unwrap_or_default();
        let fields = query.take("fieldSelector").unwrap_or_default();
        let selection = || Selection::parse(&labels, &fields);
        let operation = match (method.as_str(), named) {
            ("GET" | "HEAD", _) if whole && (path.watch || watching) => Self::Watch(selection()?),
            _ if path.watch => return Ok(None),
            ("GET" | "HEAD", false) => Self::List(selection()?),
            ("GET" | "HEAD", true) => Self::Get,
            ("POST", _) => Self::Create,
            ("PUT", true) => Self::Update,
            ("PATCH", true) => Self::Patch,
            ("DELETE", false) => Self::DeleteCollection(selection()?),
            ("DELETE", true) => Self::Delete,
            _ => return Ok(None),
        };
        Ok(Some(operation))
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List(_) => "list",
            Self::Watch(_) => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection(_) => "deletecollection",
        }
    }

    /// The kind of the options that its query holds.
    pub fn options(&self) -> &'static str {
        match self {
            Self::Get => "GetOptions",
            Self::List(_) | Self::Watch(_) => "ListOptions",
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Patch => "PatchOptions",
            Self::Delete | Self::DeleteCollection(_) => "DeleteOptions",
        }
    }

    fn selection(&self) -> Option<&Selection> {
        match self {
            Self::List(selection) | Self::Watch(selection) | Self::DeleteCollection(selection) => {
                Some(selection)
            }
            _ => None,
        }
    }

    /// The right it takes.
    fn attributes(&self, names: &Names) -> Attributes {
        let mut attributes = named(self.verb(), names);
        let selection = self.selection();
        attributes.fields = selection.map_or(Vec::new(), |selection| selection.fields().to_vec());
        // Who lists what has one name asks for that object. A deletion of many is never one of one,
        // and the old prefix `/watch/` never had a name from a selector.
        if names.watch {
            return attributes;
        }
        if let (Self::List(selection) | Self::Watch(selection), Target::Resource { name, .. }) =
            (self, &mut attributes.target)
            && name.is_none()
        {
            *name = selection.name().map(str::to_owned);
        }
        attributes
    }
}

impl Asked {
    /// `query`: what is understood of it is taken out.
    pub fn new(
        method: &Method,
        uri: &Uri,
        query: &mut Query,
        headers: &HeaderMap,
        (rows, remotes): (&Rows, &Remotes),
    ) -> Self {
        let place = path::parse(uri.path(), rows, remotes);
        let passed = |upgrades| Passed {
            method: method.clone(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            upgrades,
        };
        match place {
            Place::Resource(names, path) if connects(&path) => {
                if method_verb(method).is_empty() && method != Method::OPTIONS {
                    return Self {
                        needed: vec![named("", &names)],
                        action: Action::Refused(not_allowed("", path.row.plural)),
                    };
                }
                let mut needed = vec![named(method_verb(method), &names)];
                let session = is_session(&path, headers);
                if session && method != Method::POST {
                    needed.push(named("create", &names));
                }
                let upgrades = session || path.row.plural != "nodes";
                let action = Action::Connect(path, passed(upgrades));
                Self { needed, action }
            }
            Place::Resource(names, path) => Self::of_resource(method, names, path, query),
            Place::Remote(names) if names.resource.is_empty() => {
                let path = names.path();
                let discovery = Passed {
                    path: path.clone(),
                    ..passed(false)
                };
                Self::of_document(method, path, Action::Remote(names, discovery))
            }
            Place::Remote(names) => Self::of_remote(method, names, query),
            Place::Unserved(names) => {
                let read = Operation::read(method, &names, query);
                Self {
                    needed: vec![rights(method, &names, &read)],
                    action: Action::Refused(not_found()),
                }
            }
            Place::Discovery(parts, path) => {
                Self::of_document(method, path, Action::Discovery(parts))
            }
            Place::Other(path) => {
                let document = Action::Document(path.clone());
                Self::of_document(method, path, document)
            }
            Place::Nothing(path) => Self {
                needed: vec![on_path(method, &path)],
                action: Action::Refused(not_found()),
            },
        }
    }

    fn of_resource(method: &Method, names: Names, path: ResourcePath, query: &mut Query) -> Self {
        let read = Operation::read(method, &names, query);
        let needed = vec![rights(method, &names, &read)];
        let action = match read {
            Ok(Some(operation)) => Action::Resource(path, operation),
            Ok(None) => Action::Refused(not_allowed(path.row.group, path.row.plural)),
            Err(status) => Action::Refused(status),
        };
        Self { needed, action }
    }

    /// The other server must read what was read here: it gets path and query as they were
    /// understood, not as they came.
    fn of_remote(method: &Method, names: Names, query: &mut Query) -> Self {
        let passed = Passed {
            method: method.clone(),
            path: names.path(),
            query: query.encode(),
            upgrades: true,
        };
        if !names.name.is_empty() {
            // Elsewhere only collections are watched by parameter.
            query.take("watch");
        }
        let read = Operation::read(method, &names, query);
        let needed = vec![rights(method, &names, &read)];
        let action = match read {
            Err(status) => Action::Refused(status),
            Ok(_) => Action::Remote(names, passed),
        };
        Self { needed, action }
    }

    fn of_document(method: &Method, path: String, action: Action) -> Self {
        let needed = vec![on_path(method, &path)];
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let action = match reads {
            true => action,
            false => Action::Refused(not_allowed("", "")),
        };
        Self { needed, action }
    }

    /// In the words of authorization, for the counters.
    pub fn verb(&self) -> &str {
        self.needed.first().map_or("", |first| &first.verb)
    }

    /// The resource meant, for the counters.
    pub fn path(&self) -> Option<&ResourcePath> {
        match &self.action {
            Action::Resource(path, _) | Action::Connect(path, _) => Some(path),
            _ => None,
        }
    }

    /// The document meant, by its path.
    pub fn document(&self) -> Option<&str> {
        match &self.action {
            Action::Document(path) => Some(path),
            _ => None,
        }
    }

    /// What is needed and what would be done, for who only looks.
    pub fn ungranted(self) -> (Vec<Attributes>, Action) {
        (self.needed, self.action)
    }

    /// All that is needed is asked for, and the first refusal is the answer.
    pub async fn granted(self, user: User, authorizer: &Authorizer) -> Result<Granted, Status> {
        for attributes in &self.needed {
            match authorizer.authorize(&user, attributes).await {
                Decision::Allow { .. } => {}
                decision => return Err(forbidden(&user, attributes, &decision)),
            }
        }
        Ok(Granted {
            user,
            action: self.action,
        })
    }
}

impl Granted {
    pub fn into_parts(self) -> (User, Action) {
        (self.user, self.action)
    }
}

/// Whether requests for it are passed on.
fn connects(path: &ResourcePath) -> bool {
    let subresource = path.subresource.as_deref().unwrap_or_default();
    !path.watch
        && path.row.group.is_empty()
        && match path.row.plural {
            "pods" => STREAMS.contains(&subresource) || matches!(subresource, "log" | "proxy"),
            "services" | "nodes" => subresource == "proxy",
            _ => false,
        }
}

/// Whether what is opened is as good as running programs in a pod, which takes the right to
/// create it: also where it begins as a GET, as a WebSocket must.
fn is_session(path: &ResourcePath, headers: &HeaderMap) -> bool {
    let subresource = path.subresource.as_deref().unwrap_or_default();
    match path.row.plural {
        "pods" => STREAMS.contains(&subresource),
        // The kubelet knows its paths with any number of slashes in front.
        "nodes" => {
            let first = path.rest.split('/').find(|part| !part.is_empty());
            first.is_some_and(|first| SESSIONS.contains(&first))
                || headers.contains_key(header::UPGRADE)
        }
        _ => false,
    }
}

/// The right that a request takes, also one that will not be served.
fn rights(method: &Method, names: &Names, read: &Result<Option<Operation>, Status>) -> Attributes {
    match read {
        Ok(Some(operation)) => operation.attributes(names),
        _ if names.watch => named("watch", names),
        Ok(None) => named(method_verb(method), names),
        // The selector is no selector, hence speaks of no name.
        Err(_) if *method == Method::DELETE => named("deletecollection", names),
        Err(_) => named("list", names),
    }
}

fn named(verb: &str, names: &Names) -> Attributes {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Attributes {
        verb: verb.to_owned(),
        target: Target::Resource {
            group: names.group.clone(),
            version: names.version.clone(),
            resource: names.resource.clone(),
            subresource: some(&names.subresource),
            namespace: some(&names.namespace),
            name: some(&names.name),
        },
        fields: Vec::new(),
    }
}

fn on_path(method: &Method, path: &str) -> Attributes {
    Attributes {
        verb: method.as_str().to_lowercase(),
        target: Target::Path(path.to_owned()),
        fields: Vec::new(),
    }
}

/// The verb of a request that concerns one object; no method of ours, no verb.
fn method_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" | "HEAD" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

fn not_found() -> Status {
    Status::new(
        Reason::NotFound,
        "the server could not find the requested resource",
    )
}

pub(super) fn not_allowed(group: &str, kind: &str) -> Status {
    let mut status = Status::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    );
    status.details = Some(Details {
        group: group.to_owned(),
        kind: kind.to_owned(),
        ..Details::default()
    });
    status
}
