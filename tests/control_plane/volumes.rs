//! Persistent volumes and claims.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

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

async fn label_node(lab: &Lab) -> TestResult {
    let nodes: Api<Node> = Api::all(lab.client.clone());
    let patch = json!({"metadata": {"labels": {"kubernetes.io/hostname": "n1"}}});
    nodes
        .patch("n1", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

fn claim(name: &str, more: Value) -> Result<PersistentVolumeClaim, serde_json::Error> {
    let mut claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    for (key, one) in more.as_object().into_iter().flatten() {
        claim["spec"][key] = one.clone();
    }
    object(claim)
}

fn user(name: &str, claim: &str) -> Result<Pod, serde_json::Error> {
    object(json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}))
}

/// The volume of a claim that is bound.
async fn volume_of(
    claims: &Api<PersistentVolumeClaim>,
    name: &str,
) -> Result<Option<String>, kube::Error> {
    let claim = claims.get(name).await?;
    let bound = claim.status.and_then(|status| status.phase).as_deref() == Some("Bound");
    Ok(claim
        .spec
        .and_then(|spec| spec.volume_name)
        .filter(|_| bound))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_without_a_class_gets_a_folder_of_its_pods_node() -> TestResult {
    let lab = Lab::new().await?;
    label_node(&lab).await?;
    let params = PostParams::default();
    let claims: Api<PersistentVolumeClaim> = lab.api("default");
    let pods: Api<Pod> = lab.api("default");
    let volumes: Api<PersistentVolume> = Api::all(lab.client.clone());
    let made = claims.create(&params, &claim("c", json!({}))?).await?;
    let spec = made.spec.clone().unwrap_or_default();
    assert_eq!(spec.storage_class_name.as_deref(), Some("local"));
    pods.create(&params, &user("p", "c")?).await?;
    until("the claim is bound, and the pod has its node", || async {
        let pod = pods.get("p").await?;
        Ok(volume_of(&claims, "c").await?.is_some()
            && pod.spec.and_then(|spec| spec.node_name).is_some())
    })
    .await?;
    let uid = made.uid().unwrap_or_default();
    let name = volume_of(&claims, "c").await?.unwrap_or_default();
    assert_eq!(name, format!("pvc-{uid}"));
    let volume = serde_json::to_value(volumes.get(&name).await?)?;
    let path = volume["spec"]["local"]["path"].as_str().unwrap_or_default();
    assert!(
        path.ends_with(&format!("/volumes/pvc-{uid}_default_c")),
        "{path}"
    );
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Delete");

    // It grows.
    let patch = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    claims
        .patch("c", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    until("claim and volume have grown", || async {
        let status = claims.get("c").await?.status.unwrap_or_default();
        let capacity = status.capacity.unwrap_or_default();
        let volume = serde_json::to_value(volumes.get(&name).await?).unwrap_or_default();
        Ok(capacity.get("storage").is_some_and(|size| size.0 == "2Gi")
            && volume["spec"]["capacity"]["storage"] == "2Gi")
    })
    .await?;

    // Folder and volume go with the claim: the node's part runs only from here.
    let folder = lab
        ._dir
        .path()
        .join("volumes")
        .join(format!("pvc-{uid}_default_c"));
    std::fs::create_dir_all(folder.join("deep"))?;
    std::fs::write(folder.join("deep/file"), "data")?;
    pods.delete("p", &DeleteParams::default().grace_period(0))
        .await?;
    claims.delete("c", &DeleteParams::default()).await?;
    until("the volume waits for its node", || async {
        let volume = volumes.get(&name).await?;
        Ok(volume.metadata.deletion_timestamp.is_some())
    })
    .await?;
    assert!(folder.join("deep/file").exists());
    let stop = CancellationToken::new();
    tokio::spawn(vetch::kubelet::local_volumes::run(
        Informers::new(lab.client.clone()),
        "n1".into(),
        lab._dir.path().join("volumes"),
        stop.clone(),
    ));
    let _stops = stop.drop_guard();
    until("the volume is gone", || async {
        Ok(volumes.get_opt(&name).await?.is_none())
    })
    .await?;
    assert!(!folder.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_came_before_a_default_class_get_it_and_those_that_want_none_do_not()
-> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let classes: Api<StorageClass> = Api::all(lab.client.clone());
    classes.delete("local", &DeleteParams::default()).await?;
    let claims: Api<PersistentVolumeClaim> = lab.api("default");
    claims.create(&params, &claim("early", json!({}))?).await?;
    let none = claim("none", json!({"storageClassName": ""}))?;
    claims.create(&params, &none).await?;
    let class = async |name: &str| -> Result<Option<String>, kube::Error> {
        let spec = claims.get(name).await?.spec.unwrap_or_default();
        Ok(spec.storage_class_name)
    };
    assert_eq!(class("early").await?, None);
    let late = json!({"metadata": {"name": "late", "annotations":
        {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "example.com/p",
        "volumeBindingMode": "Immediate"});
    classes.create(&params, &object(late)?).await?;
    until(
        "the early claim has the class and is left to its provisioner",
        || async {
            let marks = claims.get("early").await?.metadata.annotations;
            let by = marks.unwrap_or_default();
            let by = by.get("volume.kubernetes.io/storage-provisioner").cloned();
            Ok(class("early").await?.as_deref() == Some("late")
                && by.as_deref() == Some("example.com/p"))
        },
    )
    .await?;
    assert_eq!(class("none").await?.as_deref(), Some(""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_bring_claims_of_their_own_and_share_none_that_one_may_use() -> TestResult {
    let lab = Lab::new().await?;
    label_node(&lab).await?;
    let params = PostParams::default();
    let pods: Api<Pod> = lab.api("default");
    let claims: Api<PersistentVolumeClaim> = lab.api("default");
    let scratch = json!({"metadata": {"name": "brings"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}]}});
    let accounts: Api<ServiceAccount> = lab.api("default");
    until("the default account is there", || async {
        Ok(accounts.get_opt("default").await?.is_some())
    })
    .await?;
    pods.create(&params, &object(scratch)?).await?;
    let node_of = async |name: &str| -> Result<Option<String>, kube::Error> {
        Ok(pods.get(name).await?.spec.and_then(|spec| spec.node_name))
    };
    until("the pod has its claim and its node", || async {
        Ok(node_of("brings").await?.is_some()
            && volume_of(&claims, "brings-scratch").await?.is_some())
    })
    .await?;
    pods.delete("brings", &DeleteParams::default().grace_period(0))
        .await?;
    until("its claim goes with it", || async {
        Ok(claims.get_opt("brings-scratch").await?.is_none())
    })
    .await?;

    let single = claim("single", json!({"accessModes": ["ReadWriteOncePod"]}))?;
    claims.create(&params, &single).await?;
    pods.create(&params, &user("first", "single")?).await?;
    until("the first has its node", || async {
        Ok(node_of("first").await?.is_some())
    })
    .await?;
    pods.create(&params, &user("second", "single")?).await?;
    until("the second is told why it waits", || async {
        let status = pods.get("second").await?.status.unwrap_or_default();
        let mut conditions = status.conditions.into_iter().flatten();
        Ok(conditions.any(|one| {
            one.message
                .is_some_and(|text| text.contains("ReadWriteOncePod access mode"))
        }))
    })
    .await?;
    pods.delete("first", &DeleteParams::default().grace_period(0))
        .await?;
    until("the second comes when the first goes", || async {
        Ok(node_of("second").await?.is_some())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_counts_what_claims_ask_for() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let of_class = "local.storageclass.storage.k8s.io/requests.storage";
    let quotas: Api<ResourceQuota> = lab.api("default");
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {
        "requests.storage": "3Gi", of_class: "3Gi",
        "local.storageclass.storage.k8s.io/persistentvolumeclaims": "5"}}});
    quotas.create(&params, &object(quota)?).await?;
    let claims: Api<PersistentVolumeClaim> = lab.api("default");
    claims.create(&params, &claim("one", json!({}))?).await?;
    until("it is counted", || async {
        let used = quotas.get("q").await?.status.and_then(|status| status.used);
        let used = used.unwrap_or_default();
        Ok(["requests.storage", of_class]
            .iter()
            .all(|name| used.get(*name).is_some_and(|size| size.0 == "1Gi")))
    })
    .await?;
    let large = claim(
        "large",
        json!({"resources": {"requests": {"storage": "3Gi"}}}),
    )?;
    let refused = claims.create(&params, &large).await;
    let words = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(words.contains("requests.storage=3Gi, used: "), "{words}");
    Ok(())
}
