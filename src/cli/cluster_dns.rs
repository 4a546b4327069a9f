//! The Service and the endpoints by which pods find the DNS of their node, or of another one.
//!
//! Every node answers at the first address of its pods' range, or at its own where others make its pods' network. Each has a slice of its own, so that none of
//! them must be allowed to write it: this is done where the API server is.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Error, node::gateway};
use crate::{
    addresses::family::{OfFamily, PerFamily},
    backoff::Backoff,
    dns,
    informer::{Change, Changes, Informers, Key},
    placement::{DNS_AT, DNS_AT_NODE},
};

/// The objects by which pods find DNS.
pub struct ClusterDns {
    pub client: Client,
    pub cluster_dns: PerFamily<IpAddr>,
    /// The node of this process and the addresses of its DNS, known before it is registered.
    pub own: (String, PerFamily<IpAddr>),
}

/// What the slices of nodes say, by slice: whose DNS it is, where, and whether it can be asked.
type Wanted = BTreeMap<String, (String, IpAddr, bool)>;

impl ClusterDns {
    /// What is needed here, before any node is known.
    pub async fn write(&self) -> Result<(), Error> {
        self.write_all(&wanted(&[], &self.own)).await
    }

    async fn write_all(&self, wanted: &Wanted) -> Result<(), Error> {
        apply(&self.client, &dns::service(&self.cluster_dns)).await?;
        for (node, address, ready) in wanted.values() {
            apply(&self.client, &dns::endpoint_slice(node, *address, *ready)).await?;
        }
        Ok(())
    }

    /// Keeps them as the Nodes say, also when somebody has deleted them.
    pub async fn keep(self: Arc<Self>, informers: Informers) {
        let (services, slices) = (informers.get::<Service>(), informers.get::<EndpointSlice>());
        let nodes = informers.get::<Node>();
        let mut service_changes = services.changes();
        let mut slice_changes = slices.changes();
        let mut node_changes = nodes.changes();
        tokio::join!(nodes.synced(), slices.synced());
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let service = Key::of(&dns::service(&self.cluster_dns));
        let mut written = None;
        loop {
            let wanted = wanted(&nodes.list(), &self.own);
            if written.as_ref() != Some(&wanted) {
                let kept = async {
                    self.write_all(&wanted).await?;
                    self.remove_others(&wanted, &slices.list_in(&service.namespace))
                        .await
                };
                match kept.await {
                    Ok(()) => backoff.reset(),
                    Err(error) => {
                        tracing::debug!(%error, "the cluster DNS is not announced");
                        tokio::time::sleep(backoff.next_wait()).await;
                        continue;
                    }
                }
                written = Some(wanted);
            }
            tokio::select! {
                () = gone(&mut service_changes, |key| *key == service) => written = None,
                () = gone(&mut slice_changes, |key| dns::is_slice_name(&key.name)) => {
                    written = None;
                }
                change = node_changes.next() => if change.is_none() { return },
            }
        }
    }

    /// Slices of nodes that are gone.
    async fn remove_others(
        &self,
        wanted: &Wanted,
        slices: &[Arc<EndpointSlice>],
    ) -> Result<(), Error> {
        for slice in slices.iter().filter(|slice| dns::is_ours(slice)) {
            let name = slice.name_any();
            if wanted.contains_key(&name) {
                continue;
            }
            let api: Api<EndpointSlice> =
                Api::namespaced(self.client.clone(), &slice.namespace().unwrap_or_default());
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                gone => gone.map(drop)?,
            }
        }
        Ok(())
    }
}

/// Every node's DNS; that of the process's own node can always be asked.
fn wanted(nodes: &[Arc<Node>], own: &(String, PerFamily<IpAddr>)) -> Wanted {
    let of_node = |node: &Arc<Node>| {
        let spec = node.spec.as_ref()?;
        let ranges = spec.pod_cidrs.as_deref().unwrap_or_default().iter();
        let ranges = ranges.filter_map(|range| range.parse::<IpNet>().ok());
        let at = node.annotations().get(DNS_AT).map(String::as_str);
        let addresses = match at {
            Some(DNS_AT_NODE) => own_addresses(node),
            _ => ranges.filter_map(|range| gateway(&range)).collect(),
        };
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref());
        let ready = |condition: &&k8s_openapi::api::core::v1::NodeCondition| {
            condition.type_ == "Ready" && condition.status == "True"
        };
        let is_ready = conditions.unwrap_or_default().iter().find(ready).is_some();
        Some((node.name_any(), addresses, is_ready))
    };
    let others = nodes.iter().filter_map(of_node);
    let others = others.filter(|(name, _, _)| *name != own.0);
    let own = (own.0.clone(), own.1.iter().copied().collect(), true);
    let slices = |(node, addresses, is_ready): (String, Vec<IpAddr>, bool)| {
        let slice = move |address: IpAddr| {
            let name = dns::slice_name(&node, address.family());
            (name, (node.clone(), address, is_ready))
        };
        addresses.into_iter().map(slice)
    };
    others.chain([own]).flat_map(slices).collect()
}

/// By which others reach the node.
fn own_addresses(node: &Node) -> Vec<IpAddr> {
    let status = node.status.as_ref();
    let all = status.and_then(|status| status.addresses.as_deref());
    let own = all.unwrap_or_default().iter();
    own.filter(|one| one.type_ == "InternalIP")
        .filter_map(|one| one.address.parse().ok())
        .collect()
}

/// Resolves when one of the objects has been deleted, or may have been.
async fn gone<K: Resource<DynamicType = ()>>(
    changes: &mut Changes<K>,
    is_it: impl Fn(&Key) -> bool,
) {
    loop {
        match changes.next().await {
            Some(Change::Deleted(object)) if is_it(&Key::of(&*object)) => return,
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
    fn each_node_has_its_own() {
        let node = |name: &str, range: &str, ready: &str| -> Arc<Node> {
            let node = json!({
                "metadata": {"name": name},
                "spec": {"podCIDRs": range.split(',').collect::<Vec<_>>()},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let own = ("a".to_owned(), "10.42.0.1,fd42::1".parse().unwrap());
        let nodes = [
            node("a", "10.42.0.0/24", "Unknown"),
            node("b", "10.42.1.0/24,fd42:0:0:1::/64", "True"),
            node("c", "10.42.2.0/24", "False"),
            node("d", "", "True"),
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "e", "annotations": {"vetch.io/cluster-dns": "node-address"}},
                    "spec": {"podCIDRs": ["10.42.4.0/24"]},
                    "status": {
                        "conditions": [{"type": "Ready", "status": "True"}],
                        "addresses": [{"type": "InternalIP", "address": "192.0.2.5"},
                            {"type": "Hostname", "address": "e"}],
                    },
                }))
                .unwrap(),
            ),
        ];
        let found: Vec<String> = wanted(&nodes, &own)
            .iter()
            .map(|(slice, (node, address, ready))| format!("{slice} {node} {address} {ready}"))
            .collect();
        assert_eq!(
            found,
            [
                "kube-dns-a a 10.42.0.1 true",
                "kube-dns-b b 10.42.1.1 true",
                "kube-dns-c c 10.42.2.1 false",
                "kube-dns-e e 192.0.2.5 true",
                "kube-dns.ipv6.a a fd42::1 true",
                "kube-dns.ipv6.b b fd42:0:0:1::1 true",
            ]
        );
        assert_eq!(wanted(&[], &own).len(), 2);
    }

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
