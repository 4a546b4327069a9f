//! Listeners of HTTP/1.1 and HTTP/2, with upgrades: TLS, or plain; they end gracefully.

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A client that does not finish the handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the listener rests when it cannot accept: out of descriptors, say.
const REST: Duration = Duration::from_millis(50);
const MAX_HTTP2_STREAMS: u32 = 250;

/// The certificates that a client showed.
pub type Certificates = Option<Arc<Vec<CertificateDer<'static>>>>;

/// A listener, and when it ends.
pub struct Listener {
    pub socket: TcpListener,
    pub shutdown: CancellationToken,
    /// Requests under way at the end get this long.
    pub drain: Duration,
}

impl Listener {
    /// Answers over TLS until the end.
    pub async fn tls<F, B>(
        self,
        config: Arc<rustls::ServerConfig>,
        answer: impl Fn(Request<Incoming>, Certificates) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let acceptor = TlsAcceptor::from(config);
        self.accept(move |stream, watcher| {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            async move {
                let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
                    Err(_) => return,
                };
                let shown = stream.get_ref().1.peer_certificates();
                let certificates = shown.map(|shown| Arc::new(shown.to_vec()));
                let answer = move |request| answer(request, certificates.clone());
                connection(stream, watcher, answer).await;
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
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        self.accept(move |stream, watcher| connection(stream, watcher, answer.clone()))
            .await;
    }

    async fn accept<F>(self, serve: impl Fn(TcpStream, Watcher) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let connections = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Keystrokes of an exec are small and wanted at once.
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(serve(stream, connections.watcher()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(REST).await;
                }
            }
        }
        let _ = tokio::time::timeout(self.drain, connections.shutdown()).await;
    }
}

async fn connection<S, F, B>(
    stream: S,
    watcher: Watcher,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_HTTP2_STREAMS);
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection");
    }
}
