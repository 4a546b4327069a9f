//! Has what every cluster has there again, soon after somebody has taken it away: the `kubernetes`
//! Service with what it leads to, the range of its address, the namespaces, the roles, the priority
//! classes.
//!
//! Started by [`super::start::Handle::start`]; `bootstrap` says what that is, and writes it.
//! Always true: what is there stays as its owner left it, but for the Service's endpoints.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::select_all;
use tokio::sync::watch;

use super::{
    bootstrap::{self, Authorities, Roles},
    server::ApiServer,
    start::Config,
};
use crate::{
    backoff::Backoff,
    store::Revision,
    supervision::{Parts, Policy},
};

/// The check, as the original names it.
const PART: &str = "poststarthook/bootstrap-controller";
/// The kinds of what is kept, by storage.
const FOLLOWED: [&str; 11] = [
    "namespaces",
    "services",
    "endpoints",
    "endpointslices",
    "configmaps",
    "priorityclasses",
    "clusterroles",
    "clusterrolebindings",
    "roles",
    "rolebindings",
    "servicecidrs",
];
/// Changes that come in this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(500);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Kept {
    pub server: Weak<ApiServer>,
    pub config: Config,
    pub ca_pem: Arc<str>,
    pub front_proxy_ca_pem: Arc<str>,
}

impl Kept {
    /// Follows until the server is gone. `changes`: from before all of it was written.
    pub fn start(self, changes: Changes, parts: &Parts) {
        let first = AtomicBool::new(true);
        parts.start_endless(PART, Policy::Restart, move || {
            let (kept, changes) = (self.clone(), changes.clone());
            // Written just now, for the server's start.
            let written = first.swap(false, Ordering::Relaxed);
            async move {
                kept.follow(changes, written).await;
                std::future::pending().await // there is no server
            }
        });
    }

    async fn follow(&self, mut changes: Changes, written: bool) {
        if written && !changed(&mut changes).await {
            return;
        }
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            for kind in &mut changes {
                kind.borrow_and_update();
            }
            let Some(server) = self.server.upgrade() else {
                return;
            };
            let authorities = Authorities {
                cluster: &self.ca_pem,
                front_proxy: &self.front_proxy_ca_pem,
            };
            let written = bootstrap::write(&server, &self.config, authorities, Roles::Stay).await;
            drop(server);
            if let Err(error) = written {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what every cluster has is not there, will retry"
                );
                tokio::time::sleep(backoff.next_wait()).await;
                continue;
            }
            backoff.reset();
            if !changed(&mut changes).await {
                return;
            }
        }
    }
}

/// What tells that there may be something to do.
pub type Changes = [watch::Receiver<Revision>; FOLLOWED.len()];

pub fn changes(server: &ApiServer) -> Changes {
    FOLLOWED.map(|storage| server.cache.kind(storage).changes())
}

/// Waits for changes; false if there is no server any more.
async fn changed(changes: &mut Changes) -> bool {
    let any = changes.iter_mut().map(|kind| Box::pin(kind.changed()));
    if let (Err(_), ..) = select_all(any).await {
        return false;
    }
    tokio::time::sleep(TOGETHER).await;
    true
}
