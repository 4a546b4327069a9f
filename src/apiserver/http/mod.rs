//! HTTP in front of the verbs: who asks, for what, in which form; and the answer.
//!
//! `path.rs` names what a URL means, `documents.rs` answers what is no resource, `resources.rs`
//! the rest, with `body.rs` to read requests and `reply.rs` to answer them. `inflight.rs` says
//! how much of all this there may be at once. `serve.rs` has the listener and `local.rs` the way
//! without a socket.

mod body;
mod connect;
mod counters;
mod documents;
mod inflight;
mod local;
mod path;
mod reply;
mod resources;
mod serve;

pub use counters::Counters;
pub use documents::Documents;
pub use inflight::Inflight;
pub use local::client;
pub use serve::serve;

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use http_body::Body as _;
use rustls_pki_types::CertificateDer;

use super::{
    aggregation::{RemotePath, send},
    authn::Authenticator,
    authz::{Authorizer, Decision, forbidden},
    negotiate::{self, Format},
    query::Query,
    request::{Attributes, Target, User},
    response::{Body, full, status_value},
    server::ApiServer,
    status::{Details, Reason, Status},
};
use counters::Labels;
use inflight::{Kind, REQUEST_TIMEOUT, Who};
use path::{Place, ResourcePath};

/// Bytes of an answer that is not waited for.
const SMALL_ANSWER: u64 = 16 << 10;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A component of this process.
    Internal(Arc<User>),
    /// A connection, with the certificates that TLS has checked.
    Remote(Option<Arc<Vec<CertificateDer<'static>>>>),
}

/// Everything a request needs.
pub struct Frontend {
    pub server: Arc<ApiServer>,
    pub authenticator: Arc<Authenticator>,
    pub authorizer: Arc<Authorizer>,
    pub documents: documents::Documents,
    pub proxy: super::streaming::Proxy,
    pub counters: Counters,
    pub limits: Inflight,
}

/// A request taken apart; its body, still to be read, goes beside it.
struct Incoming {
    method: Method,
    headers: HeaderMap,
    query: Query,
    raw_query: String,
    user: User,
    /// Who shares this request's limits.
    who: Who,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    uri_path: String,
}

