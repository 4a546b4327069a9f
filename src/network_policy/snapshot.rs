//! The cluster's policies and whom they select, read once, for who asks what they come to.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::Namespace, discovery::v1::EndpointSlice, networking::v1::NetworkPolicy,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::{
    DNS_NAME, DNS_NAMESPACE, cluster_dns,
    model::PodFacts,
    plan::World,
    rules::Rules,
    trace::{Connection, Judgement, trace},
    watched::WatchedPod,
};
use crate::informer::services::SERVICE_NAME;

#[derive(Debug)]
pub struct Snapshot(World);

impl Snapshot {
    pub async fn read(client: Client) -> Result<Self, kube::Error> {
        let all = ListParams::default();
        let of_dns = ListParams::default().labels(&format!("{SERVICE_NAME}={DNS_NAME}"));
        let policies: Api<NetworkPolicy> = Api::all(client.clone());
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let pods: Api<WatchedPod> = Api::all(client.clone());
        let slices: Api<EndpointSlice> = Api::namespaced(client, DNS_NAMESPACE);
        let (policies, namespaces, pods, slices) = tokio::try_join!(
            policies.list(&all),
            namespaces.list(&all),
            pods.list(&all),
            slices.list(&of_dns),
        )?;
        let mut facts: Vec<PodFacts> = pods.iter().filter_map(|pod| pod.facts("")).collect();
        facts.push(cluster_dns(slices.iter(), std::iter::empty()));
        let namespaces = namespaces.iter();
        Ok(Self(World {
            policies: policies
                .iter()
                .map(|policy| Arc::new(Rules::of(policy)))
                .collect(),
            namespaces: namespaces
                .map(|namespace| (namespace.name_any(), namespace.labels().clone()))
                .collect(),
            pods: facts,
        }))
    }

    /// `None` for a pod that does not run, or has no address of its own.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodFacts> {
        let mut pods = self.0.pods.iter();
        pods.find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// Egress of the client, then ingress of the server.
    pub fn trace(&self, connection: &Connection) -> [Judgement; 2] {
        trace(&self.0, connection)
    }
}
