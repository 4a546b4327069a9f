//! Requests that are passed on: to the kubelet (log, exec, attach, portforward), or to a pod, a
//! service or a node (proxy).
//!
//! The server terminates nothing but a log over WebSocket: after a 101 the bytes go both ways
//! untouched, so that SPDY and WebSocket are the kubelet's business alone.
//! Called by `http::resources`, after authorization.
//! Always true:
//! - What says who the client is (tokens, impersonation) goes no further than here.
//! - Only addresses that were judged are connected to, and as a kubelet only who can prove to be
//!   one: the certificate that we show there opens much.
//!
//! `kubelet.rs` says where a pod's streams are, `target.rs` where a proxy's name leads, `reach.rs`
//! which addresses may be connected to, `headers.rs` what of a message's head is passed on,
//! `pass.rs` does the exchange, `links.rs` keeps the links of proxied pages inside the proxy.

mod headers;
mod kubelet;
mod links;
mod log_socket;
mod pass;
mod reach;
mod target;
mod tls;

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use futures::{Stream, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};

use links::{Links, Page};
pub use target::{encode_path, service_address};
pub use tls::trust_anyone;

use super::{
    query::Query,
    registry::Resource,
    response::{Body, BoxError, full},
    server::ApiServer,
    status::{Reason, Status},
};
use crate::pki;

/// A request to pass on.
pub struct Forward {
    pub row: &'static Resource,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
    /// The whole path asked for.
    pub path: String,
    /// What follows `proxy/` in the path.
    pub rest: String,
    pub method: Method,
    pub headers: HeaderMap,
    /// The query as it was understood, for what is ours to understand.
    pub options: Query,
    /// The query as it came, for a backend that is proxied to.
    pub query: String,
    pub body: Body,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// What of a request goes to another server.
pub struct Passing {
    pub method: Method,
    /// As the client sent them.
    pub headers: HeaderMap,
    /// What is said besides, in place of what the client may have said.
    pub ours: HeaderMap,
    pub body: Body,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl From<Forward> for Passing {
    fn from(forward: Forward) -> Self {
        Self {
            method: forward.method,
            headers: forward.headers,
            ours: HeaderMap::new(),
            body: forward.body,
            upgrade: forward.upgrade,
        }
    }
}

/// Knows how to reach kubelets and what runs on their nodes.
pub struct Proxy {
    /// Trusts the cluster's authority and shows the API server's client certificate.
    kubelet: Arc<rustls::ClientConfig>,
    /// For pods and services that speak TLS: their certificates are nobody's we know.
    anyone: Arc<rustls::ClientConfig>,
    /// Where this server's own node is.
    own: IpAddr,
}

/// Where a request goes, and how it is spoken to there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Location {
    host: String,
    port: u16,
    transport: Transport,
    /// With a leading slash, already percent-encoded.
    path: String,
    query: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Plain,
    /// TLS to a kubelet: both sides show certificates of the cluster.
    Kubelet,
    /// TLS to a workload, whose certificate is not checked.
    Workload,
}

impl Proxy {
    /// `kubelet`: TLS settings that trust kubelets' certificates and show one that they trust.
    /// Upgrades need HTTP/1.1, hence no other protocol is offered. `ca_pem`: the kubelets'
    /// authority. `own`: the address of this server's node.
    pub fn new(
        mut kubelet: rustls::ClientConfig,
        ca_pem: &str,
        own: IpAddr,
    ) -> Result<Self, pki::Error> {
        kubelet.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls::trust_only_kubelets(&mut kubelet, ca_pem)?;
        Ok(Self {
            kubelet: Arc::new(kubelet),
            anyone: Arc::new(tls::trusting_anyone()),
            own,
        })
    }

