//! Every namespace has a ServiceAccount `default`, also after somebody deleted it.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Doing, Error, already_exists, namespace_terminating},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::informer::{Informer, Informers, Key};

const NAME: &str = "default";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let namespaces: Informer<Namespace> = informers.get();
    let accounts: Informer<ServiceAccount> = informers.get();
    let controller = Accounts {
        client: informers.client().clone(),
        namespaces: namespaces.clone(),
        accounts: accounts.clone(),
    };
    Loop::new(controller, &namespaces)
        .watch(&accounts, |account| {
            let wanted = account.name_any() == NAME;
            wanted
                .then(|| Key::new("", account.namespace().unwrap_or_default()))
                .into_iter()
                .collect()
        })
        .run(1, shutdown)
        .await
}

struct Accounts {
    client: Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

impl Controller for Accounts {
    const NAME: &'static str = "serviceaccount-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let live = self.namespaces.get(key);
        if live.is_none_or(|namespace| pods::is_terminating(namespace.as_ref()))
            || self
                .accounts
                .get(&Key::new(key.name.clone(), NAME))
                .is_some()
        {
            return Ok(Next::Settled);
        }
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.name);
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match api.create(&PostParams::default(), &account).await {
            Err(error) if already_exists(&error) || namespace_terminating(&error) => {}
            made => {
                made.doing(|| format!("create the default account of {}", key.name))?;
            }
        }
        Ok(Next::Settled)
    }
}
