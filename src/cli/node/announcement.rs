//! The Service and the endpoints by which pods find this node's DNS.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    backoff::Backoff,
    cli::Error,
    dns,
    informer::{Change, Changes, Informers, Key},
};

/// The objects by which pods find this node's DNS.
pub(super) struct Announcement {
    pub client: Client,
    pub node: String,
    pub cluster_dns: IpAddr,
    pub address: IpAddr,
}

impl Announcement {
    pub async fn write(&self) -> Result<(), Error> {
        apply(&self.client, &dns::service(self.cluster_dns)).await?;
        apply(&self.client, &dns::endpoint_slice(&self.node, self.address)).await
    }

    /// Writes them again whenever somebody has deleted them.
    pub async fn keep(self: Arc<Self>, informers: Informers) {
        let (services, slices) = (informers.get::<Service>(), informers.get::<EndpointSlice>());
        let (mut services, mut slices) = (services.changes(), slices.changes());
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let service = Key::of(&dns::service(self.cluster_dns));
        let slice = Key::of(&dns::endpoint_slice(&self.node, self.address));
        loop {
            match self.write().await {
                Ok(()) => {
                    backoff.reset();
                    tokio::select! {
                        () = gone(&mut services, &service) => {}
                        () = gone(&mut slices, &slice) => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the cluster DNS is not announced");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}

/// Resolves when the object has been deleted, or may have been.
async fn gone<K: Resource<DynamicType = ()>>(changes: &mut Changes<K>, key: &Key) {
    loop {
        match changes.next().await {
            Some(Change::Deleted(object)) if Key::of(&*object) == *key => return,
            Some(Change::Resync) => return,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Whether all that is wanted is there already, whatever else is.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (_, Value::Null) => true,
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| found.get(name).is_some_and(|found| holds(found, value))),
        (Value::Array(found), Value::Array(wanted)) => {
            let pairs = found.iter().zip(wanted);
            found.len() == wanted.len() && pairs.into_iter().all(|(a, b)| holds(a, b))
        }
        (found, wanted) => found == wanted,
    }
}

/// Creates the object, or brings the one that is there to the same content. One that is so already is
/// not written.
async fn apply<K>(client: &Client, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let said =
        |error: kube::Error| -> Error { format!("write {namespace}/{name}: {error}").into() };
    let found = api.get_opt(&name).await.map_err(&said)?;
    let written = match found {
        None => api.create(&PostParams::default(), object).await,
        Some(found) => {
            let json = |object: &K| serde_json::to_value(object).unwrap_or_default();
            if holds(&json(&found), &json(object)) {
                return Ok(());
            }
            let patch = Patch::Merge(object);
            api.patch(&name, &PatchParams::default(), &patch).await
        }
    };
    written.map(drop).map_err(said)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_there_is_not_written_again() {
        let found = json!({"a": 1, "ports": [{"port": 53, "protocol": "UDP"}], "more": true});
        for (wanted, want) in [
            (json!({"a": 1, "ports": [{"port": 53}]}), true),
            (json!({"a": 2}), false),
            (json!({"b": 1}), false),
            (json!({"ports": []}), false),
        ] {
            assert_eq!(holds(&found, &wanted), want, "{wanted}");
        }
    }
}
