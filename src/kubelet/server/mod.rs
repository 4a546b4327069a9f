//! The kubelet's own API over TLS: logs, exec, attach, portforward, stats, health.
//!
//! Called by the API server (through `apiserver::streaming`) and by monitoring. Reads pods through
//! [`super::Pods`] and the runtime; changes nothing.

use std::{path::PathBuf, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Pods;
use crate::runtime::Runtime;

#[derive(Clone)]
pub struct Server {
    pub node: String,
    pub pods: Arc<dyn Pods>,
    pub runtime: Runtime,
    /// As in [`super::Config::log_dir`].
    pub log_dir: PathBuf,
    /// For TokenReview and SubjectAccessReview of who comes without a certificate of the API server.
    pub client: kube::Client,
}

impl Server {
    /// Serves until told to stop. `tls` asks for client certificates and verifies them if given.
    pub async fn serve(
        self,
        _listener: TcpListener,
        _tls: Arc<rustls::ServerConfig>,
        _shutdown: CancellationToken,
    ) -> Result<(), super::Error> {
        Err(super::Error::Unsupported("kubelet server"))
    }
}
