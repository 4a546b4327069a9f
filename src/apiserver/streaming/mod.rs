//! Requests that are passed on: to the kubelet (log, exec, attach, portforward), or to a pod, a
//! service or a node (proxy).
//!
//! The server terminates nothing: after a 101 the bytes go both ways untouched, so that SPDY and
//! WebSocket are the kubelet's business alone.
//! Called by `http::resources`, after authorization.
//! Always true: what says who the client is (tokens, impersonation) goes no further than here.
//!
//! `kubelet.rs` says where a pod's streams are, `target.rs` where a proxy's name leads,
//! `pass.rs` does the exchange.

mod kubelet;
mod pass;
mod target;
mod tls;

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{HeaderMap, Method, Response};

use super::{
    registry::Resource,
    response::Body,
    server::ApiServer,
    status::{Reason, Status},
};

/// A request to pass on.
pub struct Forward {
    pub row: &'static Resource,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
    /// What follows `proxy/` in the path.
    pub rest: String,
    pub method: Method,
    pub headers: HeaderMap,
    /// The raw query string.
    pub query: String,
    pub body: Body,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// Knows how to reach kubelets and what runs on their nodes.
pub struct Proxy {
    /// Trusts the cluster's authority and shows the API server's client certificate.
    kubelet: Arc<rustls::ClientConfig>,
    /// For pods and services that speak TLS: their certificates are nobody's we know.
    anyone: Arc<rustls::ClientConfig>,
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
    /// Upgrades need HTTP/1.1, hence no other protocol is offered.
    pub fn new(mut kubelet: rustls::ClientConfig) -> Self {
        kubelet.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            kubelet: Arc::new(kubelet),
            anyone: Arc::new(tls::trusting_anyone()),
        }
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
                self.pass(location, forward).await.map_err(|error| {
                    let what = format!("error trying to reach service: {error}");
                    Status::new(Reason::ServiceUnavailable, what)
                })
            }
            _ => Err(Status::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            )),
        }
    }
}
