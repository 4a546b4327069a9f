//! The frontend on its TLS listener.

use std::{sync::Arc, time::Duration};

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Frontend, Peer};
use crate::listener::{Limits, Listener};

/// Requests under way at the end get this long.
const DRAIN: Duration = Duration::from_secs(3);

/// Connections at once, and their part of the process's descriptors (one in so many).
const CONNECTIONS: usize = 2048;
const OF_DESCRIPTORS: u64 = 4;

/// Serves until `shutdown`.
pub async fn serve(
    frontend: Arc<Frontend>,
    socket: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
) {
    let listener = Listener {
        socket,
        shutdown,
        drain: DRAIN,
        limits: Limits::new(CONNECTIONS, OF_DESCRIPTORS),
    };
    let answer = move |request: Request<Incoming>, certificates| {
        let frontend = frontend.clone();
        async move {
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            frontend.handle(request, Peer::Remote(certificates)).await
        }
    };
    listener.tls(tls, answer).await;
}
