//! One exchange with a backend: connect, send, hand the answer back; after a 101, copy bytes.
//!
//! Bodies go through piece by piece, as fast as the slower side takes them. Nothing that a backend
//! sends is kept: its answer's head is bounded, and a redirect is the client's to follow.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use super::{
    Location, Passing, Proxy, Transport, headers,
    reach::{self, CONNECT, Reach, resolve},
};
use crate::apiserver::response::{Body, full};

/// What a backend may send before its answer begins: headers, and any number of interim answers.
const MAX_HEAD_BYTES: i64 = 1 << 20;
/// A stream on which neither side says anything for so long is ended, as kubelets do.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// Why a backend did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is somewhere that nobody may be sent to on somebody else's word.
    #[error("address not allowed")]
    NotAllowed,
    #[error("dial tcp {address}: {reason}")]
    Dial { address: String, reason: String },
    #[error("{address}: {reason}")]
    Exchange { address: String, reason: String },
}

impl Error {
    pub(super) fn dial(address: &str, reason: impl std::fmt::Display) -> Self {
        Self::Dial {
            address: address.to_owned(),
            reason: reason.to_string(),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Settings, and the name that the other side's certificate must have.
pub type Tls = (Arc<ClientConfig>, ServerName<'static>);

impl Location {
    pub(super) fn address(&self) -> String {
        reach::host_port(&self.host, self.port)
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
        let (config, reach) = match location.transport {
            Transport::Plain => (None, Reach::Workload),
            Transport::Workload => (Some(&self.anyone), Reach::Workload),
            Transport::Kubelet => (Some(&self.kubelet), Reach::Kubelet { own: self.own }),
        };
        let tls = match config {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(location.host.clone());
                let name = name.map_err(|error| Error::dial(&address, error))?;
                Some((config.clone(), name))
            }
        };
        let found = resolve(&location.host, location.port, reach).await?;
        let stream = connect(&address, &found, tls, CONNECT).await?;
        exchange(stream, &address, (&location.path, &location.query), passing).await
    }

    /// The same over TLS of the caller's own, to an address that was judged. `target`: path,
    /// already encoded, and query.
    pub async fn pass_over(
        address: SocketAddr,
        tls: Tls,
        target: (&str, &str),
        passing: Passing,
    ) -> Result<Response<Body>, Error> {
        let name = address.to_string();
        let stream = connect(&name, &[address], Some(tls), CONNECT).await?;
        exchange(stream, &name, target, passing).await
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
    let head = Arc::new(AtomicI64::new(MAX_HEAD_BYTES));
    let stream = Metered {
        stream,
        left: head.clone(),
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
    head.store(i64::MAX, Ordering::Relaxed);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::answer(response.headers_mut());
        return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    let Some((client, asked)) = upgrade else {
        return Err(failed("switched protocols unasked".to_owned()));
    };
    let backend = hyper::upgrade::on(&mut response);
    if headers::switching(response.headers_mut(), &asked).is_none() {
        let why = format!("switched to another protocol than {asked:?}");
        return Err(failed(why));
    }
    tokio::spawn(copy(client, backend));
    Ok(response.map(|_| full("")))
}

async fn connect(
    address: &str,
    found: &[SocketAddr],
    tls: Option<Tls>,
    within: Duration,
) -> Result<Box<dyn Stream>, Error> {
    let connecting = async {
        let stream = reach::connect(found).await?;
        let Some((config, name)) = tls else {
            return Ok(Box::new(stream) as Box<dyn Stream>);
        };
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| Error::dial(address, error))?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    match tokio::time::timeout(within, connecting).await {
        Ok(result) => result,
        Err(_) => Err(Error::dial(address, "i/o timeout")),
    }
}

/// The client's side of an upgrade, and the protocols it asks for.
type Upgrade = (hyper::upgrade::OnUpgrade, HeaderValue);

fn request(
    address: &str,
    (path, query): (&str, &str),
    passing: Passing,
) -> Result<(Request<Body>, Option<Upgrade>), http::Error> {
    let target = match query {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    };
    let asked = passing.headers.get(header::UPGRADE).cloned();
    let upgrade = passing.upgrade.zip(asked);
    let host = HeaderValue::from_str(address)?;
    let protocols = upgrade.as_ref().map(|(_, protocols)| protocols);
    let headers = headers::request(passing.headers, passing.ours, host, protocols);
    let body = if upgrade.is_some() {
        full("")
    } else {
        passing.body
    };
    let mut request = Request::builder()
        .method(passing.method)
        .uri(target)
        .body(body)?;
    *request.headers_mut() = headers;
    Ok((request, upgrade))
}

async fn copy(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => {
            exchange_bytes(TokioIo::new(client), TokioIo::new(backend), IDLE).await
        }
        Err(error) => tracing::debug!(%error, "an upgrade did not happen"),
    }
}

/// Both directions until both have ended, or nothing has been said for `idle`.
async fn exchange_bytes<S: AsyncRead + AsyncWrite + Unpin>(client: S, backend: S, idle: Duration) {
    let (said, mut heard) = watch::channel(());
    let listened = |stream| Listened {
        stream,
        said: said.clone(),
    };
    let (mut client, mut backend) = (listened(client), listened(backend));
    let silence = async {
        while tokio::time::timeout(idle, heard.changed()).await.is_ok() {
            // Looked at again when the time is over, not with every byte.
            tokio::time::sleep(idle / 240).await;
        }
    };
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut backend) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "a stream was cut off");
            }
        }
        () = silence => tracing::debug!("a stream was idle for too long"),
    }
}

/// A stream from which only so much may be read.
struct Metered {
    stream: Box<dyn Stream>,
    left: Arc<AtomicI64>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.load(Ordering::Relaxed) <= 0 {
            let what = format!("the answer's head is over {MAX_HEAD_BYTES} bytes");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let taken = buffer.filled().len() - before;
        let taken = i64::try_from(taken).unwrap_or(i64::MAX);
        self.left.fetch_sub(taken, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A stream that tells when something was read from it.
struct Listened<S> {
    stream: S,
    said: watch::Sender<()>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.said.send_replace(());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listened<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// It takes the connection, and says nothing after that.
    #[tokio::test]
    async fn a_backend_that_does_not_shake_hands_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::from(address.ip());
        let tls = Some((Arc::new(config), name));
        let found = [address];
        let connecting = connect("backend:1", &found, tls, SOON);
        let failed = tokio::time::timeout(PATIENCE, connecting).await.unwrap();
        let why = failed.err().map(|error| error.to_string());
        assert_eq!(why.as_deref(), Some("dial tcp backend:1: i/o timeout"));
    }

    #[tokio::test]
    async fn an_idle_stream_ends_and_a_busy_one_goes_on() {
        let (mut client, ours) = duplex(64);
        let (theirs, mut backend) = duplex(64);
        let idle = 20 * SOON;
        let copying = tokio::spawn(exchange_bytes(ours, theirs, idle));
        // Longer than it may be idle, but never silent for long.
        for _ in 0..40 {
            client.write_all(b"x").await.unwrap();
            let mut byte = [0];
            backend.read_exact(&mut byte).await.unwrap();
            tokio::time::sleep(SOON).await;
        }
        assert!(!copying.is_finished());
        let begun = tokio::time::Instant::now();
        tokio::time::timeout(PATIENCE, copying)
            .await
            .unwrap()
            .unwrap();
        assert!(begun.elapsed() > idle / 2);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}
