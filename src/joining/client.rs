//! A client of a cluster that runs elsewhere, with a certificate that is renewed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Hyper, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Client, client::Body};

use crate::pki::{self, Held};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A server that is gone without a word is noticed after so long, also by who only waits for answers.
const SILENT: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// What was sent and is not acknowledged after this is lost, and so is the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Talks to the first of `servers` (`https://host:port`), and to the next one when that cannot be
/// connected to.
pub fn client(servers: &[Uri], ca_pem: &str, identity: Arc<Held>) -> Result<Client, pki::Error> {
    let mut tls = pki::live_client_config(ca_pem, identity)?;
    // The connector says itself what it speaks: each watch has a connection of its own, so that no number
    // of them keeps others waiting.
    tls.alpn_protocols.clear();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_WITHIN));
    http.set_keepalive(Some(SILENT));
    http.set_keepalive_interval(Some(PROBE_EVERY));
    http.set_keepalive_retries(Some(PROBES));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .wrap_connector(http);
    let remote = Remote {
        hyper: Hyper::builder(TokioExecutor::new()).build(https),
        servers: servers.into(),
        current: Arc::default(),
    };
    Ok(Client::new(remote, "default"))
}

#[derive(Clone)]
struct Remote {
    hyper: Hyper<HttpsConnector<HttpConnector>, Body>,
    servers: Arc<[Uri]>,
    current: Arc<AtomicUsize>,
}

impl tower::Service<Request<Body>> for Remote {
    type Response = Response<Incoming>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let index = this.current.load(Ordering::Relaxed);
            let server = this.servers.get(index % this.servers.len().max(1));
            let server = server.ok_or("there is no server to ask")?;
            *request.uri_mut() = at(server, request.uri().path_and_query())?;
            let answer = this.hyper.request(request).await;
            if answer.as_ref().is_err_and(Error::is_connect) {
                // Whoever asks again asks the next one; of many that fail at once, one moves on.
                let _ = this.current.compare_exchange(
                    index,
                    index.wrapping_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
            Ok(answer?)
        })
    }
}

fn at(server: &Uri, path: Option<&PathAndQuery>) -> Result<Uri, http::Error> {
    let authority = server
        .authority()
        .map_or("", |authority| authority.as_str());
    Uri::builder()
        .scheme("https")
        .authority(authority)
        .path_and_query(path.map_or("/", PathAndQuery::as_str))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_request_goes() {
        let server: Uri = "https://192.0.2.1:6443".parse().expect("an address");
        let path = Uri::from_static("/api/v1/nodes?watch=1");
        let uri = at(&server, path.path_and_query()).expect("an address");
        assert_eq!(uri, "https://192.0.2.1:6443/api/v1/nodes?watch=1");
        assert_eq!(
            at(&server, None).expect("an address"),
            "https://192.0.2.1:6443/"
        );
        assert!(at(&Uri::from_static("/x"), None).is_err());
    }
}
