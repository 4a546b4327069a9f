//! Putting the API server together: store, cache, who may, what is admitted, and what must exist.
//!
//! Called by `cli` and by tests. [`Handle::client`] is how the components of this process reach
//! the API; [`Handle::serve`] is for everybody else.

use std::{net::IpAddr, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    admission::{CertificateSigners, NodeRestriction, Plugin},
    aggregation::Aggregator,
    authn::{
        Authenticator, DEFAULT_ISSUER, SelfSubjectReviews, TokenIssuer, TokenRequests, TokenReviews,
    },
    authz::{
        Authorizer, EscalationGuard, LocalSubjectAccessReviews, SelfSubjectAccessReviews,
        SelfSubjectRulesReviews, SubjectAccessReviews,
    },
    bootstrap,
    cache::Cache,
    definitions::Keeper,
    http::{self, Documents, Frontend},
    kept::{self, Kept},
    request::User,
    server::ApiServer,
    special::Special,
    status::Status,
    streaming::Proxy,
};
use crate::{
    addresses::family::PerFamily,
    pki::{self, Leaf, Live, Pki},
    store::{self, Store},
    supervision::{Parts, Policy},
};

/// The name under which the kubelets know the API server.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// What the server must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients outside and inside the cluster reach this server.
    pub advertise: IpAddr,
    pub port: u16,
    pub services: PerFamily<ipnet::IpNet>,
}

/// Why the server did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the store")]
    Store(#[from] store::Error),
    #[error("certificates of the API server")]
    Pki(#[from] pki::Error),
    #[error("{0} has no address for the kubernetes service")]
    Services(ipnet::IpNet),
    #[error("write {what}")]
    Bootstrap { what: String, source: Box<Status> },
}

/// A running API server. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub server: Arc<ApiServer>,
    pub frontend: Arc<Frontend>,
    pub issuer: Arc<TokenIssuer>,
    pub authorizer: Arc<Authorizer>,
    /// What health checks tell of.
    parts: Parts,
    config: Config,
    ca_pem: Arc<str>,
    front_proxy_ca_pem: Arc<str>,
    front: Arc<Live>,
}

impl Handle {
    /// As [`Handle::with_parts`], alone in its process.
    pub async fn new(
        config: Config,
        store: Arc<dyn Store>,
        pki: &Pki,
        more: Vec<Arc<dyn Special>>,
    ) -> Result<Self, Error> {
        Self::with_parts(config, store, pki, more, &Parts::default()).await
    }

    /// Reads the store and is ready to answer. `more`: handlers besides the server's own. What it runs
    /// are some of `parts`, and its health checks tell of all of them.
    pub async fn with_parts(
        config: Config,
        store: Arc<dyn Store>,
        pki: &Pki,
        more: Vec<Arc<dyn Special>>,
        parts: &Parts,
    ) -> Result<Self, Error> {
        let cache = Cache::start(store.clone(), parts).await?;
        // What is acknowledged is on disk: without its writer nothing can go on.
        parts.start_endless("etcd", Policy::Exit, move || {
            let store = store.clone();
            async move { store.failed().await }
        });
        let server = Arc::new(ApiServer::new(cache));
        let issuer = Arc::new(TokenIssuer::new(pki.token_keys(), DEFAULT_ISSUER));
        let authenticator = Authenticator::new(issuer.clone(), pki.clients()?, server.clone());
        let authenticator = Arc::new(authenticator);
        let authorizer = Arc::new(Authorizer::new(server.clone()));
        let mut specials: Vec<Arc<dyn Special>> = vec![
            Arc::new(TokenReviews(authenticator.clone())),
            Arc::new(SelfSubjectReviews),
            Arc::new(TokenRequests(issuer.clone())),
            Arc::new(SubjectAccessReviews(authorizer.clone())),
            Arc::new(LocalSubjectAccessReviews(authorizer.clone())),
            Arc::new(SelfSubjectAccessReviews(authorizer.clone())),
            Arc::new(SelfSubjectRulesReviews(authorizer.clone())),
        ];
        specials.extend(more);
        server.set_specials(specials);
        let leaf = Leaf::client(KUBELET_CLIENT, &[super::authz::MASTERS]);
        let identity = pki.live(KUBELET_CLIENT, leaf)?;
        let frontend = Frontend {
            server: server.clone(),
            authenticator,
            authorizer: authorizer.clone(),
            documents: Documents::new(address(config.advertise, config.port)),
            proxy: Proxy::new(
                pki::live_client_config(pki.ca_pem(), identity)?,
                pki.ca_pem(),
                config.advertise,
            )?,
            counters: http::Counters::default(),
            parts: parts.clone(),
            limits: http::Inflight::default(),
        };
        Ok(Self {
            server,
            frontend: Arc::new(frontend),
            issuer,
            authorizer,
            parts: parts.clone(),
            config,
            ca_pem: pki.ca_pem().into(),
            front_proxy_ca_pem: pki.front_proxy_ca_pem().into(),
            front: pki.front_proxy()?,
        })
    }

    /// Sets the chain of admission, the guards that ask the authorizer first, and writes what every
    /// cluster has. Call once, before anyone is served.
    pub async fn start(&self, plugins: Vec<Arc<dyn Plugin>>) -> Result<(), Error> {
        let guards: [Arc<dyn Plugin>; 3] = [
            Arc::new(EscalationGuard(self.authorizer.clone())),
            Arc::new(NodeRestriction(self.authorizer.clone())),
            Arc::new(CertificateSigners(self.authorizer.clone())),
        ];
        for plugin in &plugins {
            plugin.authorizer(&self.authorizer);
        }
        self.server
            .set_plugins(guards.into_iter().chain(plugins).collect());
        let authorities = bootstrap::Authorities {
            cluster: &self.ca_pem,
            front_proxy: &self.front_proxy_ca_pem,
        };
        let changes = kept::changes(&self.server);
        let roles = bootstrap::Roles::Complete;
        bootstrap::write(&self.server, &self.config, authorities, roles).await?;
        for plugin in self.server.plugins() {
            plugin.started(&self.parts);
        }
        Keeper::start(&self.server, &self.parts).await;
        Aggregator::start(&self.server, self.front.clone(), &self.parts);
        let kept = Kept {
            server: Arc::downgrade(&self.server),
            config: self.config.clone(),
            ca_pem: self.ca_pem.clone(),
            front_proxy_ca_pem: self.front_proxy_ca_pem.clone(),
        };
        kept.start(changes, &self.parts);
        Ok(())
    }

    /// A client inside this process.
    pub fn client(&self, user: User) -> kube::Client {
        http::client(self.frontend.clone(), user)
    }

    /// Serves over TLS until `shutdown`.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) {
        http::serve(self.frontend.clone(), listener, tls, shutdown).await;
    }
}

/// The user that the server itself is.
pub fn own_user() -> User {
    User::internal("system:apiserver", &[super::authz::MASTERS])
}

fn address(host: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(host, port).to_string()
}
