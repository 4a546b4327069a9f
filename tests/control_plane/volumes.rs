//! Persistent volumes and claims.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_gets_a_volume_and_leaves_it_released() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let volumes: Api<PersistentVolume> = Api::all(lab.client.clone());
    for (name, size) in [("big", "9Gi"), ("small", "1Gi")] {
        let volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "m", "hostPath": {"path": "/x"}}});
        volumes.create(&params, &object(volume)?).await?;
    }
    let volume_phase = async |name: &str| -> Result<String, kube::Error> {
        let status = volumes.get(name).await?.status.unwrap_or_default();
        Ok(status.phase.unwrap_or_default())
    };
    until("both volumes are available", || async {
        Ok(
            volume_phase("big").await? == "Available"
                && volume_phase("small").await? == "Available",
        )
    })
    .await?;
    let claims: Api<PersistentVolumeClaim> = lab.api("default");
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "m", "resources": {"requests": {"storage": "500Mi"}}}});
    claims.create(&params, &object(claim)?).await?;
    until("the smaller volume is bound", || async {
        let claim = claims.get("c").await?;
        let status = claim.status.unwrap_or_default();
        let named = claim.spec.and_then(|spec| spec.volume_name);
        Ok(status.phase.as_deref() == Some("Bound")
            && named.as_deref() == Some("small")
            && volume_phase("small").await? == "Bound")
    })
    .await?;
    let pods: Api<Pod> = lab.api("default");
    let pod = json!({"metadata": {"name": "user"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    pods.create(&params, &object(pod)?).await?;
    until("the pod has a node", || async {
        Ok(pods
            .get("user")
            .await?
            .spec
            .and_then(|spec| spec.node_name)
            .is_some())
    })
    .await?;
    let gone = DeleteParams::default();
    claims.delete("c", &gone).await?;
    let held = claims.get("c").await?;
    assert!(held.metadata.deletion_timestamp.is_some(), "a pod uses it");
    pods.delete("user", &DeleteParams::default().grace_period(0))
        .await?;
    until("claim and pod are gone, the volume is released", || async {
        Ok(claims.get_opt("c").await?.is_none() && volume_phase("small").await? == "Released")
    })
    .await?;
    volumes.delete("small", &gone).await?;
    until("the volume is gone, the other free", || async {
        Ok(volumes.get_opt("small").await?.is_none() && volume_phase("big").await? == "Available")
    })
    .await
}
