//! EndpointSlices: the pods behind each Service, for proxies and DNS. `plan.rs` decides.

mod plan;

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use self::plan::{Action, MANAGED_BY, MANAGER, SERVICE_NAME, plan};
use super::{
    endpoint,
    error::{Doing, Error, OrGone, namespace_terminating},
    pods,
    shared::{Controller, Loop, Next, Stopped},
    written::{PATIENCE, Written},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let services: Informer<Service> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let slices: Informer<EndpointSlice> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let controller = Slices {
        client: informers.client().clone(),
        services: services.clone(),
        pods: pods.clone(),
        slices: slices.clone(),
        nodes: nodes.clone(),
        written: Written::default(),
    };
    let (all, of_zones) = (services.clone(), services.clone());
    let zone = |node: &Node| node.labels().get(ZONE).cloned();
    Loop::new(controller, &services)
        .watch(&pods, move |pod| endpoint::services_of(pod, &all))
        .watch(&slices, |slice| {
            ours(slice)
                .map(|name| Key::new(slice.namespace().unwrap_or_default(), name))
                .into_iter()
                .collect()
        })
        // A node without a zone has given none to any endpoint.
        .watch_changes(
            &nodes,
            move |old, new| zone(old) == zone(new),
            move |node| match zone(node) {
                Some(_) => of_zones.list().iter().map(|one| Key::of(&**one)).collect(),
                None => Vec::new(),
            },
        )
        .run(WORKERS, shutdown)
        .await
}

/// The Service of a slice that this controller manages.
fn ours(slice: &EndpointSlice) -> Option<&String> {
    let labels = slice.labels();
    let managed = labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER);
    managed.then(|| labels.get(SERVICE_NAME)).flatten()
}

struct Slices {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    written: Written,
}

impl Controller for Slices {
    const NAME: &'static str = "endpointslice-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(service) = self.services.get(key) else {
            // The garbage collector takes the slices with their owner.
            self.written.forget(key);
            return Ok(Next::Settled);
        };
        if !endpoint::is_selecting(&service) || pods::is_terminating(service.as_ref()) {
            return Ok(Next::Settled);
        }
        if !self.written.visible(key, &self.slices) {
            return Ok(Next::After(PATIENCE));
        }
        let mut slices = self.slices.list_in(&key.namespace);
        slices.retain(|slice| {
            ours(slice) == Some(&key.name) && !pods::is_terminating(slice.as_ref())
        });
        let zone_of = |node: &str| {
            let node = self.nodes.get(&Key::new("", node))?;
            node.labels().get(ZONE).cloned()
        };
        let pods = self.pods.list_in(&key.namespace);
        for action in plan(&service, &pods, &slices, &zone_of) {
            self.apply(key, action, &slices).await?;
        }
        Ok(Next::Settled)
    }
}

impl Slices {
    async fn apply(
        &self,
        key: &Key,
        action: Action,
        held: &[Arc<EndpointSlice>],
    ) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        let written = match action {
            Action::Create(slice) => match api.create(&params, &slice).await {
                Err(error) if namespace_terminating(&error) => return Ok(()),
                made => made.doing(|| format!("create an EndpointSlice of {key}"))?,
            },
            Action::Update(slice) => {
                let name = slice.name_any();
                api.replace(&name, &params, &slice)
                    .await
                    .doing(|| format!("update EndpointSlice {name} of {key}"))?
            }
            Action::Delete(name) => {
                let Some(old) = held.iter().find(|slice| slice.name_any() == name) else {
                    return Ok(());
                };
                let params = Judged::State.params(&old.metadata, DeleteParams::default());
                api.delete(&name, &params)
                    .await
                    .or_gone()
                    .doing(|| format!("delete EndpointSlice {name} of {key}"))?;
                self.written
                    .deleted(key, Key::new(key.namespace.clone(), name));
                return Ok(());
            }
        };
        self.written.wrote(key, &written);
        Ok(())
    }
}