/// What a request's first line means.
struct Asked {
    place: Place,
    query: Query,
    attributes: Attributes,
    kind: Kind,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl Frontend {
    /// Answers one request. Never fails: a failure is an answer too.
    pub async fn handle(self: Arc<Self>, mut request: Request<Body>, peer: Peer) -> Response<Body> {
        let audit = request
            .headers()
            .get("audit-id")
            .cloned()
            .or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
        let accept = header_text(request.headers(), &header::ACCEPT).map(str::to_owned);
        let upgrade = request
            .extensions_mut()
            .remove::<hyper::upgrade::OnUpgrade>();
        let (path, rows) = (request.uri().path(), &self.server.rows);
        let place = match self.server.remotes.claim(path, rows) {
            Some(remote) => Place::Remote(remote),
            None => path::parse(path, rows),
        };
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let attributes = attributes(request.method(), &place, request.uri().path(), &query);
        let labels = Labels::new(&place, &attributes.verb);
        let begun = std::time::Instant::now();
        let inflight = self.counters.begin(&labels);
        let kind = Kind::of(&place, &attributes.verb, request.uri().path());
        let incoming = Asked {
            place,
            query,
            attributes,
            kind,
            upgrade,
        };
        let version = request.version();
        let mut response = match self.in_time(request, peer, incoming).await {
            Ok(response) => response,
            Err(status) => failure(&status, accept.as_deref()),
        };
        // What is left of a body that is too large is not read.
        if response.status() == StatusCode::PAYLOAD_TOO_LARGE && version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        drop(inflight);
        self.counters
            .answered(labels, response.status().as_u16(), begun.elapsed());
        let headers = response.headers_mut();
        if let Some(audit) = audit {
            headers.insert(HeaderName::from_static("audit-id"), audit);
        }
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        response
    }

    /// The answer, or that it takes too long. A write that has begun goes on in any case, whether
    /// or not somebody waits for it.
    async fn in_time(
        self: &Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        asked: Asked,
    ) -> Result<Response<Body>, Status> {
        let kind = asked.kind;
        let this = self.clone();
        let work = async move { this.respond(request, peer, asked).await };
        match kind {
            Kind::Watching | Kind::Free => work.await,
            Kind::Reading => tokio::time::timeout(REQUEST_TIMEOUT, work)
                .await
                .unwrap_or_else(|_| Err(Status::timed_out())),
            Kind::Writing => {
                let task = tokio::spawn(work);
                match tokio::time::timeout(REQUEST_TIMEOUT, task).await {
                    Ok(done) => done.map_err(Status::internal)?,
                    Err(_) => Err(Status::timed_out()),
                }
            }
        }
    }

    async fn respond(
        self: &Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        asked: Asked,
    ) -> Result<Response<Body>, Status> {
        let Asked {
            place,
            query,
            attributes,
            kind,
            upgrade,
        } = asked;
        let (parts, body) = request.into_parts();
        let user = match &peer {
            Peer::Internal(user) => (**user).clone(),
            Peer::Remote(certificates) => {
                self.authenticator
                    .authenticate(&parts, certificates.as_ref().map(|certs| certs.as_slice()))
                    .await?
            }
        };
        let who = inflight::who(&user, &peer);
        let Some(ticket) = self.limits.enter(kind, &who) else {
            return Ok(too_many());
        };
        let uri_path = parts.uri.path().to_owned();
        let raw_query = parts.uri.query().unwrap_or_default().to_owned();
        let user = self.impersonate(user, &parts).await?;
        self.authorize(&user, &attributes).await?;
        if let Some(more) = also_needed(&attributes, &parts.headers) {
            self.authorize(&user, &more).await?;
        }
        let incoming = Incoming {
            method: parts.method,
            headers: parts.headers,
            query,
            raw_query,
            user,
            who,
            upgrade,
            uri_path,
        };
        let response = self.answer(incoming, body, place).await?;
        // In flight until it has gone out; what is small goes into the socket at once.
        let size = response.body().size_hint().exact();
        Ok(match size.is_some_and(|size| size <= SMALL_ANSWER) {
            true => response,
            false => response.map(|body| reply::keeping(body, ticket)),
        })
    }

    async fn answer(
        self: &Arc<Self>,
        incoming: Incoming,
        body: Body,
        place: Place,
    ) -> Result<Response<Body>, Status> {
        match place {
            Place::Resource(path) => self.resource(incoming, body, path).await,
            Place::Remote(path) => self.remote(incoming, body, path).await,
            Place::Discovery(parts) => {
                self.documents
                    .discovery(&self.server, &incoming.headers, &parts)
            }
            Place::Other => {
                self.documents
                    .other(self, &incoming.uri_path, &incoming.headers, &incoming.query)
                    .await
            }
            Place::Nothing => Err(Status::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            )),
        }
    }

    /// What another server serves under this one's address.
    async fn remote(
        &self,
        incoming: Incoming,
        body: Body,
        path: RemotePath,
    ) -> Result<Response<Body>, Status> {
        let remote = self.server.remotes.find(&path.group, &path.version);
        let remote = remote
            .filter(|remote| remote.is_available())
            .ok_or_else(|| {
                let what = format!("{}/{}: service unavailable", path.group, path.version);
                Status::new(Reason::ServiceUnavailable, what)
            })?;
        let passing = super::streaming::Passing {
            method: incoming.method,
            headers: incoming.headers,
            body,
            upgrade: incoming.upgrade,
        };
        let target = (incoming.uri_path.as_str(), incoming.raw_query.as_str());
        send(&*self.server, &remote, &incoming.user, target, passing).await
    }

    /// Acting as somebody else needs the right to; from then on only the other's rights count.
    async fn impersonate(&self, user: User, parts: &http::request::Parts) -> Result<User, Status> {
        let Some(wanted) = super::authn::impersonation(parts)? else {
            return Ok(user);
        };
        for attributes in &wanted.checks {
            self.authorize(&user, attributes).await?;
        }
        Ok(wanted.user)
    }

    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<(), Status> {
        match self.authorizer.authorize(user, attributes).await {
            Decision::Allow { .. } => Ok(()),
            decision => Err(forbidden(user, attributes, &decision)),
        }
    }
}

