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

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use nix::sys::socket::{setsockopt, sockopt};
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

/// A client that does not finish the handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The first request's head must be there after this.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// A connection without a request ends after this, also one with half a head.
const IDLE: Duration = Duration::from_secs(90);
/// An idle HTTP/2 client that was told to go has this long to do so.
const LINGER: Duration = Duration::from_secs(2);
/// How long the listener rests when it cannot accept (out of descriptors, say): longer each time.
const REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// That it cannot accept is logged so often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
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
                connection(stream, slot, shutdown, answer).await;
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
        self.accept(move |stream, slot| connection(stream, slot, shutdown.clone(), answer.clone()))
            .await;
    }

    async fn accept<F>(self, serve: impl Fn(Held, Arc<Slot>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let connections = Connections::new(self.limits);
        let tasks = TaskTracker::new();
        let mut failures = Failures::default();
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    failures.over();
                    // Who finds no place is cut off: an answer would cost more than the place.
                    let Some(slot) = connections.admit(from.ip()) else {
                        continue;
                    };
                    set_options(&stream);
                    let slot = Arc::new(slot);
                    let held = Held {
                        stream,
                        _slot: slot.clone(),
                    };
                    tasks.spawn(serve(held, slot));
                }
                Err(error) => {
                    connections.make_room();
                    tokio::time::sleep(failures.rest(&error)).await;
                }
            }
        }
        tasks.close();
        let _ = tokio::time::timeout(self.drain, tasks.wait()).await;
    }
}

/// Keystrokes of an exec are small and wanted at once; a peer that is gone is noticed.
fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &30);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &4);
}

/// Failures to accept in a row.
#[derive(Default)]
struct Failures {
    rest: Duration,
    untold: u64,
    told: Option<Instant>,
}

impl Failures {
    fn over(&mut self) {
        self.rest = Duration::ZERO;
    }

    /// How long to rest now.
    fn rest(&mut self, error: &io::Error) -> Duration {
        self.untold += 1;
        if self
            .told
            .is_none_or(|told| told.elapsed() >= COMPLAIN_EVERY)
        {
            tracing::warn!(%error, times = self.untold, "connections cannot be accepted");
            self.told = Some(Instant::now());
            self.untold = 0;
        }
        self.rest = (self.rest * 2).clamp(REST, LONGEST_REST);
        self.rest
    }
}

async fn connection<S, F, B>(
    stream: S,
    slot: Arc<Slot>,
    shutdown: CancellationToken,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let asked = slot.clone();
    let service = service_fn(move |request| {
        let asking = asked.ask();
        let answer = answer(request);
        async move {
            let response = answer.await;
            Ok::<_, Infallible>(response.map(|body| Answering {
                body,
                _asking: asking,
            }))
        }
    });
    let builder = builder();
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut going = false;
    loop {
        let look_again = slot.look_again(FIRST_REQUEST, IDLE);
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
            () = sleep_until(look_again) => {
                if !slot.is_overdue(FIRST_REQUEST, IDLE) {
                    continue;
                }
                // One that never asked anything is owed nothing.
                if slot.has_asked() {
                    serving.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(LINGER, serving.as_mut()).await;
                }
                break;
            }
        }
    }
    // An upgraded connection goes on elsewhere and keeps its place, whatever it is used for.
    slot.settle();
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_header_list_size(MAX_HTTP2_HEAD_BYTES)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN);
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

/// An answer's body: its connection is not idle before it has gone out.
struct Answering<B> {
    body: B,
    _asking: Asking,
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
