//! The kubelet's listeners: TLS for everyone, plain for this machine's health checks.

use std::{sync::Arc, time::Duration};

use http::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Node, answer_health};
use crate::listener::{Certificates, Limits, Listener};

/// Requests under way at the end get this long.
const DRAIN: Duration = Duration::from_secs(1);

/// Connections at once, and their part of the process's descriptors (one in so many).
const CONNECTIONS: usize = 512;
const HEALTH_CONNECTIONS: usize = 64;
const OF_DESCRIPTORS: u64 = 8;

/// Serves until `shutdown`.
pub async fn tls(
    node: Arc<Node>,
    socket: TcpListener,
    config: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
) {
    let listener = Listener {
        socket,
        shutdown,
        drain: DRAIN,
        limits: Limits::new(CONNECTIONS, OF_DESCRIPTORS),
    };
    let answer = move |request: Request<Incoming>, certificates: Certificates| {
        let node = node.clone();
        async move {
            let shown = certificates.as_ref().map(|shown| shown.as_slice());
            node.answer(request, shown).await
        }
    };
    listener.tls(config, answer).await;
}

/// Serves the health checks, and nothing else, until `shutdown`.
pub async fn health(socket: TcpListener, shutdown: CancellationToken) {
    let listener = Listener {
        socket,
        shutdown,
        drain: DRAIN,
        limits: Limits::new(HEALTH_CONNECTIONS, OF_DESCRIPTORS),
    };
    listener
        .plain(|request: Request<Incoming>| async move { answer_health(&request) })
        .await;
}
