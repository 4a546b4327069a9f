//! Keeps the ConfigMap `cluster-info` of `kube-public`: made when it is missing, put back when it is
//! changed, signed by every token that signs and has not expired.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, Secret},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bootstrap_token::{Expiration, KeptToken, OF_TYPE, signature},
    controllers::{
        error::{Doing, Error, already_exists, namespace_terminating},
        pods,
        shared::{Controller, Loop, Next, Stopped},
    },
    informer::{Informer, Informers, Key},
};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
/// More would make the ConfigMap larger than one may be.
const MOST_SIGNATURES: usize = 1000;

/// Runs until `shutdown`. `kubeconfig`: what `cluster-info` is to hold.
pub async fn run(
    informers: Informers,
    kubeconfig: String,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let namespaces: Informer<Namespace> = informers.get();
    let maps: Informer<ConfigMap> = informers.get();
    let secrets: Informer<Secret> = informers.some(OF_TYPE);
    let controller = Signer {
        client: informers.client().clone(),
        namespaces: namespaces.clone(),
        maps: maps.clone(),
        secrets: secrets.clone(),
        kubeconfig,
    };
    let namespace = || Key::new("", NAMESPACE);
    Loop::new(controller, &namespaces)
        .watch(&maps, move |map| {
            let ours = map.name_any() == NAME && map.namespace().as_deref() == Some(NAMESPACE);
            ours.then(namespace).into_iter().collect()
        })
        .watch(&secrets, move |_| vec![namespace()])
        .run(1, shutdown)
        .await
}

struct Signer {
    client: Client,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    kubeconfig: String,
}

impl Controller for Signer {
    const NAME: &'static str = "bootstrap-signer-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let namespace = self.namespaces.get(key);
        if key.name != NAMESPACE || namespace.is_none_or(|held| pods::is_terminating(&*held)) {
            return Ok(Next::Settled);
        }
        let now = Timestamp::now();
        let tokens = counting(&self.secrets.list(), now);
        let held = self.maps.get(&Key::new(NAMESPACE, NAME));
        let before = held.as_ref().and_then(|map| map.data.clone());
        let before = before.unwrap_or_default();
        let data = signature::signed(&before, &self.kubeconfig, &tokens)
            .map_err(|why| Error::invalid("signature", format!("ConfigMap {NAME}"), why))?;
        if held.is_none() || data != before {
            self.write(held.as_deref(), data).await?;
        }
        Ok(Next::after(first_end(&tokens, now)))
    }
}

impl Signer {
    async fn write(
        &self,
        held: Option<&ConfigMap>,
        data: BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let params = PostParams::default();
        let Some(held) = held else {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            return match api.create(&params, &map).await {
                Err(error) if already_exists(&error) || namespace_terminating(&error) => Ok(()),
                made => made
                    .map(drop)
                    .doing(|| format!("publish ConfigMap {NAMESPACE}/{NAME}")),
            };
        };
        let map = ConfigMap {
            data: Some(data),
            ..held.clone()
        };
        api.replace(NAME, &params, &map)
            .await
            .map(drop)
            .doing(|| format!("sign ConfigMap {NAMESPACE}/{NAME}"))
    }
}

/// The tokens that sign and have not expired, in the order of their names.
fn counting(secrets: &[std::sync::Arc<Secret>], now: Timestamp) -> Vec<KeptToken> {
    let live = secrets
        .iter()
        .filter(|held| !pods::is_terminating(&***held));
    let mut tokens: Vec<KeptToken> = live.filter_map(|secret| KeptToken::of(secret)).collect();
    tokens.retain(|kept| kept.signing && !kept.expiration.is_over(now));
    tokens.sort_by(|a, b| a.token.id().cmp(b.token.id()));
    tokens.truncate(MOST_SIGNATURES);
    tokens
}

/// How long until a signature must go.
fn first_end(tokens: &[KeptToken], now: Timestamp) -> Option<std::time::Duration> {
    let ends = tokens.iter().filter_map(|kept| match kept.expiration {
        Expiration::At(end) => Some(pods::remaining(end, 0, now).unwrap_or_default()),
        Expiration::Never | Expiration::Unreadable => None,
    });
    ends.min()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::controllers::bootstrap::testing::secret;

    #[test]
    fn which_tokens_count_and_how_long() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let ends = |id: &str, end: &str| Arc::new(secret(id, &[("expiration", end)]));
        let mut elsewhere = secret("other0", &[]);
        elsewhere.metadata.namespace = Some("default".to_owned());
        let secrets = [
            Arc::new(secret("zzzzzz", &[])),
            ends("bbbbbb", "2030-01-01T00:02:00Z"),
            ends("aaaaaa", "2030-01-01T00:01:00Z"),
            ends("cccccc", "2029-01-01T00:00:00Z"),
            ends("dddddd", "soon"),
            Arc::new(elsewhere),
        ];
        let tokens = counting(&secrets, now);
        let ids: Vec<&str> = tokens.iter().map(|kept| kept.token.id()).collect();
        assert_eq!(ids, ["aaaaaa", "bbbbbb", "zzzzzz"]);
        assert_eq!(first_end(&tokens, now), Some(Duration::from_secs(60)));
        assert_eq!(first_end(&tokens[2..], now), None);

        let many = (0..2000).map(|number| Arc::new(secret(&format!("a{number:05}"), &[])));
        let many: Vec<Arc<Secret>> = many.collect();
        assert_eq!(counting(&many, now).len(), MOST_SIGNATURES);
    }
}
