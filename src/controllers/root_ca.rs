//! Publishes the cluster's certificate authority in every namespace, as ConfigMap
//! `kube-root-ca.crt`, and puts it back when it is changed or deleted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
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

const NAME: &str = "kube-root-ca.crt";
const DATA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
    using internal endpoints such as the internal service IP or kubernetes.default.svc. \
    No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Runs until `shutdown`.
pub async fn run(
    informers: Informers,
    ca_pem: String,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let namespaces: Informer<Namespace> = informers.get();
    let maps: Informer<ConfigMap> = informers.get();
    let controller = Publisher {
        client: informers.client().clone(),
        namespaces: namespaces.clone(),
        maps: maps.clone(),
        ca_pem,
    };
    Loop::new(controller, &namespaces)
        .watch(&maps, |map| {
            let published = map.name_any() == NAME;
            published
                .then(|| Key::new("", map.namespace().unwrap_or_default()))
                .into_iter()
                .collect()
        })
        .run(1, shutdown)
        .await
}

struct Publisher {
    client: Client,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    ca_pem: String,
}

impl Controller for Publisher {
    const NAME: &'static str = "root-ca-certificate-publisher-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let live = self.namespaces.get(key);
        if live.is_none_or(|namespace| pods::is_terminating(namespace.as_ref())) {
            return Ok(Next::Settled);
        }
        let data = BTreeMap::from([(DATA_KEY.to_owned(), self.ca_pem.clone())]);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &key.name);
        let params = PostParams::default();
        let Some(held) = self.maps.get(&Key::new(key.name.clone(), NAME)) else {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(NAME.into()),
                    annotations: Some(BTreeMap::from([(
                        "kubernetes.io/description".into(),
                        DESCRIPTION.into(),
                    )])),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            return match api.create(&params, &map).await {
                Err(error) if already_exists(&error) || namespace_terminating(&error) => {
                    Ok(Next::Settled)
                }
                made => made
                    .doing(|| format!("publish the CA in namespace {}", key.name))
                    .map(|_| Next::Settled),
            };
        };
        if held.data.as_ref() != Some(&data) {
            let mut map = ConfigMap::clone(&held);
            map.data = Some(data);
            map.annotations_mut()
                .insert("kubernetes.io/description".into(), DESCRIPTION.into());
            api.replace(NAME, &params, &map)
                .await
                .doing(|| format!("put the CA back in namespace {}", key.name))?;
        }
        Ok(Next::Settled)
    }
}
