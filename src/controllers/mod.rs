//! Controllers: each brings one kind of object nearer to what is wanted.
//!
//! A folder or file each; `shared.rs` is the loop they share, `dependents` writes what belongs to
//! their objects. Called by `cli`; they know the API client and the informers only.
//! Always true: every controller may be stopped at any moment and goes on from what the API shows.

mod certificates;
mod cluster_role;
mod cron_job;
mod daemon;
mod dependents;
mod deployment;
mod disruption;
mod endpoint;
mod endpoints;
mod endpointslice;
mod error;
mod garbage;
mod hash;
mod history;
mod job;
mod namespace;
mod node;
mod percent;
mod pod_gc;
mod pods;
mod replicas;
mod revisions;
mod root_ca;
mod served;
mod service_account;
mod shared;
mod stateful;
mod token;
mod ttl_after_finished;
mod volume;
mod written;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use self::certificates::{Authority, Requested};
use crate::informer::Informers;

/// What the controllers are told at start.
#[derive(Clone)]
pub struct Config {
    /// The cluster's certificate authority, published in every namespace.
    pub ca_pem: String,
    /// Signs the tokens that Secrets hold.
    pub make_token: MakeToken,
    /// Reads and signs certificate requests with the cluster's key.
    pub authority: Arc<dyn Authority>,
}

/// Makes a token, or says why not. Not for threads that others need: a signature takes a while.
pub type MakeToken = Arc<dyn Fn(&TokenFor<'_>) -> Result<String, String> + Send + Sync>;

/// Whose token it is, and which Secret will hold it.
#[derive(Clone, Copy, Debug)]
pub struct TokenFor<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub secret: &'a str,
}

/// Runs every controller until `shutdown`.
pub async fn run(informers: Informers, config: Config, shutdown: CancellationToken) {
    tokio::join!(
        namespace::run(informers.clone(), shutdown.clone()),
        service_account::run(informers.clone(), shutdown.clone()),
        root_ca::run(informers.clone(), config.ca_pem.clone(), shutdown.clone()),
        certificates::run(
            informers.clone(),
            config.authority.clone(),
            shutdown.clone()
        ),
        token::run(informers.clone(), config, shutdown.clone()),
        deployment::run(informers.clone(), shutdown.clone()),
        replicas::run(informers.clone(), shutdown.clone()),
        endpointslice::run(informers.clone(), shutdown.clone()),
        endpoints::run(informers.clone(), shutdown.clone()),
        daemon::run(informers.clone(), shutdown.clone()),
        job::run(informers.clone(), shutdown.clone()),
        node::run(informers.clone(), shutdown.clone()),
        pod_gc::run(informers.clone(), shutdown.clone()),
        ttl_after_finished::run(informers.clone(), shutdown.clone()),
        garbage::run(informers.clone(), shutdown.clone()),
        cluster_role::run(informers.clone(), shutdown.clone()),
        stateful::run(informers.clone(), shutdown.clone()),
        cron_job::run(informers.clone(), shutdown.clone()),
        disruption::run(informers.clone(), shutdown.clone()),
        volume::run(informers.clone(), shutdown.clone()),
    );
}
