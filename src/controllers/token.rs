//! Tokens kept in Secrets: a Secret of type `kubernetes.io/service-account-token` that names an
//! account gets that account's token, the cluster's certificates and its namespace.
//!
//! Nobody's account is given one unasked. The Secret goes with its account; an account's list of
//! secrets loses those that are gone.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config, TokenFor,
    error::{Doing, Error, OrGone},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

const ONLY: &str = "type=kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Runs until `shutdown`.
pub async fn run(
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let secrets: Informer<Secret> = informers.some(ONLY);
    let accounts: Informer<ServiceAccount> = informers.get();
    let controller = Tokens {
        client: informers.client().clone(),
        secrets: secrets.clone(),
        accounts: accounts.clone(),
        config,
    };
    let all = secrets.clone();
    Loop::new(controller, &secrets)
        .watch(&accounts, move |account| {
            let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
            let mut held = all.list_in(&namespace);
            held.retain(|secret| account_of(secret) == name);
            held.iter().map(|one| Key::of(one.as_ref())).collect()
        })
        .run(1, shutdown)
        .await
}

fn account_of(secret: &Secret) -> &str {
    secret.annotations().get(ACCOUNT).map_or("", String::as_str)
}

/// What a Secret needs.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Its account is gone, or is another of the same name.
    Delete,
    /// These data, and the account's uid.
    Fill(BTreeMap<String, ByteString>),
}

/// `token` makes one where there is none yet. Pure but for that.
fn plan<E>(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    ca_pem: &str,
    token: impl FnOnce(&ServiceAccount) -> Result<String, E>,
) -> Result<Step, E> {
    let uid = secret.annotations().get(ACCOUNT_UID);
    let Some(account) = account.filter(|account| {
        uid.is_none_or(|uid| uid.is_empty() || Some(uid) == account.metadata.uid.as_ref())
    }) else {
        return Ok(Step::Delete);
    };
    let have = secret.data.clone().unwrap_or_default();
    let mut data = have.clone();
    if data.get("token").is_none_or(|token| token.0.is_empty()) {
        let token = token(account)?;
        data.insert("token".into(), ByteString(token.into_bytes()));
    }
    let namespace = secret.namespace().unwrap_or_default();
    data.insert("ca.crt".into(), ByteString(ca_pem.into()));
    data.insert("namespace".into(), ByteString(namespace.into()));
    Ok(match data == have && uid.is_some() {
        true => Step::Nothing,
        false => Step::Fill(data),
    })
}

struct Tokens {
    client: Client,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    config: Config,
}

impl Controller for Tokens {
    const NAME: &'static str = "serviceaccount-token-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(secret) = self.secrets.get(key) else {
            self.forget(key).await?;
            return Ok(Next::Settled);
        };
        if secret.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        // The cache may not show a new account yet.
        let of = Key::new(key.namespace.clone(), account_of(&secret));
        let mut account = self.accounts.get(&of).map(|held| (*held).clone());
        if account.is_none() {
            account = Api::namespaced(self.client.clone(), &key.namespace)
                .get_opt(&of.name)
                .await
                .doing(|| format!("ask for account {of} of Secret {key}"))?;
        }
        let step = self.plan(&secret, account.clone()).await;
        match step.map_err(|why| Error::invalid("token", format!("Secret {key}"), why))? {
            Step::Nothing => {}
            Step::Delete => self.delete(key, &secret).await?,
            Step::Fill(data) => {
                let mut filled = Secret::clone(&secret);
                filled.data = Some(data);
                let uid = account.and_then(|account| account.metadata.uid);
                filled
                    .annotations_mut()
                    .insert(ACCOUNT_UID.into(), uid.unwrap_or_default());
                Api::<Secret>::namespaced(self.client.clone(), &key.namespace)
                    .replace(&key.name, &PostParams::default(), &filled)
                    .await
                    .or_gone()
                    .doing(|| format!("fill Secret {key}"))?;
            }
        }
        Ok(Next::Settled)
    }
}

