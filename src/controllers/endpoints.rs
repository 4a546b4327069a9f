//! Endpoints: the older form of EndpointSlices, one object of at most 1000 addresses a Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use super::{
    endpoint::{self, HEADLESS, Port},
    error::{Doing, Error, OrGone, already_exists, namespace_terminating},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let services: Informer<Service> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let endpoints: Informer<Endpoints> = informers.get();
    let controller = Controls {
        client: informers.client().clone(),
        services: services.clone(),
        pods: pods.clone(),
        endpoints: endpoints.clone(),
    };
    let all = services.clone();
    Loop::new(controller, &services)
        .watch(&pods, move |pod| endpoint::services_of(pod, &all))
        .watch(&endpoints, |endpoints| vec![Key::of(endpoints)])
        .run(WORKERS, shutdown)
        .await
}

struct Controls {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

impl Controller for Controls {
    const NAME: &'static str = "endpoints-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let held = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            let managed = held.filter(|held| held.labels().contains_key(MANAGED_BY));
            if let Some(held) = managed {
                let params = Judged::State.params(&held.metadata, DeleteParams::default());
                api.delete(&key.name, &params)
                    .await
                    .or_gone()
                    .doing(|| format!("delete Endpoints {key}"))?;
            }
            return Ok(Next::Settled);
        };
        if !endpoint::is_selecting(&service) || pods::is_terminating(service.as_ref()) {
            return Ok(Next::Settled);
        }
        let pods = self.pods.list_in(&key.namespace);
        let wanted = plan(&service, &pods);
        let params = PostParams::default();
        match held {
            None => match api.create(&params, &wanted).await {
                Err(error) if already_exists(&error) || namespace_terminating(&error) => {}
                made => {
                    made.doing(|| format!("create Endpoints {key}"))?;
                }
            },
            Some(held) if same(&held, &wanted) => {}
            Some(held) => {
                let mut updated = wanted;
                updated.metadata = ObjectMeta {
                    labels: updated.metadata.labels,
                    annotations: with_capacity(&held, updated.metadata.annotations),
                    ..held.metadata.clone()
                };
                api.replace(&key.name, &params, &updated)
                    .await
                    .doing(|| format!("update Endpoints {key}"))?;
            }
        }
        Ok(Next::Settled)
    }
}

/// The held annotations, with the one that is ours as it shall be.
fn with_capacity(
    held: &Endpoints,
    ours: Option<BTreeMap<String, String>>,
) -> Option<BTreeMap<String, String>> {
    let mut annotations = held.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    annotations.extend(ours.unwrap_or_default());
    (!annotations.is_empty()).then_some(annotations)
}

fn same(held: &Endpoints, wanted: &Endpoints) -> bool {
    held.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default()
        && held.metadata.labels == wanted.metadata.labels
        && held.annotations().get(OVER_CAPACITY) == wanted.annotations().get(OVER_CAPACITY)
}

/// The Endpoints that `pods` make of `service`. Pure.
fn plan(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let publish = endpoint::publishes_not_ready(service);
    let family = endpoint::families(service).first().copied();
    let mut candidates: Vec<(bool, EndpointAddress, Vec<Port>)> = pods
        .iter()
        .filter(|pod| endpoint::selects(service, pod) && !pods::is_finished(pod))
        .filter(|pod| publish || !pods::is_terminating(pod.as_ref()))
        .filter_map(|pod| {
            let address = EndpointAddress {
                ip: endpoint::address(pod, family?)?,
                hostname: endpoint::hostname(service, pod),
                node_name: pods::node_name(pod).map(Into::into),
                target_ref: Some(endpoint::reference(pod)),
            };
            let ready = publish || pods::is_ready(pod);
            Some((ready, address, endpoint::ports(service, pod)))
        })
        .collect();
    // Ready ones first, so that they are the last to be cut.
    candidates.sort_by(|a, b| (!a.0, &a.1.ip).cmp(&(!b.0, &b.1.ip)));
    let cut = candidates.len() > MAX_ADDRESSES;
    candidates.truncate(MAX_ADDRESSES);
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if endpoint::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: cut.then(|| BTreeMap::from([(OVER_CAPACITY.into(), "truncated".into())])),
            ..ObjectMeta::default()
        },
        subsets: Some(subsets(candidates)),
    }
}

/// Addresses that serve the same ports share a subset.
fn subsets(candidates: Vec<(bool, EndpointAddress, Vec<Port>)>) -> Vec<EndpointSubset> {
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> =
        BTreeMap::new();
    for (ready, address, ports) in candidates {
        let ports: BTreeSet<Port> = ports.into_iter().collect();
        let group = groups.entry(ports.into_iter().collect()).or_default();
        if ready {
            group.0.push(address);
        } else {
            group.1.push(address);
        }
    }
    groups
        .into_iter()
        .map(|(ports, (ready, unready))| EndpointSubset {
            addresses: (!ready.is_empty()).then_some(ready),
            not_ready_addresses: (!unready.is_empty()).then_some(unready),
            ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
        })
        .collect()
}

fn port(port: Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then_some(port.name),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_unready_addresses_of_one_subset() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n"},
            "spec": {"selector": {"app": "a"}, "clusterIP": "10.0.0.1",
                     "ports": [{"port": 80, "targetPort": 8080}]},
        }))
        .expect("a Service");
        let pod = |name: &str, ready: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": "n", "labels": {"app": "a"}},
                    "spec": {"containers": []},
                    "status": {"phase": "Running", "podIP": format!("10.1.0.{name}"),
                        "conditions": [{"type": "Ready", "status": ready}]},
                }))
                .expect("a pod"),
            )
        };
        let got = plan(
            &service,
            &[pod("2", "True"), pod("1", "True"), pod("3", "False")],
        );
        let subsets = got.subsets.expect("subsets");
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter().flatten().map(|one| one.ip.clone()).collect()
        };
        assert_eq!(subsets.len(), 1);
        assert_eq!(ips(&subsets[0].addresses), ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.1.0.3"]);
        assert_eq!(subsets[0].ports.as_ref().expect("ports")[0].port, 8080);
        assert_eq!(plan(&service, &[]).subsets, Some(vec![]));
    }
}
