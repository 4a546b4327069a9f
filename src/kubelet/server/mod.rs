//! The kubelet's own API over TLS: logs, exec, attach, portforward, stats, health.
//!
//! Called by the API server (through `apiserver::streaming`) and by monitoring. Reads pods through
//! [`super::Pods`] and the runtime; changes nothing.
//! Always true: nothing is answered to who is not known and allowed, health not either; that is for
//! everybody on a listener of its own, on loopback.
//!
//! `route.rs` says which path means what, `auth.rs` who may, `lookup.rs` which container;
//! `logs/` and `streams/` do the work.

mod answer;
mod auth;
mod configz;
mod logs;
mod lookup;
mod pods;
mod query;
mod route;
mod serve;
mod sessions;
mod stats;
mod streams;

use std::{path::PathBuf, sync::Arc};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{
    answer::{Answer, Body},
    auth::Auth,
    query::Query,
    route::{Metrics, Route},
    sessions::Sessions,
    streams::Kind,
};
use super::{Pods, probe::Prober, stats::Stats};
use crate::{pki::Clients, runtime::Runtime};

#[derive(Clone)]
pub struct Server {
    pub node: String,
    pub pods: Arc<dyn Pods>,
    pub runtime: Runtime,
    /// The pods' folders `<namespace>_<name>_<uid>` lie in it.
    pub log_dir: PathBuf,
    /// For TokenReview and SubjectAccessReview of who comes without a certificate of the API server.
    pub client: kube::Client,
    /// Says whom a client's certificate names.
    pub clients: Arc<Clients>,
}

impl Server {
    /// Serves until told to stop. `tls` asks for client certificates.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), super::Error> {
        let node = Node::new(self, None, None);
        serve::tls(Arc::new(node), listener, tls, shutdown).await;
        Ok(())
    }

    /// As [`Server::serve`], and tells the node's settings at `/configz`, what its probes found at
    /// `/metrics/probes`.
    pub async fn serve_with(
        self,
        config: super::Config,
        prober: Prober,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), super::Error> {
        let node = Arc::new(Node::new(self, Some(config), Some(prober)));
        serve::tls(node, listener, tls, shutdown).await;
        Ok(())
    }

    /// Serves health checks without TLS and without asking who it is; for a listener on loopback.
    pub async fn serve_health(
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), super::Error> {
        serve::health(listener, shutdown).await;
        Ok(())
    }
}

/// The server with what it remembers.
struct Node {
    server: Server,
    auth: Auth,
    config: Option<super::Config>,
    prober: Option<Prober>,
    stats: Stats,
    sessions: Sessions,
}

impl Node {
    fn new(server: Server, config: Option<super::Config>, prober: Option<Prober>) -> Self {
        let auth = Auth::new(
            server.node.clone(),
            server.client.clone(),
            server.clients.clone(),
        );
        let stats = Stats::new(
            server.runtime.clone(),
            server.pods.clone(),
            server.node.clone(),
            config.as_ref().map(|config| config.state_dir.clone()),
        );
        Self {
            server,
            auth,
            config,
            prober,
            stats,
            sessions: Sessions::default(),
        }
    }

    /// `shown`: the client's certificates, not judged yet.
    async fn answer(
        &self,
        request: Request<Incoming>,
        shown: Option<&[CertificateDer<'static>]>,
    ) -> Response<Body> {
        match self.dispatch(request, shown).await {
            Ok(response) => response,
            Err(answer) => answer.response(),
        }
    }

    async fn dispatch(
        &self,
        request: Request<Incoming>,
        shown: Option<&[CertificateDer<'static>]>,
    ) -> Result<Response<Body>, Answer> {
        let route = route(&request)?;
        let headers = request.headers();
        self.auth.check(shown, headers, &route.right()).await?;
        let (server, sessions) = (&self.server, &self.sessions);
        let query = Query::parse(request.uri());
        match &route {
            Route::Health => Ok(health()),
            Route::Pods => pods::bound(server),
            Route::RunningPods => pods::running(server).await,
            Route::Logs(target) => logs::logs(server, sessions, &query, target).await,
            Route::Exec(target) => {
                streams::command(server, sessions, request, target, Kind::Exec).await
            }
            Route::Attach(target) => {
                streams::command(server, sessions, request, target, Kind::Attach).await
            }
            Route::PortForward(target) => streams::forward(server, sessions, request, target).await,
            Route::Run(target) => streams::run(server, sessions, &query, target).await,
            Route::Configz => match &self.config {
                Some(config) => configz::configz(config),
                None => Err(unsupported(&request)),
            },
            Route::StatsSummary => stats::summary(&self.stats, &query).await,
            Route::Metrics(Metrics::Resource) => stats::resource(&self.stats).await,
            Route::Metrics(Metrics::Cadvisor) => stats::cadvisor(&self.stats).await,
            Route::Metrics(Metrics::Kubelet) => stats::kubelet(&self.stats).await,
            Route::Metrics(Metrics::Probes) => match &self.prober {
                Some(prober) => Ok(stats::probes(prober)),
                None => Err(unsupported(&request)),
            },
        }
    }
}

fn unsupported(request: &Request<Incoming>) -> Answer {
    let path = request.uri().path();
    let message = format!("{path} is not supported by this node");
    Answer::new(StatusCode::NOT_IMPLEMENTED, message)
}

/// Health and nothing else.
fn answer_health(request: &Request<Incoming>) -> Response<Body> {
    match route(request) {
        Ok(Route::Health) => health(),
        Ok(_) => Answer::not_found("404 page not found").response(),
        Err(answer) => answer.response(),
    }
}

fn route(request: &Request<Incoming>) -> Result<Route, Answer> {
    let route = Route::parse(request.uri().path())
        .ok_or_else(|| Answer::not_found("404 page not found"))?;
    match route.allows(request.method()) {
        true => Ok(route),
        false => Err(Answer::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "405: Method Not Allowed",
        )),
    }
}

/// That this is answered is what is asked; nothing here runs in a loop that could stand still.
fn health() -> Response<Body> {
    answer::text(StatusCode::OK, "ok")
}
