//! What the informers tell: each change of a node, pod or claim, and the whole now and then.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use tokio::time::Instant;

use super::{
    ON_POD_GONE, ON_POD_PLACED, Scheduler,
    plugins::Plugins,
    pod::{PodInfo, Uid, nominated, uid_of},
};
use crate::{
    informer::{Informer, Key},
    placement::volumes::is_bound,
};

impl Scheduler {
    /// Compares everything: after changes were missed, and in case some were.
    pub(super) fn resync(&mut self, pods: &Informer<Pod>, nodes: &Informer<Node>) {
        let names: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .map(|node| node.name.clone())
            .filter(|name| nodes.get(&Key::new("", name)).is_none())
            .collect();
        for name in names {
            self.cluster.remove_node(&name);
        }
        let all = pods.list();
        let live: HashSet<Uid> = all.iter().map(|pod| uid_of(pod)).collect();
        let mut known = self.cluster.pods();
        known.extend(self.queue.pods());
        known.extend(self.cluster.promises.pods());
        for uid in known.iter().filter(|uid| !live.contains(*uid)) {
            self.pod_gone(uid);
        }
        for node in nodes.list() {
            self.cluster.set_node(node);
        }
        for pod in all {
            if !self.cluster.counts(&pod) {
                self.pod_applied(None, pod);
            }
        }
        self.queue.wake(Plugins::ALL, Instant::now());
    }

    pub(super) fn node_applied(&mut self, old: Option<&Node>, new: Arc<Node>) {
        let helps = old.is_none_or(|old| matters(old, &new));
        self.cluster.set_node(new);
        if helps {
            self.queue.wake(Plugins::ALL, Instant::now());
        }
    }

    /// Pods that waited for a claim which has come, or has its volume now, are tried at once.
    pub(super) fn claim_applied(
        &mut self,
        old: Option<&PersistentVolumeClaim>,
        new: &PersistentVolumeClaim,
    ) {
        let same = old.is_some_and(|old| {
            is_bound(old) == is_bound(new)
                && old.spec == new.spec
                && old.metadata.annotations == new.metadata.annotations
        });
        if same {
            return;
        }
        let key = Key::of(new);
        self.queue.wake_at_once(Plugins::VOLUMES, |pod| {
            pod.key.namespace == key.namespace
                && pod.claims.iter().any(|(name, _)| *name == key.name)
        });
    }

    pub(super) fn pod_applied(&mut self, old: Option<&Pod>, new: Arc<Pod>) {
        let uid = uid_of(&new);
        let status = new.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_gone(&uid);
        }
        let spec = new.spec.as_ref();
        let node = spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|node| !node.is_empty());
        if let Some(node) = node {
            self.queue.remove(&uid);
            self.in_flight.remove(&uid);
            let elsewhere = self.cluster.promises.end(&uid);
            if elsewhere.is_some_and(|promised| promised != node) {
                self.queue.wake(ON_POD_GONE, Instant::now());
            }
            let changed = old.is_none_or(|old| {
                old.spec != new.spec || old.metadata.labels != new.metadata.labels
            });
            // What is known to be there already is not placed again for each status.
            if changed || !self.cluster.has_pod(&uid) || self.cluster.is_assumed(&uid) {
                self.cluster.set_pod(Arc::new(PodInfo::new(new)), &node);
                self.queue.wake(ON_POD_PLACED, Instant::now());
            } else {
                self.cluster.refresh_pod(&uid, new);
            }
            return;
        }
        let ours = spec
            .and_then(|spec| spec.scheduler_name.as_deref())
            .unwrap_or("default-scheduler")
            == self.config.scheduler_name;
        let gated = spec
            .and_then(|spec| spec.scheduling_gates.as_ref())
            .is_some_and(|gates| !gates.is_empty());
        if !ours || gated || new.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&uid);
            self.end_promise(&uid);
            return;
        }
        if self.cluster.is_assumed(&uid) {
            return; // its binding is on the way
        }
        let changed = old.is_none_or(|old| {
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || old.metadata.annotations != new.metadata.annotations
        });
        let pod = Arc::new(PodInfo::new(new));
        self.follow_nomination(old, &pod);
        self.queue.add(pod, changed);
    }

    /// What a pod's status says of the node it was promised is known here before, unless the status is
    /// of before a restart, or somebody else has changed it.
    fn follow_nomination(&mut self, old: Option<&Pod>, pod: &Arc<PodInfo>) {
        if self.statuses.is_pending(&pod.uid) {
            return;
        }
        let Some(old) = old else {
            return self.cluster.promises.take_over(pod);
        };
        match pod.nominated() {
            now if now == nominated(old) => {}
            None => self.end_promise(&pod.uid),
            Some(node) if self.cluster.promises.of(&pod.uid) == Some(node) => {}
            Some(_) => {
                self.end_promise(&pod.uid);
                self.cluster.promises.take_over(pod);
            }
        }
    }

    pub(super) fn pod_gone(&mut self, uid: &Uid) {
        self.queue.remove(uid);
        if let Some(binding) = self.in_flight.remove(uid) {
            binding.cancel();
        }
        self.statuses.forget(uid);
        let was_there = self.cluster.remove_pod(uid).is_some();
        let was_promised = self.cluster.promises.end(uid).is_some();
        if was_there || was_promised {
            self.queue.wake(ON_POD_GONE, Instant::now());
        }
    }
}

/// True if a node's change may make room or lift an objection. Heartbeats do not.
fn matters(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| {
        let status = node.status.as_ref();
        status.and_then(|status| status.allocatable.clone())
    };
    let spec = |node: &Node| {
        let spec = node.spec.clone().unwrap_or_default();
        (spec.taints, spec.unschedulable)
    };
    old.metadata.labels != new.metadata.labels
        || spec(old) != spec(new)
        || allocatable(old) != allocatable(new)
}
