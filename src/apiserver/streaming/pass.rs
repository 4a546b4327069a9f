//! One exchange with a backend: connect, send, hand the answer back; after a 101, copy bytes.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{Location, Passing, Proxy, Transport};
use crate::apiserver::response::{Body, full};

/// A backend that does not take the connection in this time is not there.
const CONNECT: Duration = Duration::from_secs(10);

/// Headers that speak of one connection only, or of who the client is.
const NOT_PASSED_ON: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
];
const IDENTITY: [&str; 2] = ["authorization", "cookie"];

/// Why a backend did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("dial tcp {address}: {reason}")]
    Dial { address: String, reason: String },
    #[error("{address}: {reason}")]
    Exchange { address: String, reason: String },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Location {
    pub(super) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Proxy {
    /// Sends the request to `location` and answers with what comes back.
    pub(super) async fn pass(
        &self,
        location: Location,
        passing: Passing,
    ) -> Result<Response<Body>, Error> {
        let address = location.address();
        let config = match location.transport {
            Transport::Plain => None,
            Transport::Kubelet => Some(&self.kubelet),
            Transport::Workload => Some(&self.anyone),
        };
        let tls = match config {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(location.host.clone());
                let name = name.map_err(|error| Error::dial(&address, error))?;
                Some((config.clone(), name))
            }
        };
        let stream = connect(&address, tls).await?;
        exchange(stream, &address, (&location.path, &location.query), passing).await
    }

    /// The same over TLS of the caller's own. `target`: path, already encoded, and query.
    pub async fn pass_over(
        address: &str,
        tls: Tls,
        target: (&str, &str),
        passing: Passing,
    ) -> Result<Response<Body>, Error> {
        let stream = connect(address, Some(tls)).await?;
        exchange(stream, address, target, passing).await
    }
}

/// Settings, and the name that the other side's certificate must have.
pub type Tls = (Arc<ClientConfig>, ServerName<'static>);

impl Error {
    fn dial(address: &str, reason: impl std::fmt::Display) -> Self {
        Self::Dial {
            address: address.to_owned(),
            reason: reason.to_string(),
        }
    }
}

async fn exchange(
    stream: Box<dyn Stream>,
    address: &str,
    target: (&str, &str),
    passing: Passing,
) -> Result<Response<Body>, Error> {
    let failed = |reason: String| Error::Exchange {
        address: address.to_owned(),
        reason,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend");
        }
    });
    let (request, upgrade) =
        request(address, target, passing).map_err(|error| failed(error.to_string()))?;
    let mut response = sender
        .send_request(request)
        .await
        .map_err(|error| failed(error.to_string()))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        strip(response.headers_mut());
        return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    let Some(client) = upgrade else {
        return Err(failed("switched protocols unasked".to_owned()));
    };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(copy(client, backend));
    Ok(response.map(|_| full("")))
}

async fn connect(address: &str, tls: Option<Tls>) -> Result<Box<dyn Stream>, Error> {
    let connecting = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| Error::dial(address, format!("connect: {error}")))?;
        // Keystrokes of an exec are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let Some((config, name)) = tls else {
            return Ok(Box::new(stream) as Box<dyn Stream>);
        };
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| Error::dial(address, error))?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(Error::dial(address, "i/o timeout")),
    }
}

type Outgoing = (Request<Body>, Option<hyper::upgrade::OnUpgrade>);

fn request(
    address: &str,
    (path, query): (&str, &str),
    passing: Passing,
) -> Result<Outgoing, http::Error> {
    let target = match query {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    };
    let wanted = passing
        .headers
        .get(header::UPGRADE)
        .filter(|_| passing.upgrade.is_some())
        .cloned();
    let mut headers = passing.headers;
    strip(&mut headers);
    for name in IDENTITY {
        headers.remove(name);
    }
    let impersonation: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in impersonation {
        headers.remove(name);
    }
    headers.insert(header::HOST, HeaderValue::from_str(address)?);
    let upgrading = wanted.is_some();
    if let Some(protocol) = wanted {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    // A body that is empty has no length to speak of; an upgrade has none at all.
    let body = if upgrading { full("") } else { passing.body };
    let mut request = Request::builder()
        .method(passing.method)
        .uri(target)
        .body(body)?;
    *request.headers_mut() = headers;
    Ok((request, passing.upgrade.filter(|_| upgrading)))
}

/// Takes away what concerns one connection only; those named in `Connection` too.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in NOT_PASSED_ON {
        headers.remove(name);
    }
}

/// Both directions until both have ended.
async fn copy(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => {
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
                tracing::debug!(%error, "a stream was cut off");
            }
        }
        Err(error) => tracing::debug!(%error, "an upgrade did not happen"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_the_client_is_stays_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "root"),
            ("connection", "keep-alive, x-mine"),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("host", "api:6443"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let passing = Passing {
            method: http::Method::GET,
            headers,
            body: full(""),
            upgrade: None,
        };
        let (request, _) = request("[fd00::1]:80", ("/x", "a=b"), passing).expect("a request");
        assert_eq!(request.uri(), "/x?a=b");
        let mut names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "x-other"]);
        assert_eq!(request.headers()["host"], "[fd00::1]:80");
    }
}
