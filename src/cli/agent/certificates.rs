//! Certificates of the node, renewed in time.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kube::Client;
use tokio_util::sync::CancellationToken;

use super::super::Error;
use crate::{
    addresses::family::PerFamily,
    causes::causes,
    joining::{
        certificate::{self, Purpose},
        membership::Membership,
    },
    pki::{self, Due, Held, LOOK, RETRY, Rounds},
};

const SIGNED_WITHIN: Duration = Duration::from_secs(60);

/// What is renewed.
#[derive(Clone)]
pub struct Kept {
    pub client: Client,
    pub membership: Membership,
    /// Where that is kept.
    pub record: PathBuf,
    pub known_by: Arc<Held>,
    pub serving: Arc<Held>,
    pub proxy_known_by: Arc<Held>,
    pub addresses: PerFamily<IpAddr>,
}

impl Kept {
    /// Until `shutdown`.
    pub async fn renew(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut rounds = Rounds::new();
        loop {
            let wait = match self.renew_due().await {
                Ok(wait) => wait,
                Err(error) => {
                    let error = causes(error.as_ref());
                    tracing::warn!(
                        error,
                        "a certificate of this node was not renewed, will retry"
                    );
                    RETRY
                }
            };
            if !rounds.next(wait, &shutdown).await {
                return Ok(());
            }
        }
    }

    /// Renews what is due; when to look again.
    async fn renew_due(&mut self) -> Result<Duration, Error> {
        let now = SystemTime::now();
        let ends = pki::ends(self.membership.ca.as_bytes()).unwrap_or(now);
        let addresses: Vec<_> = self.addresses.iter().copied().collect();
        let mut next = LOOK;
        let all = [
            Purpose::Client,
            Purpose::Serving(&addresses),
            Purpose::Proxy,
        ];
        for purpose in all {
            let held = match purpose {
                Purpose::Client => &self.known_by,
                Purpose::Serving(_) => &self.serving,
                Purpose::Proxy => &self.proxy_known_by,
            };
            // A machine may have got another address since.
            let due = match purpose {
                Purpose::Serving(addresses) if !held.is_for(addresses) => Due::Now,
                _ => held.due(ends, now),
            };
            match due {
                Due::Never => {}
                Due::At(at) => next = next.min(at.duration_since(now).unwrap_or_default()),
                Due::Now => {
                    let name = &self.membership.node;
                    let client = self.client.clone();
                    let new = certificate::request(client, name, purpose, SIGNED_WITHIN).await?;
                    held.replace(new.clone())?;
                    match purpose {
                        Purpose::Client => self.membership.client = new.into(),
                        Purpose::Serving(_) => self.membership.serving = Some(new.into()),
                        Purpose::Proxy => self.membership.proxy = Some(new.into()),
                    }
                    self.membership.save(&self.record)?;
                    tracing::info!(?purpose, "certificate of this node renewed");
                }
            }
        }
        Ok(next)
    }
}
