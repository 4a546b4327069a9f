//! This node's pods, for whoever looks them up.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::Pod;

use super::Pods;

#[derive(Default)]
pub struct Book {
    pods: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    by_uid: HashMap<String, Listed>,
    /// Given out so far.
    numbers: u64,
}

struct Listed {
    pod: Arc<Pod>,
    /// In the order in which the pods came to this node: their times of creation are whole seconds.
    number: u64,
}

impl Book {
    /// Adds the pod, or its newer version.
    pub fn put(&self, uid: &str, pod: Arc<Pod>) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(listed) = pods.by_uid.get_mut(uid) {
            listed.pod = pod;
            return;
        }
        pods.numbers += 1;
        let number = pods.numbers;
        pods.by_uid.insert(uid.to_owned(), Listed { pod, number });
    }

    pub fn remove(&self, uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.by_uid.remove(uid);
    }
}

impl Pods for Book {
    /// The one that came last, if one of the same name is still ending.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let is_it = |listed: &&Listed| {
            listed.pod.metadata.name.as_deref() == Some(name)
                && listed.pod.metadata.namespace.as_deref() == Some(namespace)
        };
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let named = pods.by_uid.values().filter(is_it);
        let last = named.max_by_key(|listed| listed.number)?;
        Some(last.pod.clone())
    }

    fn pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        Some(pods.by_uid.get(uid)?.pod.clone())
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let all = pods.by_uid.values();
        all.map(|listed| listed.pod.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;
    use serde_json::json;

    use super::*;

    #[test]
    fn of_one_name_the_pod_that_came_last_is_found() {
        let pod = |uid: &str, label: &str| -> Arc<Pod> {
            let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": uid,
                "labels": {"is": label}, "creationTimestamp": "2026-01-01T00:00:00Z"}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        // Whatever the order of their UIDs, and of the maps that hold them.
        for number in 0..32 {
            let book = Book::default();
            let (old, new) = (format!("old-{number}"), format!("new-{number}"));
            book.put(&old, pod(&old, "a"));
            book.put(&new, pod(&new, "a"));
            // News of the one that is ending do not bring it back.
            book.put(&old, pod(&old, "b"));
            assert_eq!(book.pod("n", "p").and_then(|pod| pod.uid()), Some(new));
            let by_uid = book.pod_by_uid(&old).unwrap();
            assert_eq!(by_uid.labels()["is"], "b");
            book.remove(&old);
            assert!(book.pod_by_uid(&old).is_none());
        }
    }
}
