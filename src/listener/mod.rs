//! Listeners of HTTP/1.1 and HTTP/2, with upgrades: TLS, or plain; they end gracefully.
//!
//! Called by the API server and the kubelet. `connections.rs` decides which connection goes when
//! there are too many.
//! Always true: the number of connections is bounded, one that asks nothing ends, and the listener
//! goes on whatever its clients do.

mod connections;

use std::{
    convert::Infallible,
    error::Error,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header, response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use connections::Limits;
use connections::{Asking, Connections, Slot};

use crate::accepting::{self, Failures};

/// A client that does not finish the handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long clients may leave a connection unused.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// The first request's head must be there after this.
    first: Duration,
    /// A connection without a request ends after this, also one with half a head.
    idle: Duration,
    /// An idle HTTP/2 client that was told to go has this long to do so, and again after a request that it
    /// had sent before it heard of that.
    linger: Duration,
}

const PATIENCE: Patience = Patience {
    first: Duration::from_secs(10),
    idle: Duration::from_secs(90),
    linger: Duration::from_secs(2),
};
/// A request's head over HTTP/1.1, and a connection's buffer.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HTTP2_STREAMS: u32 = 250;
const MAX_HTTP2_HEAD_BYTES: u32 = 32 << 10;
/// Bytes of bodies that nobody has read yet: of a stream, and of a connection.
const HTTP2_STREAM_WINDOW: u32 = 256 << 10;
const HTTP2_WINDOW: u32 = 512 << 10;
/// An HTTP/2 peer is asked whether it is there so often, and must answer within this.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// The certificates that a client showed.
pub type Certificates = Option<Arc<Vec<CertificateDer<'static>>>>;

/// A listener, and when it ends.
pub struct Listener {
    pub socket: TcpListener,
    pub shutdown: CancellationToken,
    /// Requests under way at the end get this long.
    pub drain: Duration,
    pub limits: Limits,
}

impl Listener {
    /// Answers over TLS until the end.
    pub async fn tls<F, B>(
        self,
        config: Arc<rustls::ServerConfig>,
        answer: impl Fn(Request<Incoming>, Certificates) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
    {
        let acceptor = TlsAcceptor::from(config);
        let shutdown = self.shutdown.clone();
        self.accept(move |stream, slot| {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            let shutdown = shutdown.clone();
            async move {
                let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
                let stream = tokio::select! {
                    () = slot.evicted() => return,
                    shaken = handshake => match shaken {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
                        Err(_) => return,
                    },
                };
                let shown = stream.get_ref().1.peer_certificates();
                let certificates = shown.map(|shown| Arc::new(shown.to_vec()));
                let answer = move |request| answer(request, certificates.clone());
                connection(stream, slot, shutdown, PATIENCE, answer).await;
            }
        })
        .await;
    }

    /// Answers without TLS until the end.
    pub async fn plain<F, B>(
        self,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.accept(move |stream, slot| {
            connection(stream, slot, shutdown.clone(), PATIENCE, answer.clone())
        })
        .await;
    }

    async fn accept<F>(self, serve: impl Fn(Held, Arc<Slot>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let connections = Connections::new(self.limits);
        let tasks = TaskTracker::new();
        let mut failures = Failures::new("requests");
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    failures.over();
                    // Who finds no place is cut off: an answer would cost more than the place.
                    let Some(slot) = connections.admit(from.ip().to_canonical()) else {
                        continue;
                    };
                    accepting::set_options(&stream);
                    let slot = Arc::new(slot);
                    let held = Held {
                        stream,
                        _slot: slot.clone(),
                    };
                    tasks.spawn(serve(held, slot));
                }
                Err(error) => {
                    connections.make_room();
                    tokio::time::sleep(failures.rest(&error, Instant::now())).await;
                }
            }
        }
        tasks.close();
        let _ = tokio::time::timeout(self.drain, tasks.wait()).await;
    }
}

async fn connection<S, F, B>(
    stream: S,
    slot: Arc<Slot>,
    shutdown: CancellationToken,
    patience: Patience,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let asked = slot.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let asking = asked.ask();
        let method = request.method().clone();
        let answer = answer(request);
        async move {
            let (mut parts, body) = answer.await.into_parts();
            let body = carries_body(&method, &mut parts, &body).then_some(body);
            let answering = Answering {
                body,
                _asking: asking,
            };
            Ok::<_, Infallible>(Response::from_parts(parts, answering))
        }
    });
    let builder = builder(PING_EVERY, PONG_WITHIN);
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut going = false;
    let mut told_to_go = None;
    loop {
        let (idle, not_before) = match told_to_go {
            None => (patience.idle, None),
            Some(at) => (patience.linger, Some(at + patience.linger)),
        };
        let look_again = slot.look_again(patience.first, idle);
        tokio::select! {
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection");
                }
                break;
            }
            () = slot.evicted() => break,
            () = shutdown.cancelled(), if !going => {
                going = true;
                serving.as_mut().graceful_shutdown();
            }
            () = sleep_until(look_again.max(not_before.unwrap_or(look_again))) => {
                if !slot.is_overdue(patience.first, idle) {
                    continue;
                }
                // One that never asked anything is owed nothing.
                if told_to_go.is_some() || !slot.has_asked() {
                    break;
                }
                serving.as_mut().graceful_shutdown();
                told_to_go = Some(Instant::now());
            }
        }
    }
    // An upgraded connection goes on elsewhere and keeps its place, whatever it is used for.
    slot.settle();
}