/// A WebSocket can only be opened by GET, but what it opens is a POST's worth: who may only read
/// pods must not run commands in them.
fn also_needed(attributes: &Attributes, headers: &HeaderMap) -> Option<Attributes> {
    let Target::Resource {
        resource,
        subresource: Some(subresource),
        ..
    } = &attributes.target
    else {
        return None;
    };
    let opens = resource == "pods"
        && matches!(subresource.as_str(), "exec" | "attach" | "portforward")
        && attributes.verb == "get";
    let websocket = header_text(headers, &header::UPGRADE)
        .is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"));
    (opens && websocket).then(|| Attributes {
        verb: "create".to_owned(),
        ..attributes.clone()
    })
}

/// What is asked for, in the words of authorization.
fn attributes(method: &Method, place: &Place, path: &str, query: &Query) -> Attributes {
    let resource = match place {
        Place::Resource(resource) => resource,
        Place::Remote(remote) if !remote.resource.is_empty() => {
            return remote_attributes(method, remote, query);
        }
        _ => {
            return Attributes {
                verb: method.as_str().to_lowercase(),
                target: Target::Path(path.to_owned()),
            };
        }
    };
    let named = resource.name.clone().or_else(|| {
        if method == Method::POST {
            return None;
        }
        let selector = query.get("fieldSelector").unwrap_or_default();
        selector
            .split(',')
            .find_map(|part| part.strip_prefix("metadata.name="))
            .map(|name| name.trim_start_matches('=').to_owned())
    });
    Attributes {
        verb: verb(
            method,
            resource.name.is_some(),
            (resource.watch || query.flag("watch")) && resource.subresource.is_none(),
        )
        .to_owned(),
        target: Target::Resource {
            group: resource.row.group.to_owned(),
            version: resource.row.version.to_owned(),
            resource: resource.row.plural.to_owned(),
            subresource: resource.subresource.clone(),
            namespace: match (resource.row.plural, resource.row.group) {
                // A namespace is inside itself, so that a Role can speak of it.
                ("namespaces", "") => resource.name.clone(),
                _ => (!resource.namespace.is_empty()).then(|| resource.namespace.clone()),
            },
            name: named,
        },
    }
}

fn remote_attributes(method: &Method, path: &RemotePath, query: &Query) -> Attributes {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let watching = (path.watch || query.flag("watch")) && path.subresource.is_empty();
    Attributes {
        verb: verb(method, !path.name.is_empty(), watching).to_owned(),
        target: Target::Resource {
            group: path.group.clone(),
            version: path.version.clone(),
            resource: path.resource.clone(),
            subresource: some(&path.subresource),
            namespace: some(&path.namespace),
            name: some(&path.name),
        },
    }
}

fn verb(method: &Method, named: bool, watching: bool) -> &'static str {
    match (method.as_str(), named) {
        ("GET" | "HEAD", _) if watching => "watch",
        ("GET" | "HEAD", false) => "list",
        ("GET" | "HEAD", true) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", false) => "deletecollection",
        ("DELETE", true) => "delete",
        _ => "get",
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn failure(status: &Status, accept: Option<&str>) -> Response<Body> {
    let format = negotiate::negotiate(accept, false, negotiate::OBJECTS)
        .map_or(Format::Json { pretty: false }, |wanted| wanted.format);
    let value = status_value(status);
    let (content_type, bytes) = match super::encode::plain(
        &value,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        format,
    ) {
        Ok(encoded) => (encoded.content_type, encoded.bytes),
        Err(_) => ("application/json", value.to_string().into()),
    };
    let mut response = answer(status.code, content_type, full(bytes));
    let retry = status
        .details
        .as_ref()
        .and_then(|details: &Details| details.retry_after_seconds);
    if let Some(seconds) = retry {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// 429, in the words and the form of the original.
fn too_many() -> Response<Body> {
    let words = "Too many requests, please try again later.\n";
    let mut response = answer(429, "text/plain; charset=utf-8", full(words));
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn answer(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn not_allowed(path: &ResourcePath) -> Status {
    let mut status = Status::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    );
    status.details = Some(Details {
        group: path.row.group.to_owned(),
        kind: path.row.plural.to_owned(),
        ..Details::default()
    });
    status
}
