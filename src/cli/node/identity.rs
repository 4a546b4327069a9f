//! Who the parts of a node are to the API server, and how it answers.

use std::sync::Arc;

use kube::Client;

use super::Config;
use crate::{
    apiserver::{request::User, start::Handle},
    cli::Error,
    informer::Informers,
    pki::{self, Clients, Held, Leaf, Pki},
    supervision::Parts,
};

/// A client for each part that acts as somebody of its own, and what the node's own API answers with.
#[derive(Clone)]
pub struct Identity {
    pub kubelet: Client,
    pub proxy: Client,
    /// Makes the folders of claims.
    pub local_volumes: Client,
    pub serving: Arc<rustls::ServerConfig>,
    /// Whose certificates are good.
    pub clients: Arc<Clients>,
    pub place: Place,
}

/// Where the API server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Here,
    /// On another machine.
    Elsewhere,
}

impl Place {
    pub fn informers(self, owner: &'static str, client: Client, parts: Parts) -> Informers {
        let informers = Informers::of(owner, client, parts);
        match self {
            Self::Here => informers.beside_the_server(),
            Self::Elsewhere => informers,
        }
    }
}

impl Identity {
    /// Of a node in the API server's own process.
    pub fn beside(config: &Config, handle: &Handle, pki: &Pki) -> Result<Self, Error> {
        let node = User::internal(&format!("system:node:{}", config.name), &["system:nodes"]);
        let account = User::service_account("kube-system", "local-volumes");
        let addresses: Vec<_> = config.addresses.iter().copied().collect();
        let leaf = Leaf::kubelet_serving(&config.name, &addresses);
        Ok(Self {
            kubelet: handle.client(node),
            proxy: handle.client(User::internal("system:kube-proxy", &[])),
            local_volumes: handle.client(account),
            serving: Arc::new(pki::server_config(pki, leaf)?),
            clients: pki.clients()?,
            place: Place::Here,
        })
    }

    /// Of a node whose API server is on another machine.
    pub fn joined(
        node: &Client,
        proxy: &Client,
        ca_pem: &str,
        serving: Arc<Held>,
    ) -> Result<Self, Error> {
        Ok(Self {
            kubelet: node.clone(),
            proxy: proxy.clone(),
            local_volumes: node.clone(),
            serving: Arc::new(pki::server_config_with(ca_pem, serving)?),
            clients: Arc::new(Clients::new(ca_pem)?),
            place: Place::Elsewhere,
        })
    }
}
