//! Controllers: each brings one kind of object nearer to what is wanted.
//!
//! A folder or file each; `shared.rs` is the loop they share. Called by `cli`; they know the API
//! client and the informers only.
//! Always true: every controller may be stopped at any moment and goes on from what the API shows.

mod deployment;
mod error;
mod events;
mod hash;
mod percent;
mod pods;
mod queue;
mod replicas;
mod shared;
mod written;

use tokio_util::sync::CancellationToken;

use crate::informer::Informers;

/// What the controllers are told at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's certificate authority, published in every namespace.
    pub ca_pem: String,
}

/// Runs every controller until `shutdown`.
pub async fn run(informers: Informers, config: Config, shutdown: CancellationToken) {
    tokio::join!(
        replicas::run(informers.clone(), shutdown.clone()),
        deployment::run(informers.clone(), shutdown.clone()),
    );
    drop(config);
}
