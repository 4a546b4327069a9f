//! Listeners: TLS for everyone, plain for this machine's health checks.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Node, answer::Body, answer_health};

/// A client that does not finish the handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Requests under way at the end get this long.
const DRAIN: Duration = Duration::from_secs(1);
const MAX_HTTP2_STREAMS: u32 = 250;

/// Serves until `shutdown`.
pub async fn tls(
    node: Arc<Node>,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    accept(listener, shutdown, move |stream, connections| {
        let (acceptor, node) = (acceptor.clone(), node.clone());
        async move {
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
                Err(_) => return,
            };
            let shown = stream.get_ref().1.peer_certificates();
            let certificate = Arc::new(shown.and_then(|shown| shown.first()).cloned());
            let answer = move |request| {
                let (node, certificate) = (node.clone(), certificate.clone());
                async move { node.answer(request, (*certificate).as_ref()).await }
            };
            connection(stream, connections, answer).await;
        }
    })
    .await;
}

/// Serves the health checks, and nothing else, until `shutdown`.
pub async fn health(listener: TcpListener, shutdown: CancellationToken) {
    accept(listener, shutdown, |stream, connections| {
        let answer = |request| async move { answer_health(&request) };
        connection(stream, connections, answer)
    })
    .await;
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    shutdown: CancellationToken,
    serve: impl Fn(TcpStream, Arc<GracefulShutdown>) -> F,
) {
    let connections = Arc::new(GracefulShutdown::new());
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, say: give the others time to end.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Keystrokes of an exec are small and wanted at once.
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream, connections.clone()));
    }
    if let Some(connections) = Arc::into_inner(connections) {
        let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
    }
}

async fn connection<S, F>(
    stream: S,
    connections: Arc<GracefulShutdown>,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
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
    let watched = connections.watch(connection);
    // The list of connections ends with the last holder of it.
    drop(connections);
    if let Err(error) = watched.await {
        tracing::debug!(%error, "connection");
    }
}
