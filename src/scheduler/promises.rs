//! Room on nodes that is kept for pods whose victims are leaving.
//!
//! Held in memory and, as `nominatedNodeName`, in the pods' status, from which it is taken over after
//! a restart. Pure. Owned by the scheduling loop, which wakes others when a promise ends: what they
//! were not given may be free now.

use std::{collections::HashMap, sync::Arc};

use super::pod::{PodInfo, Uid};

#[derive(Debug, Default)]
pub struct Promises(HashMap<Uid, (String, Arc<PodInfo>)>);

impl Promises {
    /// Keeps room on the node for the pod. Promises of lesser pods there are void: these are they.
    pub fn make(&mut self, pod: &Arc<PodInfo>, node: &str) -> Vec<Arc<PodInfo>> {
        let lesser = self
            .0
            .values()
            .filter(|(name, other)| name == node && other.priority < pod.priority);
        let void: Vec<Arc<PodInfo>> = lesser.map(|(_, other)| other.clone()).collect();
        for other in &void {
            self.0.remove(&other.uid);
        }
        self.0
            .insert(pod.uid.clone(), (node.to_owned(), pod.clone()));
        void
    }

    /// Takes over what a pod's status says, unless it is known better.
    pub fn take_over(&mut self, pod: &Arc<PodInfo>) {
        if let Some(node) = pod.nominated() {
            self.0
                .entry(pod.uid.clone())
                .or_insert_with(|| (node.to_owned(), pod.clone()));
        }
    }

    /// The node where there was one.
    pub fn end(&mut self, uid: &str) -> Option<String> {
        self.0.remove(uid).map(|(node, _)| node)
    }

    pub fn of(&self, uid: &str) -> Option<&str> {
        self.0.get(uid).map(|(node, _)| node.as_str())
    }

    /// The pods that were promised room on a node.
    pub fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let all = self.0.values().filter(move |(name, _)| name == node);
        all.map(|(_, pod)| pod)
    }

    pub fn pods(&self) -> Vec<Uid> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::cluster::tests::pod;

    #[test]
    fn a_promise_voids_those_of_lesser_pods() {
        let one = |name: &str, priority: i32| pod(name, json!({}), json!({"priority": priority}));
        let mut promises = Promises::default();
        promises.make(&one("equal", 5), "a");
        promises.make(&one("low", 1), "a");
        promises.make(&one("elsewhere", 1), "b");
        let void = promises.make(&one("high", 5), "a");
        assert_eq!(void.len(), 1);
        assert_eq!(&*void[0].uid, "low");
        assert_eq!(promises.of("elsewhere"), Some("b"));
        assert_eq!(promises.on("a").count(), 2);
        assert_eq!(promises.end("high").as_deref(), Some("a"));
        assert_eq!(promises.end("high"), None);
    }
}
