//! What hangs on the order of things: objects that are judged before all about them is known, owners
//! that are gone before anybody looked, groups that cannot be asked.

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::core::{ApiResource, GroupVersionKind};

use super::*;

async fn define(
    lab: &Lab,
    plural: &str,
    kind: &str,
    version: &str,
) -> Result<ApiResource, Box<dyn Error + Send + Sync>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let name = format!("{plural}.example.com");
    let definition = json!({"metadata": {"name": name}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
        "versions": [{"name": version, "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    definitions
        .create(&PostParams::default(), &object(definition)?)
        .await?;
    until("the definition is established", || async {
        let status = definitions.get(&name).await?.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        Ok(conditions
            .iter()
            .any(|one| one.type_ == "Established" && one.status == "True"))
    })
    .await?;
    let gvk = GroupVersionKind::gvk("example.com", version, kind);
    Ok(ApiResource::from_gvk_with_plural(&gvk, plural))
}

fn owned(name: &str, api_version: &str, kind: &str, owner: &impl ResourceExt) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": [{"apiVersion": api_version, "kind": kind,
        "name": owner.name_any(), "uid": owner.uid()}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_an_object_of_a_new_kind_goes_with_it() -> TestResult {
    let lab = Lab::new().await?;
    let kind = define(&lab, "tabs", "Tab", "v1").await?;
    let tabs: Api<DynamicObject> = Api::namespaced_with(lab.client.clone(), "default", &kind);
    let maps: Api<ConfigMap> = lab.api("default");
    let params = PostParams::default();
    // Before the collector has heard of the kind, let alone watches it.
    let tab = tabs
        .create(&params, &DynamicObject::new("t", &kind))
        .await?;
    let map = owned("m", "example.com/v1", "Tab", &tab);
    maps.create(&params, &object(map)?).await?;
    tabs.delete("t", &DeleteParams::default()).await?;
    until("the dependent is gone", || async {
        Ok(maps.get_opt("m").await?.is_none())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_of_an_old_version_go_with_their_owners_and_namespaces() -> TestResult {
    let lab = Lab::new().await?;
    // The group's preferred version does not serve the second kind.
    define(&lab, "tabs", "Tab", "v1").await?;
    let kind = define(&lab, "olds", "Old", "v1alpha1").await?;
    let olds = |namespace: &str| -> Api<DynamicObject> {
        Api::namespaced_with(lab.client.clone(), namespace, &kind)
    };
    let maps: Api<ConfigMap> = lab.api("default");
    let params = PostParams::default();
    let owner = object(json!({"metadata": {"name": "owner"}}))?;
    let owner = maps.create(&params, &owner).await?;
    let mut old = DynamicObject::new("o", &kind);
    let reference = owned("o", "v1", "ConfigMap", &owner);
    old.metadata = object(reference["metadata"].clone())?;
    olds("default").create(&params, &old).await?;
    maps.delete("owner", &DeleteParams::default()).await?;
    until("the dependent is gone", || async {
        Ok(olds("default").get_opt("o").await?.is_none())
    })
    .await?;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    let namespace = object(json!({"metadata": {"name": "x"}}))?;
    namespaces.create(&params, &namespace).await?;
    olds("x")
        .create(&params, &DynamicObject::new("inside", &kind))
        .await?;
    namespaces.delete("x", &DeleteParams::default()).await?;
    until("the namespace is gone", || async {
        Ok(namespaces.get_opt("x").await?.is_none())
    })
    .await?;
    let left: Api<DynamicObject> = Api::all_with(lab.client.clone(), &kind);
    assert!(left.list(&ListParams::default()).await?.items.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_waits_for_a_server_that_does_not_answer() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let services: Api<APIService> = Api::all(lab.client.clone());
    let silent = json!({"metadata": {"name": "v1.silent.example"}, "spec": {"group": "silent.example",
        "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10, "insecureSkipTLSVerify": true,
        "service": {"name": "nobody", "namespace": "default"}}});
    services.create(&params, &object(silent)?).await?;
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    until("discovery calls the group stale", || async {
        let request = http::Request::get("/apis")
            .header("accept", AGGREGATED)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        let found: Value = lab.client.request(request).await?;
        let groups = found["items"].as_array().cloned().unwrap_or_default();
        let of = |group: &&Value| group["metadata"]["name"] == "silent.example";
        let group = groups.iter().find(of).cloned().unwrap_or_default();
        Ok(group["versions"][0]["freshness"] == "Stale")
    })
    .await?;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    let namespace = object(json!({"metadata": {"name": "x"}}))?;
    namespaces.create(&params, &namespace).await?;
    lab.api::<ConfigMap>("x")
        .create(&params, &object(json!({"metadata": {"name": "m"}}))?)
        .await?;
    namespaces.delete("x", &DeleteParams::default()).await?;
    const WHY: &str = "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: silent.example/v1: stale GroupVersion discovery: silent.example/v1";
    until(
        "it says why it stays, and what is known is gone",
        || async {
            let status = namespaces.get("x").await?.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let empty = lab.api::<ConfigMap>("x").get_opt("m").await?.is_none();
            Ok(empty
                && conditions.iter().any(|one| {
                    one.type_ == "NamespaceDeletionDiscoveryFailure"
                        && one.status == "True"
                        && one.message.as_deref() == Some(WHY)
                }))
        },
    )
    .await?;
    services
        .delete("v1.silent.example", &DeleteParams::default())
        .await?;
    until("the namespace is gone", || async {
        Ok(namespaces.get_opt("x").await?.is_none())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_no_job_counts_keep_no_finalizer() -> TestResult {
    let lab = Lab::new().await?;
    let pods: Api<Pod> = lab.api("default");
    let params = PostParams::default();
    let pod = |name: &str, owners: Value| {
        json!({"metadata": {"name": name, "finalizers": ["batch.kubernetes.io/job-tracking"],
            "ownerReferences": owners},
            "spec": {"nodeSelector": {"no": "where"}, "containers": [{"name": "c", "image": "i"}]}})
    };
    // As orphaned pods are, whose reference to their Job was cut.
    pods.create(&params, &object(pod("cut", json!([])))?)
        .await?;
    until("the orphan is let go", || async {
        Ok(pods.get("cut").await?.finalizers().is_empty())
    })
    .await?;
    // Those of a Job that goes on are not.
    let job = json!({"metadata": {"name": "j"}, "spec": {"parallelism": 3, "template": {"spec": {
        "restartPolicy": "Never", "nodeSelector": {"no": "where"},
        "containers": [{"name": "c", "image": "i"}]}}}});
    let jobs: Api<Job> = lab.api("default");
    jobs.create(&params, &object(job)?).await?;
    let of_job = ListParams::default().labels("batch.kubernetes.io/job-name=j");
    let held = async || -> Result<usize, kube::Error> {
        let all = pods.list(&of_job).await?.items;
        Ok(all
            .iter()
            .filter(|pod| !pod.finalizers().is_empty())
            .count())
    };
    until("its pods are there", || async { Ok(held().await? == 3) }).await?;
    let orphan = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    jobs.delete("j", &orphan).await?;
    until("they are let go when it is", || async {
        Ok(held().await? == 0 && jobs.get_opt("j").await?.is_none())
    })
    .await?;
    assert_eq!(pods.list(&of_job).await?.items.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_hears_of_the_end_of_a_claim_that_never_named_it() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let claims: Api<PersistentVolumeClaim> = lab.api("default");
    let volumes: Api<PersistentVolume> = Api::all(lab.client.clone());
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "other", "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let claim = claims.create(&params, &object(claim("c"))?).await?;
    // It is promised to the claim, which cannot have it: the other class.
    let volume = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "m", "hostPath": {"path": "/x"},
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"name": "c", "namespace": "default", "uid": claim.uid()}}})
    };
    volumes.create(&params, &object(volume("v"))?).await?;
    let phase = async |name: &str| -> Result<String, kube::Error> {
        let status = volumes.get(name).await?.status.unwrap_or_default();
        Ok(status.phase.unwrap_or_default())
    };
    // Time for the volume to be looked at while the claim is there.
    volumes
        .create(&params, &object(json!({"metadata": {"name": "w"}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "m", "hostPath": {"path": "/x"}}}))?)
        .await?;
    until("the later volume was looked at", || async {
        Ok(phase("w").await? == "Available")
    })
    .await?;
    claims.delete("c", &DeleteParams::default()).await?;
    until("the volume is released", || async {
        Ok(phase("v").await? == "Released")
    })
    .await
}

/// Whoever applies or puts an object that another deletes at that moment makes a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_beside_deletions_finds_something_or_makes_it() -> TestResult {
    let lab = Lab::new().await?;
    let maps: Api<ConfigMap> = lab.api("default");
    let deleting = {
        let maps = maps.clone();
        tokio::spawn(async move {
            loop {
                let _ = maps.delete("m", &DeleteParams::default()).await;
            }
        })
    };
    let how = PatchParams::apply("tests").force();
    for round in 0..300 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"},
            "data": {"round": round.to_string()}});
        let applied = maps.patch("m", &how, &Patch::Apply(&map)).await?;
        assert_eq!(applied.data.unwrap_or_default()["round"], round.to_string());
    }
    deleting.abort();
    Ok(())
}