    pub fn forward<'a>(
        &'a self,
        server: &'a ApiServer,
        forward: Forward,
    ) -> BoxFuture<'a, Result<Response<Body>, Status>> {
        Box::pin(self.dispatch(server, forward))
    }

    async fn dispatch(
        &self,
        server: &ApiServer,
        forward: Forward,
    ) -> Result<Response<Body>, Status> {
        match (forward.row.plural, forward.subresource.as_str()) {
            ("pods", "log") => self.log(server, forward).await,
            ("pods", "exec" | "attach" | "portforward") => self.stream(server, forward).await,
            ("pods" | "services" | "nodes", "proxy") => {
                let wanted = target::Target {
                    row: forward.row,
                    namespace: &forward.namespace,
                    name: &forward.name,
                    rest: &forward.rest,
                    query: &forward.query,
                };
                let location = target::locate(server, wanted).await?;
                if let Some(redirect) = to_the_root(&forward) {
                    return Ok(redirect);
                }
                self.proxy(location, forward).await
            }
            _ => Err(Status::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            )),
        }
    }
}

impl Proxy {
    async fn proxy(
        &self,
        location: Location,
        mut forward: Forward,
    ) -> Result<Response<Body>, Status> {
        // What is compressed cannot be rewritten.
        forward.headers.remove(header::ACCEPT_ENCODING);
        let path = std::mem::take(&mut forward.path);
        let prefix = path.strip_suffix(&location.path);
        let prefix = prefix.unwrap_or(&path).to_owned();
        let asked = forward.headers.get(header::HOST);
        let asked = asked
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let mut passing = Passing::from(forward);
        for (name, value) in [("x-forwarded-uri", &*path), ("x-forwarded-host", &*asked)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                passing.ours.insert(HeaderName::from_static(name), value);
            }
        }
        let links = Links::new(&prefix, &location.address(), &asked);
        let response = self.pass(location, passing).await;
        let response = response.map_err(|error| not_reached(&error))?;
        Ok(through_the_proxy(response, links))
    }
}

/// Why there is no answer, to who asked for it.
pub fn not_reached(error: &pass::Error) -> Status {
    match error {
        pass::Error::NotAllowed => Status::bad_request(error.to_string()),
        error => {
            let what = format!("error trying to reach service: {error}");
            Status::new(Reason::ServiceUnavailable, what)
        }
    }
}

/// A page asked for without a slash at the end would have its relative links lead nowhere.
fn to_the_root(forward: &Forward) -> Option<Response<Body>> {
    let plain = matches!(forward.method, Method::GET | Method::HEAD) && forward.upgrade.is_none();
    if !plain || !forward.rest.is_empty() || forward.path.ends_with('/') {
        return None;
    }
    let target = match forward.query.as_str() {
        "" => format!("{}/", forward.path),
        query => format!("{}/?{query}", forward.path),
    };
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let target = HeaderValue::from_str(&target).ok()?;
    response.headers_mut().insert(header::LOCATION, target);
    Some(response)
}

/// The answer with links that stay inside the proxy.
fn through_the_proxy(mut response: Response<Body>, links: Links) -> Response<Body> {
    let text = |name: HeaderName| {
        let value = response.headers().get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if response.status().is_redirection() {
        let target = links.rewrite(text(header::LOCATION));
        if let Some(target) = target.and_then(|target| HeaderValue::from_str(&target).ok()) {
            response.headers_mut().insert(header::LOCATION, target);
        }
        return response;
    }
    let html = text(header::CONTENT_TYPE)
        .split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"));
    let plain = matches!(text(header::CONTENT_ENCODING), "" | "identity");
    if !html || !plain || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|body| {
        let mut page = Page::new(links);
        let mut body = body;
        let stream = async_stream::try_stream! {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    yield http_body::Frame::data(page.push(&data).into());
                }
            }
            yield http_body::Frame::data(page.finish().into());
        };
        StreamBody::new(Box::pin(stream) as BodyStream).boxed_unsync()
    })
}

type BodyStream =
    std::pin::Pin<Box<dyn Stream<Item = Result<http_body::Frame<Bytes>, BoxError>> + Send>>;
