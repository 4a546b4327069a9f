//! Claims of pods' own: a volume of kind `ephemeral` gets a claim that goes with its pod.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    controllers::{
        error::{Doing, Error, already_exists, namespace_terminating},
        pods::controller_ref,
        shared::{Controller, Loop, Next, Stopped},
    },
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let pods: Informer<Pod> = informers.get();
    let claims: Informer<PersistentVolumeClaim> = informers.get();
    let maker = Maker {
        client: informers.client().clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        events: Recorder::start(informers.client().clone(), "ephemeral_volume"),
    };
    let pod_of = |claim: &PersistentVolumeClaim| {
        let owners = claim.owner_references().iter();
        let pods = owners.filter(|owner| owner.kind == "Pod" && owner.controller == Some(true));
        let namespace = claim.namespace().unwrap_or_default();
        pods.map(|pod| Key::new(namespace.clone(), &pod.name))
            .collect()
    };
    Loop::new(maker, &pods)
        .watch(&claims, pod_of)
        .run(1, shutdown)
        .await
}

struct Maker {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    events: Recorder,
}

impl Controller for Maker {
    const NAME: &'static str = "ephemeral-volume-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key) else {
            return Ok(Next::Settled);
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        for claim in wanted(&pod) {
            let name = claim.name_any();
            match self.claims.get(&Key::new(&key.namespace, &name)) {
                Some(there) if is_of(&there, &pod) => continue,
                Some(_) => {
                    let why = format!(
                        "PVC {}/{name} was not created for pod {key} (pod is not owner)",
                        key.namespace
                    );
                    self.events
                        .record(&*pod, Level::Warning, "ClaimConflict", why);
                    continue;
                }
                None => {}
            }
            let api = Api::namespaced(self.client.clone(), &key.namespace);
            match api.create(&PostParams::default(), &claim).await {
                Err(error) if already_exists(&error) || namespace_terminating(&error) => {}
                made => {
                    made.doing(|| format!("make claim {name} for pod {key}"))?;
                }
            }
        }
        Ok(Next::Settled)
    }
}

/// The claims that the pod's own volumes are to have.
fn wanted(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let templates = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
        let given = template.metadata.unwrap_or_default();
        Some(PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", pod.name_any(), volume.name)),
                namespace: pod.namespace(),
                labels: given.labels,
                annotations: given.annotations,
                owner_references: Some(vec![controller_ref(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec),
            status: None,
        })
    });
    templates.collect()
}

/// Whether the claim was made for this pod.
fn is_of(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.owner_references().iter();
    let uid = pod.metadata.uid.as_deref();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    controllers.any(|owner| Some(owner.uid.as_str()) == uid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_claim_is_the_pods() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"]}}}},
                {"name": "other", "emptyDir": {}}]},
        }))
        .expect("a pod");
        let claims = wanted(&pod);
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].name_any(), "p-scratch");
        assert_eq!(claims[0].labels()["a"], "b");
        assert!(is_of(&claims[0], &pod));
        let mut other = pod.clone();
        other.metadata.uid = Some("v".into());
        assert!(!is_of(&claims[0], &other));
    }
}
