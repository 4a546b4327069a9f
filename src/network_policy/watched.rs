//! Pods as far as policies ask for them: nothing else of all the cluster's pods is kept in memory.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::model::{PodFacts, Protocol};

/// A Pod of the API, cut down.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WatchedPod {
    #[serde(deserialize_with = "needed")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Option<Vec<Port>>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PodIp {
    #[serde(default)]
    ip: String,
}

fn needed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let metadata = ObjectMeta::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        labels: metadata.labels,
        ..ObjectMeta::default()
    })
}

impl Resource for WatchedPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl WatchedPod {
    /// `None` for a pod whose address is nobody's any more, or is its node's.
    pub fn facts(&self, node: &str) -> Option<PodFacts> {
        let phase = self.status.phase.as_deref();
        if matches!(phase, Some("Succeeded" | "Failed")) || self.spec.host_network == Some(true) {
            return None;
        }
        let addresses = self.status.pod_ips.iter().flatten();
        let sidecars = self.spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let ports = self.spec.containers.iter().chain(sidecars);
        let ports = ports.flat_map(|container| container.ports.iter().flatten());
        Some(PodFacts {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
            labels: self.metadata.labels.clone().unwrap_or_default(),
            addresses: addresses.filter_map(|ip| ip.ip.parse().ok()).collect(),
            ports: ports.filter_map(named).collect(),
            is_local: self.spec.node_name.as_deref() == Some(node),
        })
    }
}

fn named(port: &Port) -> Option<((Protocol, String), u16)> {
    let name = port.name.clone().filter(|name| !name.is_empty())?;
    let protocol = Protocol::of(port.protocol.as_deref())?;
    Some(((protocol, name), port.container_port))
}

/// A pod that is about to start here and whose address the API does not have yet.
pub fn starting(pod: &Pod, addresses: &[IpAddr]) -> PodFacts {
    let spec = pod.spec.as_ref();
    let sidecars = spec.and_then(|spec| spec.init_containers.as_ref());
    let sidecars = sidecars.into_iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let containers = spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.chain(sidecars);
    let mut found = BTreeMap::new();
    for port in ports.flat_map(|container| container.ports.iter().flatten()) {
        let name = port.name.clone().filter(|name| !name.is_empty());
        let protocol = Protocol::of(port.protocol.as_deref());
        let number = u16::try_from(port.container_port);
        if let (Some(name), Some(protocol), Ok(number)) = (name, protocol, number) {
            found.insert((protocol, name), number);
        }
    }
    PodFacts {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses: addresses.to_vec(),
        ports: found,
        is_local: true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_policies_ask_of_a_pod() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "labels": {"a": "b"}, "annotations": {"much": "text"}, "managedFields": [{"manager": "m"}]},
            "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": [
                    {"name": "web", "containerPort": 80}, {"containerPort": 81},
                    {"name": "dns", "protocol": "UDP", "containerPort": 53}]}],
                "initContainers": [{"name": "i", "ports": [{"name": "gone", "containerPort": 1}]},
                    {"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}
        });
        let watched: WatchedPod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(watched.metadata.annotations, None);
        assert_eq!(watched.metadata.managed_fields, None);
        let facts = watched.facts("here").unwrap();
        assert_eq!(facts.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let ports: Vec<_> = facts
            .ports
            .iter()
            .map(|((_, name), port)| (&**name, *port))
            .collect();
        assert_eq!(ports, [("side", 2), ("web", 80), ("dns", 53)]);
        assert!(facts.is_local && !watched.facts("there").unwrap().is_local);
        let whole: Pod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(starting(&whole, &facts.addresses), facts);
        for (path, value) in [
            ("/status/phase", json!("Failed")),
            ("/status/phase", json!("Succeeded")),
            ("/spec/hostNetwork", json!(true)),
        ] {
            let mut pod = pod.clone();
            let (parent, name) = path.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[name] = value;
            let watched: WatchedPod = serde_json::from_value(pod).unwrap();
            assert!(watched.facts("here").is_none(), "{path}");
        }
    }
}
