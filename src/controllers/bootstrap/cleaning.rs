//! Deletes the Secrets of tokens that have expired.

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{Api, Client, api::DeleteParams};
use tokio_util::sync::CancellationToken;

use crate::{
    bootstrap_token::{Expiration, KeptToken, OF_TYPE},
    controllers::{
        error::{Doing, Error, OrGone},
        pods,
        shared::{Controller, Loop, Next, Stopped},
    },
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let secrets: Informer<Secret> = informers.some(OF_TYPE);
    let controller = Cleaner {
        client: informers.client().clone(),
        secrets: secrets.clone(),
    };
    Loop::new(controller, &secrets).run(1, shutdown).await
}

struct Cleaner {
    client: Client,
    secrets: Informer<Secret>,
}

impl Controller for Cleaner {
    const NAME: &'static str = "token-cleaner-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.secrets.get(key);
        let Some(secret) = held.filter(|secret| !pods::is_terminating(&**secret)) else {
            return Ok(Next::Settled);
        };
        let Some(kept) = KeptToken::of(&secret) else {
            return Ok(Next::Settled);
        };
        let now = Timestamp::now();
        match kept.expiration {
            Expiration::At(end) if end > now => {
                return Ok(Next::after(pods::remaining(end, 0, now)));
            }
            Expiration::Never => return Ok(Next::Settled),
            Expiration::At(_) | Expiration::Unreadable => {}
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = Judged::State.params(&secret.metadata, DeleteParams::default());
        api.delete(&key.name, &params)
            .await
            .or_gone()
            .doing(|| format!("delete the expired token of Secret {key}"))?;
        Ok(Next::Settled)
    }
}
