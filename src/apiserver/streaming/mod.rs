//! Requests that are passed on: to the kubelet (log, exec, attach, portforward), or to a pod, a
//! service or a node (proxy).
//!
//! The server terminates nothing: after a 101 the bytes go both ways untouched, so that SPDY and
//! WebSocket are the kubelet's business alone.

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

/// Knows how to reach kubelets.
#[derive(Debug)]
pub struct Proxy {}

impl Proxy {
    pub async fn forward(
        &self,
        _server: &ApiServer,
        forward: Forward,
    ) -> Result<Response<Body>, Status> {
        Err(Status::new(
            Reason::ServiceUnavailable,
            format!(
                "{}/{} cannot be passed on yet",
                forward.row.plural, forward.subresource
            ),
        ))
    }
}
