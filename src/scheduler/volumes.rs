//! Claims of a pod that has just got its node: those whose volumes are made for the first pod are told
//! the node, and the pod is bound once they have their volumes.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::pod::PodInfo;
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// As long as the original waits.
const BOUND_WITHIN: Duration = Duration::from_secs(600);
/// The cache may show a claim a moment after the pod that uses it.
const MISSED_AFTER: Duration = Duration::from_secs(1);

/// Why a pod's volumes are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("tell claim {claim} the node")]
    Select {
        claim: Key,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("claim {claim} {why}")]
    Changed { claim: Key, why: &'static str },
    #[error("the volumes are not bound within {BOUND_WITHIN:?}")]
    Late,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
}

impl Volumes {
    pub fn new(informers: &Informers) -> Self {
        Self {
            client: informers.client().clone(),
            claims: informers.get(),
            classes: informers.get(),
            pods: informers.get(),
        }
    }

    pub async fn synced(&self) {
        self.claims.synced().await;
        self.classes.synced().await;
    }

    /// Ends when every claim that waits for its first pod is bound. A claim that is not there yet is
    /// waited for too, and missed aloud.
    pub async fn bind(&self, pod: &PodInfo, node: &str, events: &Recorder) -> Result<(), Error> {
        let names = claims_of(&pod.pod);
        if names.is_empty() {
            return Ok(());
        }
        let bound = async {
            // Subscribed before the first look, so that nothing falls between.
            let (mut changes, mut pods) = (self.claims.changes(), self.pods.changes());
            let mut missed = false;
            loop {
                let (mut open, mut missing) = (false, None);
                for key in &names {
                    self.select(pod, key, node).await?;
                    match self.state(pod, key, node)? {
                        State::Ready => {}
                        State::Waits => open = true,
                        State::Missing => missing = Some(key),
                    }
                }
                if !open && missing.is_none() {
                    return Ok(());
                }
                let changed = async {
                    tokio::select! {
                        change = changes.next() => change.is_some(),
                        change = pods.next() => change.is_some(),
                    }
                };
                let goes_on = match missing.filter(|_| !missed) {
                    None => changed.await,
                    Some(key) => match tokio::time::timeout(MISSED_AFTER, changed).await {
                        Ok(goes_on) => goes_on,
                        Err(_) => {
                            missed = true;
                            let text = format!("persistentvolumeclaim {:?} not found", key.name);
                            events.record(&*pod.pod, Level::Warning, "FailedScheduling", text);
                            true
                        }
                    },
                };
                // Nobody wants it any more: its binding will be refused.
                if !goes_on || !self.is_there(pod) {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(BOUND_WITHIN, bound).await {
            Ok(done) => done,
            Err(_) => Err(Error::Late),
        }
    }

    fn is_there(&self, pod: &PodInfo) -> bool {
        let there = self.pods.get(&pod.key);
        there.is_some_and(|there| there.metadata.uid == pod.pod.metadata.uid)
    }

    /// A claim for which somebody makes a volume once it has a node.
    fn waiting(&self, pod: &PodInfo, key: &Key) -> Option<Arc<PersistentVolumeClaim>> {
        let claim = self.claims.get(key)?;
        let owned = claim.owner_references().iter().all(|owner| {
            owner.kind != "Pod" || owner.controller != Some(true) || {
                Some(&owner.uid) == pod.pod.metadata.uid.as_ref()
            }
        });
        let class = claim.spec.as_ref()?.storage_class_name.as_ref()?;
        let class = self.classes.get(&Key::new("", class))?;
        (owned && !is_bound(&claim) && waits(&class)).then_some(claim)
    }

    async fn select(&self, pod: &PodInfo, key: &Key, node: &str) -> Result<(), Error> {
        let Some(claim) = self.waiting(pod, key) else {
            return Ok(());
        };
        if claim.annotations().get(SELECTED_NODE).map(String::as_str) == Some(node) {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "uid": claim.metadata.uid,
            "annotations": {SELECTED_NODE: node},
        }});
        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(|source| Error::Select {
                claim: key.clone(),
                source: Box::new(source),
            })
    }

    /// What of the claim the pod has to wait for, as far as the cache shows.
    fn state(&self, pod: &PodInfo, key: &Key, node: &str) -> Result<State, Error> {
        let Some(claim) = self.claims.get(key) else {
            return Ok(State::Missing);
        };
        if self.waiting(pod, key).is_none() {
            return Ok(State::Ready);
        }
        match claim.annotations().get(SELECTED_NODE) {
            Some(selected) if selected != node => Err(Error::Changed {
                claim: key.clone(),
                why: "was given to another node",
            }),
            _ => Ok(State::Waits),
        }
    }
}

/// What a pod has to expect of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Waits,
    Missing,
}

/// Names of the claims that the pod uses, of those made for it alone too.
pub fn claims_of(pod: &Pod) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(source), _) => source.claim_name.clone(),
                (None, Some(_)) => format!("{}-{}", pod.name_any(), volume.name),
                (None, None) => return None,
            };
            Some(Key::new(namespace.clone(), name))
        })
        .collect()
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    status.and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Whether volumes of the class are made, and not before a pod has its node.
fn waits(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        && class.provisioner != "kubernetes.io/no-provisioner"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_claims_wait_for_a_node() {
        for (mode, provisioner, want) in [
            ("WaitForFirstConsumer", "vetch.io/local", true),
            (
                "WaitForFirstConsumer",
                "kubernetes.io/no-provisioner",
                false,
            ),
            ("Immediate", "vetch.io/local", false),
        ] {
            let class = json!({"metadata": {"name": "c"}, "provisioner": provisioner,
                "volumeBindingMode": mode});
            let class = serde_json::from_value(class).expect("a class");
            assert_eq!(waits(&class), want, "{mode} {provisioner}");
        }
    }

    #[test]
    fn a_pod_names_its_claims() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [],
            "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "b", "ephemeral": {}}, {"name": "d", "emptyDir": {}}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        assert_eq!(claims_of(&pod), [Key::new("n", "c"), Key::new("n", "p-b")]);
    }
}
