//! Volumes: a pod goes where those of its claims can be had.
//!
//! [`Storage`] is what the pod in hand asks for, looked up before each attempt; the rest is pure.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::ResourceExt;

use super::{Plugins, Reject};
use crate::{
    placement::volumes::{
        NO_PROVISIONER, SELECTED_NODE, class_of, free_for, is_allowed, is_bound, is_made_for,
        reaches, waits,
    },
    scheduler::{
        cluster::{Cluster, NodeInfo},
        pod::PodInfo,
    },
};

const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const ELSEWHERE: &str = "node(s) didn't match PersistentVolume's node affinity";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const IN_USE: &str = "node has pod using PersistentVolumeClaim with the same name and \
                      ReadWriteOncePod access mode";

/// Where a pod's claims, volumes and their classes are looked up.
pub trait Lookup {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
}

/// What one pod asks of storage.
#[derive(Debug, Default)]
pub struct Storage {
    /// Why it can go nowhere now.
    problem: Option<String>,
    /// Of bound claims; `None`: it is gone.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// Claims that bind when their first pod gets its node.
    delayed: Vec<(Arc<PersistentVolumeClaim>, Arc<StorageClass>)>,
    /// Volumes that may be free.
    volumes: Vec<Arc<PersistentVolume>>,
    /// Names of claims that one pod at a time may use.
    exclusive: Vec<String>,
}

/// What is to be written before the pod is bound.
#[derive(Clone, Debug)]
pub enum Step {
    Take {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    Provision(Arc<PersistentVolumeClaim>),
}

impl Step {
    pub fn claim(&self) -> &Arc<PersistentVolumeClaim> {
        match self {
            Self::Take { claim, .. } | Self::Provision(claim) => claim,
        }
    }
}

impl Storage {
    pub fn of(pod: &PodInfo, lookup: &dyn Lookup) -> Self {
        let mut storage = Self::default();
        for (name, ephemeral) in &pod.claims {
            if let Err(problem) = storage.add(pod, name, *ephemeral, lookup) {
                storage.problem = Some(problem);
                return storage;
            }
        }
        if !storage.delayed.is_empty() {
            storage.volumes = lookup.volumes();
        }
        storage
    }

    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn add(
        &mut self,
        pod: &PodInfo,
        name: &str,
        ephemeral: bool,
        lookup: &dyn Lookup,
    ) -> Result<(), String> {
        let claim = lookup.claim(&pod.key.namespace, name);
        let claim = claim.ok_or_else(|| match ephemeral {
            true => format!(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
            ),
            false => format!("persistentvolumeclaim {name:?} not found"),
        })?;
        let volume = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref());
        let volume = volume.filter(|name| !name.is_empty());
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase == Some("Lost") {
            let volume = volume.unwrap_or_default();
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if ephemeral && !is_made_for(&pod.pod, &claim) {
            return Err(format!(
                "PVC {:?} was not created for pod {:?} (pod is not owner)",
                format!("{}/{name}", pod.key.namespace),
                pod.key.to_string()
            ));
        }
        let modes = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.access_modes.as_ref());
        if modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod")) {
            self.exclusive.push(name.to_owned());
        }
        match volume {
            Some(volume) if is_bound(&claim) => {
                self.bound.push(lookup.volume(volume));
                return Ok(());
            }
            Some(_) => {}
            None => {
                let class = class_of(&claim).and_then(|name| lookup.class(name));
                if let Some(class) = class.filter(|class| waits(class)) {
                    self.delayed.push((claim, class));
                    return Ok(());
                }
            }
        }
        Err("pod has unbound immediate PersistentVolumeClaims".to_owned())
    }

    /// What gives the claims their volumes on the node, or why there are none.
    pub fn plan(&self, node: &NodeInfo) -> Result<Vec<Step>, &'static str> {
        for volume in &self.bound {
            let volume = volume.as_ref().ok_or(LOST)?;
            if !reaches(volume, node.labels(), &node.name) {
                return Err(ELSEWHERE);
            }
        }
        let mut steps: Vec<Step> = Vec::new();
        for (claim, class) in &self.delayed {
            let selected = claim.annotations().get(SELECTED_NODE);
            if selected.is_some_and(|selected| *selected != node.name) {
                return Err(NO_VOLUME);
            }
            let taken = |volume: &PersistentVolume| {
                let name = &volume.metadata.name;
                steps.iter().any(|step| match step {
                    Step::Take { volume, .. } => volume.metadata.name == *name,
                    Step::Provision(_) => false,
                })
            };
            let all = self.volumes.iter().map(AsRef::as_ref);
            let found = match selected {
                Some(_) => None,
                None => free_for(claim, all, |volume| {
                    reaches(volume, node.labels(), &node.name) && !taken(volume)
                }),
            };
            let found = found.map(ResourceExt::name_any);
            let found = found.and_then(|name| {
                let mut all = self.volumes.iter();
                all.find(|volume| volume.name_any() == name).cloned()
            });
            steps.push(match found {
                Some(volume) => Step::Take {
                    claim: claim.clone(),
                    volume,
                },
                None if provisions(class, node) => Step::Provision(claim.clone()),
                None => return Err(NO_VOLUME),
            });
        }
        Ok(steps)
    }
}

