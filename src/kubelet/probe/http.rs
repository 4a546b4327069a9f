//! `httpGet`: a status from 200 to 399 is a good answer.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::{ClientConfig, crypto::CryptoProvider, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Target, tcp};
use crate::any_certificate::AnyCertificate;

const MAX_REDIRECTS: usize = 10;
/// So much of an answer is read; what it says does not matter.
const MAX_BODY: usize = 10 << 10;
const USER_AGENT: &str = "kube-probe/1.37";

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Where an answer sends us; `None` if that is another host.
    fn follow(&self, location: &str) -> Option<Self> {
        let uri: Uri = location.parse().ok()?;
        let path = match uri.path_and_query().map(|path| path.as_str()) {
            None | Some("") => "/",
            Some(path) => path,
        };
        let Some(host) = uri.host() else {
            return Some(Self {
                path: path.into(),
                ..self.clone()
            });
        };
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = host.trim_matches(['[', ']']);
        (host == self.host).then(|| Self {
            tls,
            host: host.into(),
            port,
            path: path.into(),
        })
    }
}

pub async fn run(target: &Target, action: &HTTPGetAction, timeout: Duration) -> Result<(), String> {
    let path = action.path.as_deref().unwrap_or("/");
    let host = match action.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None => target.address()?.to_string(),
    };
    let place = Place {
        tls: action.scheme.as_deref() == Some("HTTPS"),
        host,
        port: target.port(&action.port)?,
        path: if path.starts_with('/') {
            path.into()
        } else {
            format!("/{path}")
        },
    };
    let url = place.url();
    match tokio::time::timeout(timeout, ask(target, action, place, timeout)).await {
        Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => Ok(()),
        Ok(Ok(status)) => Err(format!(
            "HTTP probe failed with statuscode: {}",
            status.as_u16()
        )),
        Ok(Err(error)) => Err(format!("Get {url:?}: {error}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// Asks and follows redirects on the same host.
async fn ask(
    target: &Target,
    action: &HTTPGetAction,
    mut place: Place,
    timeout: Duration,
) -> Result<StatusCode, String> {
    for _ in 0..=MAX_REDIRECTS {
        let response = get(target, action, &place, timeout).await?;
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|location| location.to_str().ok());
        let status = response.status();
        match location.filter(|_| status.is_redirection()) {
            None => {
                // Read, so that the server does not see its answer refused.
                let _ = Limited::new(response.into_body(), MAX_BODY).collect().await;
                return Ok(status);
            }
            Some(location) => match place.follow(location) {
                Some(next) => place = next,
                // Where another host leads is not this container's business.
                None => return Ok(status),
            },
        }
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

async fn get(
    target: &Target,
    action: &HTTPGetAction,
    place: &Place,
    timeout: Duration,
) -> Result<Response<Incoming>, String> {
    let stream = tcp::connect(target, Some(&place.host), place.port, timeout).await?;
    let request = request(action, place)?;
    match place.tls {
        false => send(TokioIo::new(stream), request).await,
        true => send(TokioIo::new(secure(stream, &place.host).await?), request).await,
    }
}

fn request(action: &HTTPGetAction, place: &Place) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(&place.path)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    for own in action.http_headers.iter().flatten() {
        let name: HeaderName = own.name.parse().map_err(|_| bad_header(&own.name))?;
        let value = HeaderValue::from_str(&own.value).map_err(|_| bad_header(&own.name))?;
        // The first of a name takes the place of ours.
        match name == header::USER_AGENT || name == header::ACCEPT {
            true => drop(headers.insert(name, value)),
            false => drop(headers.append(name, value)),
        }
    }
    if !headers.contains_key(header::HOST) {
        let host = HeaderValue::from_str(&place.authority()).map_err(|error| error.to_string())?;
        headers.insert(header::HOST, host);
    }
    Ok(request)
}

fn bad_header(name: &str) -> String {
    format!("the header {name:?} cannot be sent")
}

async fn send<S>(
    io: TokioIo<S>,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    // Ends with the connection, which the server is asked to close.
    tokio::spawn(connection);
    sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())
}

/// A probe asks whether somebody answers, not who: certificates are not checked, as everywhere in
/// Kubernetes.
async fn secure(
    stream: TcpStream,
    host: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(&provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::HTTPHeader, apimachinery::pkg::util::intstr::IntOrString};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn where_redirects_lead() {
        let place = Place {
            tls: false,
            host: "10.0.0.1".into(),
            port: 80,
            path: "/a".into(),
        };
        for (location, want) in [
            ("/b?c=d", Some("http://10.0.0.1:80/b?c=d")),
            ("http://10.0.0.1:81/", Some("http://10.0.0.1:81/")),
            ("https://10.0.0.1/x", Some("https://10.0.0.1:443/x")),
            ("http://example.com/", None),
        ] {
            let got = place.follow(location).map(|place| place.url());
            assert_eq!(got.as_deref(), want, "{location}");
        }
    }

    /// Answers each connection with the next of `answers`; returns the requests.
    async fn serve(listener: tokio::net::TcpListener, answers: Vec<&'static str>) -> Vec<String> {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            requests.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    }

    async fn probe(answers: Vec<&'static str>) -> (Result<(), String>, Vec<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(serve(listener, answers));
        let target = crate::kubelet::probe::target("127.0.0.1".parse().unwrap(), json!([]));
        let header = |name: &str, value: &str| HTTPHeader {
            name: name.into(),
            value: value.into(),
        };
        let action = HTTPGetAction {
            path: Some("/health".into()),
            port: IntOrString::Int(port.into()),
            http_headers: Some(vec![header("Host", "me"), header("X-A", "b")]),
            ..HTTPGetAction::default()
        };
        let result = run(&target, &action, Duration::from_secs(5)).await;
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn statuses_redirects_and_headers() {
        let (result, requests) = probe(vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(result, Ok(()));
        let request = requests[0].to_lowercase();
        for want in [
            "get /health http/1.1",
            "host: me",
            "x-a: b",
            "user-agent: kube-probe/1.37",
        ] {
            assert!(request.contains(want), "{want} in {request}");
        }
        let (result, _) = probe(vec!["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(
            result.unwrap_err(),
            "HTTP probe failed with statuscode: 503"
        );
        let (result, requests) = probe(vec![
            "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        assert_eq!((result, requests.len()), (Ok(()), 1));
    }

    #[tokio::test]
    async fn nobody_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let target = crate::kubelet::probe::target("127.0.0.1".parse().unwrap(), json!([]));
        let action = HTTPGetAction {
            port: IntOrString::Int(port.into()),
            ..HTTPGetAction::default()
        };
        let error = run(&target, &action, Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(
            error,
            format!(
                "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
    }
}
