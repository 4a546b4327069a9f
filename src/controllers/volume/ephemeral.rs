//! Claims that pods bring along: a volume of kind `ephemeral` is a claim of the pod's own, made from the
//! template in it, which goes with the pod.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use tokio_util::sync::CancellationToken;

use crate::{
    controllers::{
        error::{Doing, Error, already_exists, namespace_terminating},
        pods::controller_ref,
        shared::{Controller, Loop, Next, Stopped},
    },
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
    placement::volumes::{ephemeral_name, is_made_for},
};

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let pods: Informer<Pod> = informers.get();
    let claims: Informer<PersistentVolumeClaim> = informers.get();
    let client = informers.client().clone();
    let maker = Maker {
        events: Recorder::start(client.clone(), "ephemeral_volume"),
        client,
        pods: pods.clone(),
        claims: claims.clone(),
    };
    Loop::new(maker, &pods)
        .watch_changes(
            &claims,
            |_, _| true,
            |claim| {
                let owners = claim.metadata.owner_references.iter().flatten();
                let pods = owners.filter(|owner| owner.kind == "Pod");
                let namespace = claim.metadata.namespace.clone().unwrap_or_default();
                pods.map(|owner| Key::new(namespace.clone(), &owner.name))
                    .collect()
            },
        )
        .run(4, shutdown)
        .await
}

/// The claims that the pod's volumes are to have.
fn wanted(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let made = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
        let given = template.metadata.clone().unwrap_or_default();
        Some(PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(ephemeral_name(pod, &volume.name)),
                namespace: pod.metadata.namespace.clone(),
                labels: given.labels,
                annotations: given.annotations,
                owner_references: Some(vec![controller_ref(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        })
    });
    made.collect()
}

struct Maker {
    client: Client,
    events: Recorder,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
}

impl Controller for Maker {
    const NAME: &'static str = "ephemeral-volume-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.pods.get(key);
        let Some(pod) = held.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(Next::Settled);
        };
        for claim in wanted(&pod) {
            let of = Key::of(&claim);
            if self
                .claims
                .get(&of)
                .is_some_and(|held| is_made_for(&pod, &held))
            {
                continue;
            }
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(self.client.clone(), &key.namespace);
            match claims.create(&PostParams::default(), &claim).await {
                Err(error) if namespace_terminating(&error) => {}
                Err(error) if already_exists(&error) => {
                    let held = claims.get_opt(&of.name).await;
                    let held = held.doing(|| format!("ask for claim {of}"))?;
                    if held.is_some_and(|held| !is_made_for(&pod, &held)) {
                        let text = format!(
                            "PVC \"{of}\" was not created for pod \"{key}\" (pod is not owner)"
                        );
                        self.events.record(
                            &*pod,
                            Level::Warning,
                            "EphemeralVolumeCreateFailed",
                            text,
                        );
                    }
                }
                made => {
                    if let Err(error) = &made {
                        let text = format!("ephemeral volume: create PVC {of}: {error}");
                        self.events.record(
                            &*pod,
                            Level::Warning,
                            "EphemeralVolumeCreateFailed",
                            text,
                        );
                    }
                    made.doing(|| format!("create claim {of} of pod {key}"))?;
                }
            }
        }
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_own_claims() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"]}}}},
                {"name": "other", "persistentVolumeClaim": {"claimName": "c"}},
            ]},
        }))
        .expect("a pod");
        let made = wanted(&pod);
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].metadata.name.as_deref(), Some("p-scratch"));
        assert!(is_made_for(&pod, &made[0]));
        let mut later = pod.clone();
        later.metadata.uid = Some("v".into());
        assert!(!is_made_for(&later, &made[0]));
    }
}