impl Tokens {
    /// [`plan`] on a thread where a token may be signed.
    async fn plan(
        &self,
        secret: &Arc<Secret>,
        account: Option<ServiceAccount>,
    ) -> Result<Step, String> {
        let (secret, config) = (secret.clone(), self.config.clone());
        let planned = tokio::task::spawn_blocking(move || {
            plan(&secret, account.as_ref(), &config.ca_pem, |account| {
                (config.make_token)(&TokenFor {
                    namespace: &secret.namespace().unwrap_or_default(),
                    account: &account.name_any(),
                    account_uid: account.metadata.uid.as_deref().unwrap_or_default(),
                    secret: &secret.name_any(),
                })
            })
        });
        planned.await.map_err(|error| error.to_string())?
    }

    async fn delete(&self, key: &Key, secret: &Secret) -> Result<(), Error> {
        let params = Judged::State.params(&secret.metadata, DeleteParams::default());
        Api::<Secret>::namespaced(self.client.clone(), &key.namespace)
            .delete(&key.name, &params)
            .await
            .or_gone()
            .doing(|| format!("delete Secret {key} of an account that is gone"))?;
        Ok(())
    }

    /// Takes a Secret that is gone off the lists of its namespace's accounts.
    async fn forget(&self, key: &Key) -> Result<(), Error> {
        let names = |account: &ServiceAccount| {
            let mut held = account.secrets.iter().flatten();
            held.any(|secret| secret.name.as_deref() == Some(&*key.name))
        };
        let mut holders = self.accounts.list_in(&key.namespace);
        holders.retain(|account| names(account));
        if holders.is_empty() {
            return Ok(());
        }
        let live = Api::<Secret>::namespaced(self.client.clone(), &key.namespace)
            .get_opt(&key.name)
            .await
            .doing(|| format!("ask whether Secret {key} is gone"))?;
        if live.is_some() {
            return Ok(());
        }
        for holder in holders {
            let mut account = ServiceAccount::clone(&holder);
            if let Some(secrets) = &mut account.secrets {
                secrets.retain(|secret| secret.name.as_deref() != Some(&*key.name));
            }
            Api::<ServiceAccount>::namespaced(self.client.clone(), &key.namespace)
                .replace(&holder.name_any(), &PostParams::default(), &account)
                .await
                .or_gone()
                .doing(|| format!("take Secret {key} off account {}", holder.name_any()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_secret_needs() {
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u1"}}))
                .expect("an account");
        let full = json!({"token": "dA==", "ca.crt": "Q0E=", "namespace": "bg=="});
        let spoilt = json!({"token": "dA==", "ca.crt": "Q0I=", "namespace": "bg=="});
        for (uid, data, account, want) in [
            (None, json!({}), Some(&account), Some("made")),
            (Some("u1"), json!({}), Some(&account), Some("made")),
            (Some("u1"), full.clone(), Some(&account), None),
            (Some("u1"), spoilt, Some(&account), Some("t")),
            (Some("u0"), full.clone(), Some(&account), Some("")),
            (Some("u1"), full, None, Some("")),
        ] {
            let mut secret: Secret = serde_json::from_value(json!({
                "metadata": {"name": "s", "namespace": "n", "annotations": {ACCOUNT: "a"}},
                "data": data,
            }))
            .expect("a secret");
            if let Some(uid) = uid {
                secret
                    .annotations_mut()
                    .insert(ACCOUNT_UID.into(), uid.into());
            }
            let step = plan(&secret, account, "CA", |_| Ok::<_, ()>("made".to_owned()));
            match (step.expect("a step"), want) {
                (Step::Nothing, None) | (Step::Delete, Some("")) => {}
                (Step::Fill(data), Some(token)) => {
                    assert_eq!(data["token"].0, token.as_bytes());
                    assert_eq!(data["ca.crt"].0, b"CA");
                    assert_eq!(data["namespace"].0, b"n");
                }
                (step, want) => panic!("{step:?} instead of {want:?}"),
            }
        }
    }
}