/// Whether an answer may have a body: one to HEAD, 204 and 304 has none, whoever made it. HTTP/2
/// clients take one for a broken stream. HEAD tells how long the body would be.
fn carries_body(method: &Method, parts: &mut response::Parts, body: &impl Body) -> bool {
    if matches!(
        parts.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    ) {
        return false;
    }
    if *method != Method::HEAD {
        return true;
    }
    if let Some(length) = body.size_hint().exact() {
        parts
            .headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(length.into());
    }
    false
}

fn builder(ping_every: Duration, pong_within: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE.idle)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_header_list_size(MAX_HTTP2_HEAD_BYTES)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .keep_alive_interval(ping_every)
        .keep_alive_timeout(pong_within);
    builder
}

/// A connection's socket and the place it takes, also after an upgrade.
struct Held {
    stream: TcpStream,
    _slot: Arc<Slot>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer's body, if it has one: its connection is not idle before it has gone out.
struct Answering<B> {
    body: Option<B>,
    _asking: Asking,
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(Body::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use nix::sys::socket::{getsockopt, sockopt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn which_answers_have_a_body() {
        for (method, status, body, length) in [
            (Method::GET, 200, true, None),
            (Method::GET, 204, false, None),
            (Method::GET, 304, false, None),
            (Method::POST, 401, true, None),
            (Method::HEAD, 200, false, Some("2")),
            (Method::HEAD, 401, false, Some("2")),
            (Method::HEAD, 304, false, None),
        ] {
            let response = Response::builder().status(status).body(());
            let (mut parts, ()) = response.unwrap().into_parts();
            let full = Full::new(bytes::Bytes::from_static(b"ok"));
            assert_eq!(
                carries_body(&method, &mut parts, &full),
                body,
                "{method} {status}"
            );
            let given = parts.headers.get(header::CONTENT_LENGTH);
            assert_eq!(given.map(|length| length.to_str().unwrap()), length);
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        accepting::set_options(&stream);
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(), 30);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepInterval).unwrap(), 15);
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount).unwrap(), 4);

        // Its kernel acknowledges, but it never answers a ping.
        let (every, within) = (Duration::from_millis(50), Duration::from_millis(50));
        let serving = tokio::spawn(async move {
            let answer = service_fn(async |_: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::new())))
            });
            let builder = builder(every, within);
            builder.serve_connection(TokioIo::new(stream), answer).await
        });
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        client.write_all(&settings).await.unwrap();
        let mut said = Vec::new();
        let end = client.read_to_end(&mut said);
        tokio::time::timeout(Duration::from_secs(10), end)
            .await
            .unwrap()
            .unwrap();
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0];
        assert!(
            said.windows(ping.len()).any(|frame| frame == ping),
            "{said:?}"
        );
        assert!(serving.await.unwrap().is_err());
    }

    /// What a client asks before it has read that the server wants it to go is answered.
    #[tokio::test]
    async fn a_request_that_crosses_the_goodbye_is_answered() {
        const PATIENCE: Patience = Patience {
            first: Duration::from_secs(10),
            idle: Duration::from_millis(100),
            linger: Duration::from_millis(100),
        };
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let limits = Connections::new(Limits::new(16, 2));
        let slot = limits.admit(std::net::Ipv4Addr::LOCALHOST.into()).unwrap();
        let serving = tokio::spawn(connection(
            server,
            Arc::new(slot),
            CancellationToken::new(),
            PATIENCE,
            async |request: Request<Incoming>| {
                if request.uri().path() == "/index.html" {
                    tokio::time::sleep(PATIENCE.linger * 5).await;
                }
                Response::new(Full::new(bytes::Bytes::new()))
            },
        ));
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const HEADERS: u8 = 1;
        const GOODBYE: u8 = 7;
        /// A request's only frame: GET, http, a path of the table (4: `/`, 5: `/index.html`).
        fn get(stream: u8, path: u8) -> [u8; 12] {
            [
                0,
                0,
                3,
                HEADERS,
                5,
                0,
                0,
                0,
                stream,
                0x82,
                0x86,
                0x80 + path,
            ]
        }
        async fn read_to(
            client: &mut tokio::io::DuplexStream,
            kind: u8,
            stream: u8,
        ) -> io::Result<()> {
            loop {
                let mut head = [0; 9];
                client.read_exact(&mut head).await?;
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                client.read_exact(&mut vec![0; length]).await?;
                if (head[3], head[8]) == (kind, stream) {
                    return Ok(());
                }
            }
        }
        let mut asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        asked.extend(SETTINGS);
        asked.extend(get(1, 4));
        client.write_all(&asked).await.unwrap();
        read_to(&mut client, HEADERS, 1).await.unwrap();
        read_to(&mut client, GOODBYE, 0).await.unwrap();
        // Sent before the goodbye was read, as far as the server knows.
        client.write_all(&get(3, 5)).await.unwrap();
        read_to(&mut client, HEADERS, 3).await.unwrap();
        drop(client);
        serving.await.unwrap();
    }
}
