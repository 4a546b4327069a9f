//! Scheduler and controllers against the real API server, in one process, with a stand-in for the
//! kubelet that only reports: what is created settles as users expect.

mod collecting;
mod custom;
mod extending;
mod field_validation;
mod order;
#[path = "../lab/partner.rs"]
mod partner;
mod service_ranges;
mod tokens;
mod volumes;
mod wire;

use std::{error::Error, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Node, Pod, ResourceQuota, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use vetch::{
    addresses::family::PerFamily,
    apiserver::{
        admission::{self, Late, ServiceConfig},
        authn::{Reference, Subject},
        objects::Objects,
        request::User,
        special,
        start::{Config, Handle, own_user},
    },
    controllers,
    informer::{Change, Informers, Key},
    pki::Pki,
    scheduler,
    store::embedded::Embedded,
    supervision::Parts,
};

type TestResult = Result<(), Box<dyn Error + Send + Sync>>;

/// A control plane with one ready node, stopped when dropped.
struct Lab {
    client: Client,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Result<Self, Box<dyn Error + Send + Sync>> {
        Self::with_collector(|client| client).await
    }

    /// The garbage collector uses what `collector` makes of its client.
    async fn with_collector(
        collector: impl Fn(Client) -> Client,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let dir = tempfile::tempdir()?;
        let store = Arc::new(Embedded::open(dir.path())?);
        let pki = Pki::open(&dir.path().join("pki"))?;
        let services: PerFamily<ipnet::IpNet> = "10.96.0.0/16".parse()?;
        let config = Config {
            advertise: "127.0.0.1".parse()?,
            port: 6443,
            services,
        };
        let handle = Handle::new(config, store, &pki, special::of_pods()).await?;
        let late = Arc::new(Late::default());
        let objects: Arc<dyn Objects> = handle.server.clone();
        late.set(&objects);
        let plugins = admission::chain(
            late,
            ServiceConfig {
                cidrs: services.iter().copied().collect(),
                reserved_addresses: Vec::new(),
                node_ports: 30000..=32767,
                reserved_ports: Vec::new(),
                external_ips: admission::ExternalIps::default(),
            },
            admission::Exemptions::default(),
        );
        handle.start(plugins).await?;
        let client = handle.client(own_user());
        let stop = CancellationToken::new();
        let parts = Parts::until(stop.clone());
        let manager = User::internal("system:kube-controller-manager", &[]);
        let informers = Informers::new(handle.client(manager));
        let config = controllers::Config {
            ca_pem: pki.ca_pem().into(),
            cluster_info: vetch::pki::cluster_info("https://192.0.2.1:6443", pki.ca_pem()),
            authority: Arc::new(vetch::cli::ClusterAuthority(pki.clone())),
            pod_ranges: controllers::Ranges {
                cluster: vec![controllers::ClusterRange {
                    range: "10.42.0.0/16".parse()?,
                    node_prefix: 24,
                }],
                first: ("first".into(), vec!["10.42.255.0/24".parse()?]),
            },
            services: "10.96.0.0/12".parse()?,
            volumes: dir.path().join("volumes"),
            balancing: controllers::Balancing::Ours {
                reserved: Vec::new(),
                pool: Default::default(),
            },
            make_token: Arc::new({
                let issuer = handle.issuer.clone();
                move |wanted| {
                    let subject = Subject {
                        namespace: wanted.namespace.to_owned(),
                        account: Reference {
                            name: wanted.account.to_owned(),
                            uid: wanted.account_uid.to_owned(),
                        },
                    };
                    let made = issuer.issue_for_secret(&subject, wanted.secret);
                    made.map_err(|error| error.to_string())
                }
            }),
        };
        // Each with the rights that it has in a cluster, and no more.
        let client_of = |account: &str| {
            let client = handle.client(User::service_account("kube-system", account));
            match account {
                "generic-garbage-collector" => collector(client),
                _ => client,
            }
        };
        controllers::start(&parts, &informers, client_of, &config);
        let config = scheduler::Config::default();
        // With the rights it has in a cluster, and no more.
        let user = User::internal("system:kube-scheduler", &[]);
        let own = Informers::new(handle.client(user));
        tokio::spawn(scheduler::run(own, config, stop.clone()));
        let lab = Self {
            client,
            _stop: stop.drop_guard(),
            _dir: dir,
        };
        lab.add_node().await?;
        tokio::spawn(report_pods(lab.client.clone(), informers));
        Ok(lab)
    }

    async fn add_node(&self) -> TestResult {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "200"});
        let node: Node = object(json!({"metadata": {"name": "n1"}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let patch = json!({"status": {"capacity": room, "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True"}]}});
        nodes
            .patch_status("n1", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

fn object<K: DeserializeOwned>(value: Value) -> Result<K, serde_json::Error> {
    serde_json::from_value(value)
}

fn workload(name: &str, spec: Value) -> Value {
    let mut value = json!({"metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        },
    }});
    for (key, one) in spec.as_object().into_iter().flatten() {
        value["spec"][key] = one.clone();
    }
    value
}

/// Waits until `done` says so, for at most ten seconds.
async fn until<F>(what: &str, done: impl FnMut() -> F) -> TestResult
where
    F: Future<Output = Result<bool, kube::Error>>,
{
    within(Duration::from_secs(10), what, done).await
}

async fn within<F>(patience: Duration, what: &str, mut done: impl FnMut() -> F) -> TestResult
where
    F: Future<Output = Result<bool, kube::Error>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    while !done().await? {
        if tokio::time::Instant::now() > deadline {
            return Err(format!("timed out: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// The kubelet's part without containers: bound pods run and are ready, those of Jobs succeed,
/// terminating ones are gone at once.
async fn report_pods(client: Client, informers: Informers) {
    let pods = informers.get::<Pod>();
    let mut changes = pods.changes();
    let mut waiting = pods.list();
    loop {
        for pod in waiting.drain(..) {
            let Some(pod) = pods.get(&Key::of(pod.as_ref())) else {
                continue;
            };
            let bound = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some());
            if bound {
                report_pod(&client, &pod).await;
            }
        }
        match changes.next().await {
            Some(Change::Applied { new, .. }) => waiting.push(new),
            Some(Change::Resync) => waiting = pods.list(),
            Some(Change::Deleted(_)) => {}
            None => return,
        }
    }
}

async fn report_pod(client: &Client, pod: &Pod) {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        // Gone already is as good.
        let _ = api
            .delete(&name, &DeleteParams::default().grace_period(0))
            .await;
        return;
    }
    let reported = pod
        .status
        .as_ref()
        .is_some_and(|status| status.pod_ip.is_some());
    if reported {
        return;
    }
    let of_job = pod
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "Job");
    let (phase, ready) = if of_job {
        ("Succeeded", "False")
    } else {
        ("Running", "True")
    };
    let patch = json!({"status": {"phase": phase, "podIP": "10.1.0.1",
        "podIPs": [{"ip": "10.1.0.1"}],
        "conditions": [{"type": "Ready", "status": ready,
            "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::now())}]}});
    // A pod deleted meanwhile needs no status.
    let _ = api
        .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
}

fn rolled_out(deployment: &Deployment, replicas: i32) -> bool {
    deployment.status.as_ref().is_some_and(|status| {
        let all = Some(replicas);
        status.observed_generation == deployment.metadata.generation
            && (status.replicas, status.updated_replicas) == (all, all)
            && status.available_replicas == all
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_serves_and_goes_with_its_pods() -> TestResult {
    let lab = Lab::new().await?;
    let deployments: Api<Deployment> = lab.api("default");
    let pods: Api<Pod> = lab.api("default");
    let params = PostParams::default();
    let service = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    lab.api::<Service>("default")
        .create(&params, &object(service)?)
        .await?;
    let web: Deployment = object(workload("web", json!({"replicas": 3})))?;
    deployments.create(&params, &web).await?;
    until("all pods are available", || async {
        Ok(rolled_out(&deployments.get("web").await?, 3))
    })
    .await?;
    let slices: Api<EndpointSlice> = lab.api("default");
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    until("the Service has three endpoints", || async {
        let slices = slices.list(&of_web).await?;
        let ends = slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        Ok(ends.count() == 3)
    })
    .await?;
    let other = json!({"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}});
    deployments
        .patch("web", &PatchParams::default(), &Patch::Merge(other))
        .await?;
    until("the second revision replaced the first", || async {
        let web = deployments.get("web").await?;
        let revision = web.annotations().get("deployment.kubernetes.io/revision");
        Ok(rolled_out(&web, 3) && revision.is_some_and(|revision| revision == "2"))
    })
    .await?;
    deployments
        .delete("web", &DeleteParams::foreground())
        .await?;
    until("Deployment and pods are gone", || async {
        Ok(deployments.get_opt("web").await?.is_none()
            && pods.list(&ListParams::default()).await?.items.is_empty())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_completes_and_a_daemon_set_follows_its_template() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let jobs: Api<Job> = lab.api("default");
    let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 4, "parallelism": 2,
        "ttlSecondsAfterFinished": 0, "template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}}});
    let made = jobs.create(&params, &object(job)?).await?;
    until("the Job is done and its time to live over", || async {
        Ok(jobs
            .get_opt("j")
            .await?
            .is_none_or(|job| job.uid() != made.uid()))
    })
    .await?;
    let daemons: Api<DaemonSet> = lab.api("default");
    daemons
        .create(&params, &object(workload("d", json!({})))?)
        .await?;
    let runs = |set: &DaemonSet| {
        set.status.as_ref().is_some_and(|status| {
            status.observed_generation == set.metadata.generation
                && (status.number_available, status.updated_number_scheduled) == (Some(1), Some(1))
        })
    };
    until("the node has its pod", || async {
        Ok(runs(&daemons.get("d").await?))
    })
    .await?;
    let other = json!({"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}});
    daemons
        .patch("d", &PatchParams::default(), &Patch::Merge(other))
        .await?;
    until("the pod is of the new template", || async {
        Ok(runs(&daemons.get("d").await?))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_emptied() -> TestResult {
    let lab = Lab::new().await?;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    let params = PostParams::default();
    let space: Namespace = object(json!({"metadata": {"name": "x"}}))?;
    namespaces.create(&params, &space).await?;
    let maps: Api<ConfigMap> = lab.api("x");
    until("the CA is published", || async {
        Ok(maps.get_opt("kube-root-ca.crt").await?.is_some())
    })
    .await?;
    let accounts: Api<ServiceAccount> = lab.api("x");
    until("the default account is there", || async {
        Ok(accounts.get_opt("default").await?.is_some())
    })
    .await?;
    let web: Deployment = object(workload("web", json!({"replicas": 3})))?;
    lab.api::<Deployment>("x").create(&params, &web).await?;
    let pods: Api<Pod> = lab.api("x");
    until("three pods exist", || async {
        Ok(pods.list(&ListParams::default()).await?.items.len() == 3)
    })
    .await?;
    namespaces.delete("x", &DeleteParams::default()).await?;
    until("the namespace is gone", || async {
        Ok(namespaces.get_opt("x").await?.is_none())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why() -> TestResult {
    let lab = Lab::new().await?;
    let pods: Api<Pod> = lab.api("default");
    let big = json!({"metadata": {"name": "big"}, "spec": {"containers": [{"name": "c",
        "image": "i", "resources": {"requests": {"cpu": "64"}}}]}});
    pods.create(&PostParams::default(), &object(big)?).await?;
    let words = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are \
        available: 1 Preemption is not helpful for scheduling.";
    until("the condition names the reason", || async {
        let status = pods.get("big").await?.status.unwrap_or_default();
        Ok(status.conditions.iter().flatten().any(|condition| {
            condition.type_ == "PodScheduled" && condition.message.as_deref() == Some(words)
        }))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_starts_in_order_and_rolls_from_the_top() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let sets: Api<StatefulSet> = lab.api("default");
    let pods: Api<Pod> = lab.api("default");
    let set = workload("s", json!({"replicas": 3, "serviceName": "s"}));
    sets.create(&params, &object(set)?).await?;
    let settled = |set: &StatefulSet| {
        set.status.as_ref().is_some_and(|status| {
            status.observed_generation == set.metadata.generation
                && (status.ready_replicas, status.updated_replicas) == (Some(3), Some(3))
                && status.current_revision == status.update_revision
        })
    };
    until("three pods are ready", || async {
        Ok(settled(&sets.get("s").await?))
    })
    .await?;
    let hash = |pod: &Pod| pod.labels().get("controller-revision-hash").cloned();
    let first = hash(&pods.get("s-0").await?);
    let other = json!({"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}});
    sets.patch("s", &PatchParams::default(), &Patch::Merge(other))
        .await?;
    until("all pods are of the new template", || async {
        let rolled = hash(&pods.get("s-0").await.ok().unwrap_or_default()) != first;
        Ok(rolled && settled(&sets.get("s").await?))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_that_change_together_are_written_together() -> TestResult {
    const PODS: i32 = 12;
    let lab = Lab::new().await?;
    let sets = Informers::new(lab.client.clone()).get::<StatefulSet>();
    let mut changes = sets.changes();
    sets.synced().await;
    let spec = json!({"serviceName": "web", "replicas": PODS, "podManagementPolicy": "Parallel"});
    let set: StatefulSet = object(workload("web", spec))?;
    let begun = tokio::time::Instant::now();
    lab.api("default")
        .create(&PostParams::default(), &set)
        .await?;
    let mut written = 0;
    let all_ready = async {
        while let Some(change) = changes.next().await {
            let Change::Applied { old, new } = change else {
                continue;
            };
            let status = |set: &StatefulSet| set.status.clone().unwrap_or_default();
            written += i32::from(old.is_some_and(|old| status(&old) != status(&new)));
            if status(&new).ready_replicas == Some(PODS) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_ready).await?;
    // One at once, and one in each 50 ms after it.
    let most = i32::try_from(begun.elapsed().as_millis() / 50)? + 2;
    assert!(written <= most, "{written} in {:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_counts_and_refuses() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let quotas: Api<ResourceQuota> = lab.api("default");
    let maps: Api<ConfigMap> = lab.api("default");
    let hard = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "3"}}});
    quotas.create(&params, &object(hard)?).await?;
    let used = |count: &'static str| {
        let quotas = quotas.clone();
        move || {
            let quotas = quotas.clone();
            async move {
                let status = quotas.get("q").await?.status.unwrap_or_default();
                let used = status.used.unwrap_or_default();
                Ok(used
                    .get("count/configmaps")
                    .is_some_and(|one| one.0 == count))
            }
        }
    };
    until(
        "the certificate authority's ConfigMap is counted",
        used("1"),
    )
    .await?;
    let map = |name: String| object::<ConfigMap>(json!({"metadata": {"name": name}}));
    let made = futures::future::join_all((0..8).map(|index| {
        let (maps, params) = (&maps, &params);
        async move {
            maps.create(params, &map(format!("m{index}"))?)
                .await
                .map_err(Into::into)
        }
    }))
    .await;
    let made: Vec<Result<ConfigMap, Box<dyn Error + Send + Sync>>> = made;
    assert_eq!(made.iter().filter(|one| one.is_ok()).count(), 2);
    until("two are counted", used("3")).await?;
    let one = made.into_iter().flatten().next().ok_or("two were made")?;
    maps.delete(&one.name_any(), &DeleteParams::default())
        .await?;
    until("what is gone does not count", used("2")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_resource_is_defined_used_and_gone() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let definition = json!({"metadata": {"name": "tabs.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "tabs", "kind": "Tab"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {
                    "size": {"type": "integer", "maximum": 5, "default": 1},
                    "names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}],
    }});
    definitions.create(&params, &object(definition)?).await?;
    until("the definition is established", || async {
        let status = definitions.get("tabs.example.com").await?.status;
        let conditions = status.unwrap_or_default().conditions.unwrap_or_default();
        Ok(conditions
            .iter()
            .any(|one| one.type_ == "Established" && one.status == "True"))
    })
    .await?;
    let kind = kube::core::ApiResource::from_gvk_with_plural(
        &kube::core::GroupVersionKind::gvk("example.com", "v1", "Tab"),
        "tabs",
    );
    let tabs: Api<DynamicObject> = Api::namespaced_with(lab.client.clone(), "default", &kind);
    let apply = PatchParams::apply("me");
    let tab = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Tab", "metadata": {"name": "t"}, "spec": spec});
    let made = tabs
        .patch(
            "t",
            &apply,
            &Patch::Apply(tab(json!({"names": ["a", "b"]}))),
        )
        .await?;
    assert_eq!(made.data["spec"], json!({"names": ["a", "b"], "size": 1}));
    let fewer = tab(json!({"names": ["b"]}));
    let made = tabs.patch("t", &apply, &Patch::Apply(&fewer)).await?;
    assert_eq!(made.data["spec"]["names"], json!(["b"]));
    let taken = tab(json!({"size": 3}));
    let refused = tabs
        .patch(
            "t",
            &PatchParams::apply("other"),
            &Patch::Apply(tab(json!({"names": ["b"], "size": 9}))),
        )
        .await;
    assert!(refused.is_err(), "over the maximum");
    tabs.patch("t", &PatchParams::apply("other"), &Patch::Apply(&taken))
        .await?;
    let conflict = tabs
        .patch(
            "t",
            &apply,
            &Patch::Apply(tab(json!({"names": ["b"], "size": 4}))),
        )
        .await;
    assert!(conflict.is_err_and(|error| error.to_string().contains("conflict with \"other\"")));
    definitions
        .delete("tabs.example.com", &DeleteParams::default())
        .await?;
    until("the definition and its objects are gone", || async {
        Ok(definitions.get_opt("tabs.example.com").await?.is_none()
            && tabs.get_opt("t").await?.is_none())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scale_is_applied_and_owned() -> TestResult {
    let lab = Lab::new().await?;
    let web: Api<Deployment> = lab.api("default");
    let wanted = object(workload("web", json!({"replicas": 1})))?;
    web.create(&PostParams::default(), &wanted).await?;
    let apply = async |who: &str, body: Value| {
        let body = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"name": "web"}, "spec": body});
        let params = PatchParams::apply(who);
        web.patch_scale("web", &params, &Patch::Apply(&body)).await
    };
    let scale = apply("me", json!({"replicas": 0})).await;
    // What was there before the first apply belongs to somebody else.
    assert!(scale.is_err_and(|error| error.to_string().contains("conflict with")));
    apply("me", json!({"replicas": 1})).await?;
    let owners = web
        .get("web")
        .await?
        .metadata
        .managed_fields
        .unwrap_or_default();
    let mine = owners
        .iter()
        .find(|owner| owner.manager.as_deref() == Some("me"));
    let mine = mine.ok_or("an entry of its own")?;
    assert_eq!(mine.subresource.as_deref(), Some("scale"));
    let fields = serde_json::to_value(&mine.fields_v1)?;
    assert_eq!(fields, json!({"f:spec": {"f:replicas": {}}}));
    assert!(apply("me", json!({"replicas": -1})).await.is_err());
    Ok(())
}
