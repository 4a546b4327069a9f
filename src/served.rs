//! Which of this node's pods Services send new connections to, as its packets know it.
//!
//! The proxy writes it, after the kernel has a change; the kubelet reads it: a pod that ends gets its signal when
//! nobody is sent to it any more.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::informer::Key;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_service: Mutex<HashMap<Key, BTreeSet<IpAddr>>>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

impl Served {
    fn by_service(&self) -> MutexGuard<'_, HashMap<Key, BTreeSet<IpAddr>>> {
        let by_service = self.0.by_service.lock();
        by_service.unwrap_or_else(PoisonError::into_inner)
    }

    /// The Service's packets go to these pods of the node from now on, unless they go to others.
    pub fn set(&self, service: &Key, pods: BTreeSet<IpAddr>) {
        let mut by_service = self.by_service();
        let before = match pods.is_empty() {
            true => by_service.remove(service),
            false => by_service.insert(service.clone(), pods.clone()),
        };
        drop(by_service);
        if before.unwrap_or_default() != pods {
            self.0.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn has(&self, pod: &[IpAddr]) -> bool {
        let by_service = self.by_service();
        let mut served = by_service.values();
        served.any(|served| pod.iter().any(|address| served.contains(address)))
    }

    /// Resolves when nobody is sent to the pod with these addresses.
    pub async fn left(&self, pod: &[IpAddr]) {
        let mut changes = self.0.changes.subscribe();
        while self.has(pod) {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_pod_is_left_when_the_last_service_has_let_it_go() {
        let served = Served::default();
        let pod = ["10.42.0.2".parse().unwrap(), "fd42::2".parse().unwrap()];
        let (a, b) = (Key::new("n", "a"), Key::new("n", "b"));
        served.left(&pod).await;
        served.set(&a, BTreeSet::from([pod[0]]));
        served.set(&b, BTreeSet::from([pod[1], "fd42::3".parse().unwrap()]));
        let waiting = served.clone();
        let mut left = tokio::spawn(async move { waiting.left(&pod).await });
        served.set(&a, BTreeSet::new());
        let early = tokio::time::timeout(Duration::from_millis(20), &mut left).await;
        assert!(early.is_err(), "another one still sends there");
        served.set(&b, BTreeSet::from(["fd42::3".parse().unwrap()]));
        left.await.unwrap();
    }
}
