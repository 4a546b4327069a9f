//! HTTP in front of the verbs: who asks, for what, in which form; and the answer.
//!
//! `path.rs` names what a URL means, `asked.rs` what is to be done and which rights that takes;
//! `documents.rs` answers what is no resource, `resources.rs` the rest, with `body.rs` to read
//! requests and `reply.rs` to answer them. `inflight.rs` says how much of all this there may be at
//! once. `serve.rs` has the listener and `local.rs` the way
//! without a socket.

mod asked;
mod body;
mod components;
mod connect;
mod counters;
mod documents;
mod health;
mod inflight;
mod local;
mod metrics;
mod path;
mod reply;
mod resources;
mod serve;
mod understood;

pub use counters::Counters;
pub use documents::Documents;
pub use inflight::Inflight;
pub use local::client;
pub use serve::serve;
pub use understood::{Served, Understood, understand};

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use rustls_pki_types::CertificateDer;

use super::{
    aggregation::send,
    authn::Authenticator,
    authz::{Authorizer, Decision, forbidden},
    negotiate::{self, Format},
    query::Query,
    request::{Attributes, User},
    response::{Body, full, status_value},
    server::ApiServer,
    status::{Details, Status},
};
use asked::{Action, Asked, Passed};
use counters::Labels;
use inflight::{Kind, REQUEST_TIMEOUT, Who};
use path::{Names, ResourcePath};

/// Bytes of an answer that is not waited for.
const SMALL_ANSWER: u64 = 16 << 10;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A component of this process.
    Internal(Arc<User>),
    /// A connection, with the certificates that the client showed, not judged yet.
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
    /// What the health checks tell of.
    pub parts: crate::supervision::Parts,
    pub limits: Inflight,
}

/// What handlers see of a request beside its [`Action`]; its body, still to be read, goes beside it.
struct Incoming {
    headers: HeaderMap,
    /// Without what was understood of it already.
    query: Query,
    user: User,
    /// Who shares this request's limits.
    who: Who,
    /// The component of this process that asks.
    component: Option<&'static str>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// A request understood, with what its handler will see of it besides.
struct Pending {
    asked: Asked,
    query: Query,
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
        let mut query = Query::parse(request.uri().query().unwrap_or_default());
        let asked = Asked::new(
            request.method(),
            request.uri(),
            &mut query,
            request.headers(),
            (&self.server.rows, &self.server.remotes),
        );
        let labels = Labels::new(asked.path(), asked.verb(), &query);
        let begun = std::time::Instant::now();
        let inflight = self.counters.begin(&labels);
        let kind = Kind::of(&asked);
        let pending = Pending {
            asked,
            query,
            kind,
            upgrade,
        };
        let version = request.version();
        let (this, kind) = (self.clone(), pending.kind);
        let work = async move { this.respond(request, peer, pending).await };
        let mut response = match inflight::in_time(kind, REQUEST_TIMEOUT, work).await {
            Ok(response) => response,
            Err(status) => failure(&status, accept.as_deref()),
        };
        // What is left of a body that is too large is not read.
        if response.status() == StatusCode::PAYLOAD_TOO_LARGE && version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        let mut response = match inflight.is_held() {
            true => response.map(|body| reply::keeping(body, inflight)),
            false => {
                drop(inflight);
                response
            }
        };
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

    async fn respond(
        self: &Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        pending: Pending,
    ) -> Result<Response<Body>, Status> {
        let Pending {
            asked,
            query,
            kind,
            upgrade,
        } = pending;
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
        let component = match &peer {
            Peer::Internal(user) => Some(component(user)),
            Peer::Remote(_) => None,
        };
        let Some(ticket) = self.limits.enter(kind, &who) else {
            return Ok(too_many());
        };
        let user = self.impersonate(user, &parts).await?;
        let granted = asked.granted(user, &self.authorizer).await?;
        let (user, action) = granted.into_parts();
        let incoming = Incoming {
            headers: parts.headers,
            query,
            user,
            who,
            component,
            upgrade,
        };
        let response = self.answer(incoming, body, action).await?;
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
        action: Action,
    ) -> Result<Response<Body>, Status> {
        match action {
            Action::Resource(path, operation) => {
                self.resource(incoming, body, path, operation).await
            }
            Action::Connect(path, passed) => self.connect(incoming, body, path, passed).await,
            Action::Remote(names, passed) => self.remote(incoming, body, names, passed).await,
            Action::Discovery(parts) => {
                self.documents
                    .discovery(&self.server, &incoming.headers, &parts)
            }
            Action::Document(path) => {
                self.documents
                    .other(self, &path, &incoming.headers, &incoming.query)
                    .await
            }
            Action::Refused(status) => Err(status),
        }
    }

    /// What another server serves under this one's address.
    async fn remote(
        &self,
        incoming: Incoming,
        body: Body,
        names: Names,
        passed: Passed,
    ) -> Result<Response<Body>, Status> {
        let remote = self.server.remotes.find(&names.group, &names.version);
        let remote = remote
            .filter(|remote| remote.is_available())
            .ok_or_else(|| {
                let what = format!("{}/{}: service unavailable", names.group, names.version);
                Status::new(super::status::Reason::ServiceUnavailable, what)
            })?;
        let passing = super::streaming::Passing {
            method: passed.method,
            headers: incoming.headers,
            ours: HeaderMap::new(),
            body,
            upgrade: incoming.upgrade.filter(|_| passed.upgrades),
        };
        let target = (passed.path.as_str(), passed.query.as_str());
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

/// The name under which a component of this process owns fields: the original's.
fn component(user: &User) -> &'static str {
    match user.name.as_str() {
        "system:kube-scheduler" => "kube-scheduler",
        "system:kube-controller-manager" => "kube-controller-manager",
        name if name.starts_with("system:serviceaccount:kube-system:") => "kube-controller-manager",
        name if name.starts_with("system:node:") => "kubelet",
        _ => "vetch",
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
    asked::not_allowed(path.row.group, path.row.plural)
}
