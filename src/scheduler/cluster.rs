//! The cluster as the scheduler believes it to be: nodes and the pods on them.
//!
//! Kept up to date event by event, never rebuilt. Owned by the scheduling loop alone.
//! Always true: a node's sums are those of exactly the pods listed on it, assumed ones included.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::ResourceExt;

use super::{
    plugins::volumes::Storage,
    pod::{PodInfo, Uid},
    promises::Promises,
};
use crate::placement::Resources;

/// One node with what runs on it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: String,
    pub node: Arc<Node>,
    pub allocatable: Resources,
    pub max_pods: i64,
    pub requested: Resources,
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    pub pods: HashMap<Uid, Arc<PodInfo>>,
    /// Image name to its size in bytes.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    fn new(node: Arc<Node>) -> Self {
        let mut info = Self {
            name: node.name_any(),
            node: node.clone(),
            allocatable: Resources::default(),
            max_pods: 0,
            requested: Resources::default(),
            scored_milli_cpu: 0,
            scored_memory: 0,
            pods: HashMap::new(),
            images: HashMap::new(),
        };
        info.set_node(node);
        info
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.allocatable = Resources::of(allocatable);
        self.max_pods = allocatable
            .and_then(|map| map.get("pods"))
            .and_then(|pods| proto::quantity::Quantity::parse(&pods.0).ok())
            .map_or(0, |pods| pods.value());
        self.images = status
            .and_then(|status| status.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                let names = image.names.iter().flatten();
                names.map(move |name| (name.clone(), size))
            })
            .collect();
        self.node = node;
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        self.node.labels()
    }

    pub fn taints(&self) -> &[Taint] {
        self.node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests.needed);
        self.scored_milli_cpu += pod.requests.scored_milli_cpu;
        self.scored_memory += pod.requests.scored_memory;
        if let Some(old) = self.pods.insert(pod.uid.clone(), pod) {
            self.forget(&old);
        }
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.forget(&pod);
        Some(pod)
    }

    fn forget(&mut self, pod: &PodInfo) {
        self.requested.subtract(&pod.requests.needed);
        self.scored_milli_cpu -= pod.requests.scored_milli_cpu;
        self.scored_memory -= pod.requests.scored_memory;
    }
}

#[derive(Debug, Default)]
pub struct Cluster {
    /// In order of arrival; scheduling starts at a rotating place.
    pub nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Node of each pod that is bound or assumed to be.
    homes: HashMap<Uid, String>,
    /// Pods of nodes that are not known (yet).
    homeless: HashMap<String, HashMap<Uid, Arc<PodInfo>>>,
    assumed: HashSet<Uid>,
    /// Pods on nodes that have affinity terms of any kind.
    pub with_affinity: HashMap<Uid, String>,
    pub promises: Promises,
    /// What the pod in hand asks of storage.
    pub storage: Arc<Storage>,
}

impl Cluster {
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|index| &self.nodes[*index])
    }

    fn node_mut(&mut self, name: &str) -> Option<&mut NodeInfo> {
        self.by_name.get(name).map(|index| &mut self.nodes[*index])
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.name_any();
        if let Some(held) = self.node_mut(&name) {
            return held.set_node(node);
        }
        let mut info = NodeInfo::new(node);
        for pod in self
            .homeless
            .remove(&name)
            .unwrap_or_default()
            .into_values()
        {
            info.add(pod);
        }
        self.by_name.insert(name, self.nodes.len());
        self.nodes.push(info);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(index) = self.by_name.remove(name) else {
            return;
        };
        let gone = self.nodes.remove(index);
        if !gone.pods.is_empty() {
            self.homeless.insert(gone.name, gone.pods);
        }
        for place in self.by_name.values_mut().filter(|place| **place > index) {
            *place -= 1;
        }
    }

    /// Notes a pod on a node, in place of what was known of it.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.homes.insert(pod.uid.clone(), node.to_owned());
        if pod.has_affinity() {
            self.with_affinity.insert(pod.uid.clone(), node.to_owned());
        }
        match self.node_mut(node) {
            Some(info) => info.add(pod),
            None => {
                let waiting = self.homeless.entry(node.to_owned()).or_default();
                waiting.insert(pod.uid.clone(), pod);
            }
        }
    }

    pub fn has_pod(&self, uid: &str) -> bool {
        self.homes.contains_key(uid)
    }

    /// Whether just this version of the pod is counted on its node.
    pub fn counts(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let home = self.homes.get(uid).map(String::as_str);
        if home.is_none() || home != node || self.is_assumed(uid) {
            return false;
        }
        let held = node.and_then(|node| self.node(node)?.pods.get(uid));
        held.is_some_and(|held| held.pod.resource_version() == pod.resource_version())
    }

    pub fn pods(&self) -> Vec<Uid> {
        self.homes.keys().cloned().collect()
    }

    /// Takes over a new version of a pod that differs in nothing that counts.
    pub fn refresh_pod(&mut self, uid: &str, pod: Arc<Pod>) {
        let Some(node) = self.homes.get(uid).cloned() else {
            return;
        };
        if let Some(held) = self.node_mut(&node).and_then(|info| info.pods.get_mut(uid)) {
            Arc::make_mut(held).pod = pod;
        }
    }

    /// Counts a pod on a node before the API has confirmed it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        let uid = pod.uid.clone();
        self.set_pod(pod, node);
        self.assumed.insert(uid);
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains(uid)
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        self.assumed.remove(uid);
        self.with_affinity.remove(uid);
        let node = self.homes.remove(uid)?;
        if let Some(info) = self.node_mut(&node) {
            return info.remove(uid);
        }
        let waiting = self.homeless.get_mut(&node)?;
        let pod = waiting.remove(uid);
        if waiting.is_empty() {
            self.homeless.remove(&node);
        }
        pod
    }

    /// The pods with affinity terms, each with its node.
    pub fn pods_with_affinity(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<PodInfo>)> {
        self.with_affinity.iter().filter_map(|(uid, node)| {
            let node = self.node(node)?;
            Some((node, node.pods.get(uid)?))
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub fn node(name: &str, labels: Value, spec: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": labels},
                "spec": spec,
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
            }))
            .expect("a node"),
        )
    }

    pub fn pod(name: &str, labels: Value, spec: Value) -> Arc<PodInfo> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels},
            "spec": spec,
        }))
        .expect("a pod");
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    pub fn asking(name: &str, cpu: &str, memory: &str) -> Arc<PodInfo> {
        let spec = json!({"containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
        pod(name, json!({}), spec)
    }

    #[test]
    fn sums_follow_pods_and_pods_wait_for_their_node() {
        let mut cluster = Cluster::default();
        cluster.set_pod(asking("early", "1", "1Gi"), "b");
        cluster.set_node(node("a", json!({}), json!({})));
        cluster.set_node(node("b", json!({}), json!({})));
        let cpu =
            |cluster: &Cluster, name: &str| cluster.node(name).expect("known").requested.milli_cpu;
        assert_eq!(cpu(&cluster, "b"), 1000);
        cluster.assume(asking("new", "2", "1Gi"), "a");
        assert_eq!(cpu(&cluster, "a"), 2000);
        cluster.set_pod(asking("new", "2", "1Gi"), "b");
        assert_eq!((cpu(&cluster, "a"), cpu(&cluster, "b")), (0, 3000));
        cluster.remove_node("a");
        assert_eq!(cpu(&cluster, "b"), 3000);
        cluster.remove_pod("early");
        assert_eq!(cpu(&cluster, "b"), 2000);
    }
}