/// Whether the class makes volumes, and on this node too.
fn provisions(class: &StorageClass, node: &NodeInfo) -> bool {
    class.provisioner != NO_PROVISIONER && is_allowed(class, node.labels())
}

/// What the filters need to know of other pods.
pub struct Filter {
    storage: Arc<Storage>,
    /// Pods that use an exclusive claim of this pod's, on all nodes.
    users: usize,
    namespace: String,
    exclusive: Vec<String>,
    before: Vec<(String, usize)>,
}

impl Filter {
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Self {
        let mut filter = Self {
            storage: cluster.storage.clone(),
            users: 0,
            namespace: pod.key.namespace.clone(),
            exclusive: cluster.storage.exclusive.clone(),
            before: Vec::new(),
        };
        if !filter.exclusive.is_empty() {
            for node in &cluster.nodes {
                let count = filter.on(pod, node);
                if count > 0 {
                    filter.users += count;
                    filter.before.push((node.name.clone(), count));
                }
            }
        }
        filter
    }

    fn on(&self, pod: &PodInfo, node: &NodeInfo) -> usize {
        let pods = node.pods.values().filter(|other| {
            other.uid != pod.uid
                && other.key.namespace == self.namespace
                && other
                    .claims
                    .iter()
                    .any(|(name, _)| self.exclusive.contains(name))
        });
        pods.count()
    }

    /// `node` may be as it would be without pods that have to leave.
    pub fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Option<Reject> {
        if !self.exclusive.is_empty() {
            let mut before = self.before.iter();
            let before = before.find(|(name, _)| *name == node.name);
            let elsewhere = self.users - before.map_or(0, |(_, count)| *count);
            if elsewhere + self.on(pod, node) > 0 {
                return Some(Reject::by_pods(Plugins::VOLUMES, IN_USE));
            }
        }
        let reason = self.storage.plan(node).err()?;
        Some(Reject::fixed(Plugins::VOLUMES, reason))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::scheduler::cluster::tests::{node, pod};

    #[derive(Default)]
    struct Objects {
        claims: HashMap<String, Arc<PersistentVolumeClaim>>,
        volumes: Vec<Arc<PersistentVolume>>,
        classes: HashMap<String, Arc<StorageClass>>,
    }

    impl Lookup for Objects {
        fn claim(&self, _namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
            self.claims.get(name).cloned()
        }

        fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
            let mut all = self.volumes.iter();
            all.find(|volume| volume.name_any() == name).cloned()
        }

        fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
            self.volumes.clone()
        }

        fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
            self.classes.get(name).cloned()
        }
    }

    fn made<K: DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).expect("an object"))
    }

    fn volume(name: &str, node: &str) -> Arc<PersistentVolume> {
        made(
            json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadWriteOncePod"],
            "storageClassName": "hand", "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}}}),
        )
    }

    fn claim(class: &str, more: Value) -> Arc<PersistentVolumeClaim> {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "default", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}}});
        if let Some(annotations) = more.get("annotations") {
            claim["metadata"]["annotations"] = annotations.clone();
        }
        if let Some(volume) = more.get("volumeName") {
            claim["spec"]["volumeName"] = volume.clone();
        }
        if let Some(mode) = more.get("mode") {
            claim["spec"]["accessModes"] = json!([mode]);
        }
        if more.get("deleted").is_some() {
            claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        made(claim)
    }

    fn objects(claim: Option<Arc<PersistentVolumeClaim>>) -> Objects {
        let class = |name: &str, provisioner: &str, mode: &str| {
            let class = json!({"metadata": {"name": name}, "provisioner": provisioner,
                "volumeBindingMode": mode});
            (name.to_owned(), made::<StorageClass>(class))
        };
        Objects {
            claims: claim
                .map(|claim| ("c".to_owned(), claim))
                .into_iter()
                .collect(),
            volumes: vec![volume("on-a", "a"), volume("on-b", "b")],
            classes: HashMap::from([
                class("local", "p", "WaitForFirstConsumer"),
                class("hand", NO_PROVISIONER, "WaitForFirstConsumer"),
                class("now", "p", "Immediate"),
            ]),
        }
    }

    fn user(name: &str) -> Arc<PodInfo> {
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        pod(
            name,
            json!({}),
            json!({"containers": [], "volumes": volumes}),
        )
    }

    #[test]
    fn where_a_claim_can_be_had() {
        let at = |node: &str| json!({"annotations": {SELECTED_NODE: node}});
        let bound = |volume: &str| {
            json!({"volumeName": volume,
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}})
        };
        for (of, want) in [
            (claim("local", json!({})), Ok("provision")),
            (claim("local", at("a")), Ok("provision")),
            (claim("local", at("b")), Err(NO_VOLUME)),
            (claim("hand", json!({})), Ok("on-a")),
            (claim("hand", bound("on-a")), Ok("")),
            (claim("hand", bound("on-b")), Err(ELSEWHERE)),
            (claim("hand", bound("gone")), Err(LOST)),
        ] {
            let storage = Storage::of(&user("p"), &objects(Some(of)));
            assert_eq!(storage.problem(), None);
            let mut cluster = Cluster::default();
            cluster.set_node(node("a", json!({}), json!({})));
            let plan = storage.plan(&cluster.nodes[0]);
            let words = plan.map(|steps| match steps.first() {
                None => String::new(),
                Some(Step::Provision(_)) => "provision".to_owned(),
                Some(Step::Take { volume, .. }) => volume.name_any(),
            });
            assert_eq!(words, want.map(str::to_owned));
        }
    }

    #[test]
    fn claims_that_let_a_pod_go_nowhere() {
        let immediate = "pod has unbound immediate PersistentVolumeClaims";
        for (of, want) in [
            (None, "persistentvolumeclaim \"c\" not found"),
            (Some(claim("now", json!({}))), immediate),
            (Some(claim("unknown", json!({}))), immediate),
            (
                Some(claim("local", json!({"volumeName": "on-a"}))),
                immediate,
            ),
            (
                Some(claim("local", json!({"deleted": true}))),
                "persistentvolumeclaim \"c\" is being deleted",
            ),
        ] {
            let storage = Storage::of(&user("p"), &objects(of));
            assert_eq!(storage.problem(), Some(want));
        }
    }

    #[test]
    fn one_pod_at_a_time() {
        let exclusive = claim("local", json!({"mode": "ReadWriteOncePod"}));
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            cluster.set_node(node(name, json!({}), json!({})));
        }
        cluster.storage = Arc::new(Storage::of(&user("p"), &objects(Some(exclusive))));
        let check = |cluster: &Cluster, at: &str| {
            let (pod, node) = (user("p"), cluster.node(at).expect("a node"));
            let filter = Filter::new(&pod, cluster);
            filter
                .check(&pod, node)
                .map(|reject| reject.preemption_helps)
        };
        assert_eq!(check(&cluster, "a"), None);
        cluster.set_pod(user("other"), "a");
        assert_eq!(check(&cluster, "a"), Some(true));
        assert_eq!(check(&cluster, "b"), Some(true), "also on another node");
        cluster.remove_pod("other");
        assert_eq!(check(&cluster, "b"), None);
    }
}
