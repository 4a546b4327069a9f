//! Claims stay while a pod uses them, volumes while they are bound: finalizers hold them, which
//! admission has set, and which are taken away here.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{
    controllers::{
        error::{Doing, Error, OrGone},
        shared::{Controller, Loop, Next, Stopped},
    },
    informer::{Informer, Informers, Key},
    placement::volumes::{claim_names, phase},
};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Guards claims until `shutdown`.
pub async fn run_claims(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let claims: Informer<PersistentVolumeClaim> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let guard = Claims {
        client: informers.client().clone(),
        claims: claims.clone(),
        pods: pods.clone(),
    };
    Loop::new(guard, &claims)
        .watch_changes(
            &pods,
            |old, new| old.spec == new.spec && is_over(old) == is_over(new),
            claims_of,
        )
        .run(1, shutdown)
        .await
}

/// Guards volumes until `shutdown`.
pub async fn run_volumes(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let volumes: Informer<PersistentVolume> = informers.get();
    let guard = Volumes {
        client: informers.client().clone(),
        volumes: volumes.clone(),
    };
    Loop::new(guard, &volumes).run(1, shutdown).await
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The claims that a pod uses, also those made for it alone.
pub fn claims_of(pod: &Pod) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    let names = claim_names(pod).into_iter();
    names
        .map(|(name, _)| Key::new(namespace.clone(), name))
        .collect()
}

/// Whether the pod has no node although its scheduler has looked at it, or it is another's than ours, of
/// which nobody knows when it looks.
pub fn is_kept_waiting(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref());
    let status = pod.status.as_ref();
    let mut conditions = status
        .iter()
        .flat_map(|status| &status.conditions)
        .flatten();
    let refused = conditions.any(|one| one.type_ == "PodScheduled" && one.status == "False");
    node.unwrap_or_default().is_empty()
        && !is_over(pod)
        && (refused || scheduler.is_some_and(|name| name != "default-scheduler"))
}

/// The names of the pods that wait for a node and want the claim, among those of its namespace.
pub fn waiting_users(claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> Vec<String> {
    let key = Key::of(claim);
    let waiting = pods.iter().filter(|pod| is_kept_waiting(pod));
    let using = waiting.filter(|pod| claims_of(pod).contains(&key));
    using.map(|pod| pod.name_any()).collect()
}

/// Whether a pod of the claim's namespace wants it.
fn is_used(claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> bool {
    let key = Key::of(claim);
    let mut live = pods.iter().filter(|pod| !is_over(pod));
    live.any(|pod| claims_of(pod).contains(&key))
}

/// Whether a pod that has a node wants it: what runs nowhere has nothing mounted.
fn mounts(claim: &PersistentVolumeClaim, mut pods: Vec<Arc<Pod>>) -> bool {
    pods.retain(|pod| {
        let spec = pod.spec.as_ref();
        spec.is_some_and(|spec| spec.node_name.is_some())
    });
    is_used(claim, &pods)
}

struct Claims {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

impl Controller for Claims {
    const NAME: &'static str = "pvc-protection-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.claims.get(key);
        let Some(claim) = held.filter(|claim| ends_with(&**claim, CLAIM)) else {
            return Ok(Next::Settled);
        };
        if mounts(&claim, self.pods.list_in(&key.namespace)) {
            return Ok(Next::Settled);
        }
        // The cache may not show yet that a pod has come or got its node.
        let pods = Api::<Pod>::namespaced(self.client.clone(), &key.namespace)
            .list(&ListParams::default())
            .await
            .doing(|| format!("ask who uses claim {key}"))?;
        if !mounts(&claim, pods.items.into_iter().map(Arc::new).collect()) {
            let api = Api::namespaced(self.client.clone(), &key.namespace);
            release(&api, &*claim, CLAIM).await?;
        }
        Ok(Next::Settled)
    }
}

struct Volumes {
    client: Client,
    volumes: Informer<PersistentVolume>,
}

impl Controller for Volumes {
    const NAME: &'static str = "pv-protection-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.volumes.get(key);
        let Some(volume) = held.filter(|volume| ends_with(&**volume, VOLUME)) else {
            return Ok(Next::Settled);
        };
        if phase(&volume) != "Bound" {
            release(&Api::all(self.client.clone()), &*volume, VOLUME).await?;
        }
        Ok(Next::Settled)
    }
}

/// Terminating, and held by this finalizer.
fn ends_with<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.meta().deletion_timestamp.is_some()
        && object.finalizers().iter().any(|one| one == finalizer)
}

async fn release<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let name = object.name_any();
    let mut free = object.clone();
    free.finalizers_mut().retain(|one| one != finalizer);
    api.replace(&name, &PostParams::default(), &free)
        .await
        .or_gone()
        .doing(|| format!("let {} {name} go", K::kind(&())))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_is_kept_waiting() {
        let condition =
            |status: &str| json!({"conditions": [{"type": "PodScheduled", "status": status}]});
        let ours = json!({"containers": [], "schedulerName": "default-scheduler"});
        let others = json!({"containers": [], "schedulerName": "other"});
        let placed = json!({"containers": [], "schedulerName": "other", "nodeName": "a"});
        for (spec, status, want) in [
            (&ours, json!({}), false),
            (&ours, condition("False"), true),
            (&ours, condition("True"), false),
            (&others, json!({}), true),
            (&placed, json!({}), false),
            (&others, json!({"phase": "Failed"}), false),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
            let pod: Pod = serde_json::from_value(pod.clone()).expect("a pod");
            assert_eq!(is_kept_waiting(&pod), want, "{pod:?}");
        }
    }

    #[test]
    fn who_uses_a_claim() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "p-v", "namespace": "n"}}))
                .expect("a claim");
        for (volume, phase, want) in [
            (
                json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-v"}}),
                "Running",
                true,
            ),
            (
                json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-v"}}),
                "Failed",
                false,
            ),
            (
                json!({"name": "v", "persistentVolumeClaim": {"claimName": "other"}}),
                "Running",
                false,
            ),
            (json!({"name": "v", "ephemeral": {}}), "Running", true),
            (json!({"name": "v", "emptyDir": {}}), "Running", false),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n"},
                "spec": {"containers": [], "volumes": [volume]}, "status": {"phase": phase},
            }))
            .expect("a pod");
            assert_eq!(is_used(&claim, &[Arc::new(pod)]), want, "{volume} {phase}");
        }
    }
}
