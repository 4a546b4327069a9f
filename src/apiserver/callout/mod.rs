//! Calls from the API server to programs that take part in it: webhooks of admission and of
//! conversion.
//!
//! Called by admission and by custom resources. A [`Caller`] is made once of a `clientConfig` and
//! keeps its connections.
//! Always true: TLS only; the other side's certificate is checked against the configuration's
//! authority, or the host's where it names none; no answer is read past [`MAX_ANSWER_BYTES`].

use std::{
    error::Error as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::pki_types::ServerName;
use serde_json::Value;

use super::{
    objects::Lookup,
    registry::kinds::value::{has, number, text},
    status::Reason,
    streaming,
};
use crate::pki::{self, Live};

/// A patch may be as large as an object, and is told in base64.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// A host whose connections are not used for so long is forgotten.
const IDLE: Duration = Duration::from_secs(60);

/// Why a call came to nothing. Says which URL.
#[derive(Debug, thiserror::Error)]
#[error("Post {url:?}: {reason}")]
pub struct Error {
    url: String,
    reason: String,
}

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// One program that can be called.
pub struct Caller {
    place: Place,
    /// What is wrong with the configuration is told with each call.
    client: Result<Https, String>,
}

enum Place {
    Url(String),
    Service {
        namespace: String,
        name: String,
        port: i64,
        path: String,
    },
}

impl Caller {
    /// `config`: a `WebhookClientConfig`, defaulted.
    pub fn new(config: &Value) -> Self {
        let place = match has(config, "service") {
            true => Place::Service {
                namespace: text(config, "service.namespace").to_owned(),
                name: text(config, "service.name").to_owned(),
                port: number(config, "service.port").unwrap_or(443),
                path: text(config, "service.path").to_owned(),
            },
            false => Place::Url(text(config, "url").to_owned()),
        };
        let client = client(&place, text(config, "caBundle"));
        Self { place, client }
    }

    /// Posts JSON and reads JSON; `asked` is put into the query so that the other side knows.
    pub async fn post(
        &self,
        lookup: &dyn Lookup,
        body: &Value,
        timeout: Duration,
        asked: Option<u64>,
    ) -> Result<Value, Error> {
        let query = asked.map_or(String::new(), |seconds| format!("?timeout={seconds}s"));
        let url = match &self.place {
            Place::Url(url) => format!("{url}{query}"),
            Place::Service {
                namespace,
                name,
                port,
                path,
            } => format!("https://{name}.{namespace}.svc:{port}{path}{query}"),
        };
        let exchange = self.exchange(lookup, body, &query);
        let done = match tokio::time::timeout(timeout, exchange).await {
            Ok(done) => done,
            Err(_) => Err("context deadline exceeded".to_owned()),
        };
        done.map_err(|reason| Error { url, reason })
    }

    async fn exchange(
        &self,
        lookup: &dyn Lookup,
        body: &Value,
        query: &str,
    ) -> Result<Value, String> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let (url, host) = match &self.place {
            Place::Url(url) => (format!("{url}{query}"), None),
            Place::Service {
                namespace,
                name,
                port,
                path,
            } => {
                let address = streaming::service_address(lookup, namespace, name, *port)
                    .await
                    .map_err(|status| match status.reason == Reason::NotFound {
                        true => format!("service {name:?} not found"),
                        false => status.message,
                    })?;
                let path = if path.is_empty() { "/" } else { path };
                let host = format!("{name}.{namespace}.svc:{port}");
                (format!("https://{address}{path}{query}"), Some(host))
            }
        };
        let mut request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission");
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| error.to_string())?;
        let response = client.request(request).await.map_err(innermost)?;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let bytes = body.collect().await.map_err(|error| error.to_string())?;
        let bytes = bytes.to_bytes();
        if !code.is_success() {
            let said = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned();
            return Err(format!("the server answered {code}: {}", said.trim()));
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("the answer is not JSON: {error}"))
    }
}

/// The client's own words say only that something failed; the reason is at the bottom.
fn innermost(error: hyper_util::client::legacy::Error) -> String {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match error.source() {
        Some(_) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn client(place: &Place, bundle: &str) -> Result<Https, String> {
    let pem = match bundle {
        "" => None,
        bundle => {
            let pem = BASE64_STANDARD.decode(bundle);
            let pem = pem.map_err(|error| format!("caBundle is not base64: {error}"))?;
            Some(String::from_utf8_lossy(&pem).into_owned())
        }
    };
    let mut tls = client_config(pem.as_deref(), None)?;
    // The connector says itself what it speaks.
    tls.alpn_protocols.clear();
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only();
    let builder = match place {
        Place::Url(_) => builder,
        Place::Service {
            namespace, name, ..
        } => {
            let server = ServerName::try_from(format!("{name}.{namespace}.svc"));
            let server = server.map_err(|error| format!("{name}.{namespace}.svc: {error}"))?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(server))
        }
    };
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.enforce_http(false);
    Ok(Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .build(builder.enable_http1().wrap_connector(http)))
}

/// TLS settings that trust an authority, or what the host trusts where none is named.
pub fn client_config(
    ca_pem: Option<&str>,
    identity: Option<&Arc<Live>>,
) -> Result<rustls::ClientConfig, String> {
    static HOST: OnceLock<String> = OnceLock::new();
    let ca_pem = ca_pem.unwrap_or_else(|| HOST.get_or_init(host_authorities));
    let config = match identity {
        Some(identity) => pki::live_client_config(ca_pem, identity.clone()),
        None => pki::client_config(ca_pem, None),
    };
    config.map_err(|error| format!("caBundle: {error}"))
}

fn host_authorities() -> String {
    let found = rustls_native_certs::load_native_certs().certs;
    found
        .iter()
        .map(|certificate| pki::pem(certificate))
        .collect()
}
