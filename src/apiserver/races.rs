//! Two writes at nearly the same moment, in a whole server: each test holds one of them where it hurts
//! and lets the other come first.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    admission::{Operation, Plugin},
    objects::Lookup,
    selector::{Selection, Selector},
    special::{self, Call},
    status::{Reason, Status},
    testing::{At, Gate, Server, until},
    verbs::{self, Event, Start, WatchOptions},
};

const CLAIMS: &str = "ipaddresses.networking.k8s.io";
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
const TABS: &str = "tabs.a.example.com";

/// A server with gates before and after the usual plugins.
async fn server(gates: &[&Arc<Gate>], before: bool) -> Arc<Server> {
    let all = gates.iter().map(|gate| {
        let plugin: Arc<dyn Plugin> = (*gate).clone();
        plugin
    });
    let all: Vec<_> = all.collect();
    Arc::new(match before {
        true => Server::with(all, Vec::new()).await,
        false => Server::with(Vec::new(), all).await,
    })
}

fn create(
    server: &Arc<Server>,
    plural: &'static str,
    namespace: &'static str,
    object: Value,
) -> tokio::task::JoinHandle<Result<Value, Status>> {
    let server = server.clone();
    tokio::spawn(async move { server.create(plural, namespace, object).await })
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

async fn finalize(server: &Server, namespace: &str) {
    let none = |object: &mut Value| object["spec"]["finalizers"] = json!([]);
    let done = server.update("namespaces/finalize", "", namespace, none);
    done.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_created_in_a_namespace_that_ends_meanwhile() {
    for (name, finalizes) in [("ending", false), ("gone", true)] {
        let gate = Gate::new(At::Validation(Operation::Create), "configmaps", "slow");
        let server = server(&[&gate], false).await;
        server.create("namespaces", "", named(name)).await.unwrap();
        let slow = create(&server, "configmaps", name, named("slow"));
        gate.holds().await;
        server.delete_in("namespaces", "", name).await.unwrap();
        if finalizes {
            finalize(&server, name).await;
        }
        gate.open();
        let status = slow.await.unwrap().unwrap_err();
        let want = match finalizes {
            true => format!("namespaces {name:?} not found"),
            false => format!(
                "configmaps \"slow\" is forbidden: unable to create new content in namespace {name} because it is being terminated"
            ),
        };
        assert_eq!(status.message, want);
        assert!(server.get("configmaps", name, "slow").await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_only_changes_refuses_nothing() {
    let gate = Gate::new(At::Validation(Operation::Create), "configmaps", "slow");
    let server = server(&[&gate], false).await;
    let slow = create(&server, "configmaps", "default", named("slow"));
    gate.holds().await;
    let label = |object: &mut Value| object["metadata"]["labels"]["a"] = "b".into();
    server
        .update("namespaces", "", "default", label)
        .await
        .unwrap();
    gate.open();
    slow.await.unwrap().unwrap();
}

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": TABS}, "spec": {"group": "a.example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
}

async fn define(server: &Server) {
    server.create(DEFINITIONS, "", definition()).await.unwrap();
    until("the definition is served", async || {
        server.handle.server.rows.by_plural(TABS).is_some()
    })
    .await;
}

async fn undefined(server: &Server) {
    until("the definition is gone", async || {
        server.get(DEFINITIONS, "", TABS).await.is_none()
            && server.handle.server.rows.by_plural(TABS).is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_created_under_a_definition_that_goes_meanwhile() {
    let gate = Gate::new(At::Validation(Operation::Create), "tabs", "slow");
    let server = server(&[&gate], false).await;
    define(&server).await;
    let slow = create(&server, TABS, "default", named("slow"));
    gate.holds().await;
    server.delete_in(DEFINITIONS, "", TABS).await.unwrap();
    undefined(&server).await;
    // One of the same name is another one.
    define(&server).await;
    gate.open();
    let status = slow.await.unwrap().unwrap_err();
    assert_eq!(status.reason, Reason::NotFound, "{}", status.message);
    assert!(server.handle.server.list(TABS, "").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_goes_once_its_objects_may_be_deleted() {
    let server = Server::start().await;
    define(&server).await;
    for name in ["a", "b"] {
        server.create(TABS, "default", named(name)).await.unwrap();
    }
    let refusing = json!({"metadata": {"name": "refusing"}, "webhooks": [{"name": "refusing.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Fail", "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
        "rules": [{"apiGroups": ["a.example.com"], "apiVersions": ["*"], "operations": ["DELETE"], "resources": ["*"]}]}]});
    const HOOKS: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";
    server.create(HOOKS, "", refusing).await.unwrap();
    server.delete_in(DEFINITIONS, "", TABS).await.unwrap();
    until("the definition says why it stays", async || {
        let Some(held) = server.get(DEFINITIONS, "", TABS).await else {
            return false;
        };
        let conditions = held["status"]["conditions"].as_array().cloned();
        conditions.into_iter().flatten().any(|one| {
            let message = one["message"].as_str().unwrap_or_default().to_owned();
            one["type"] == "Terminating"
                && one["reason"] == "InstanceDeletionFailed"
                && message.starts_with("could not issue all deletes: a: ")
                && message.ends_with(", and 1 more")
        })
    })
    .await;
    server.delete_in(HOOKS, "", "refusing").await.unwrap();
    undefined(&server).await;
    assert_eq!(server.handle.server.cache.kind(TABS).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_a_definition_without_served_versions_go_with_it() {
    let server = Server::start().await;
    define(&server).await;
    server.create(TABS, "default", named("a")).await.unwrap();
    let unserved = |object: &mut Value| object["spec"]["versions"][0]["served"] = false.into();
    server
        .update(DEFINITIONS, "", TABS, unserved)
        .await
        .unwrap();
    server.delete_in(DEFINITIONS, "", TABS).await.unwrap();
    undefined(&server).await;
    assert_eq!(server.handle.server.cache.kind(TABS).count(), 0);
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn ports() -> Value {
    json!([{"port": 80}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_a_service_takes_again_stays_its_own() {
    // Held after the first write is stored, before the address is given back.
    let gate = Gate::new(At::Replaced, "services", "s");
    let server = server(&[&gate], true).await;
    let (ip, away) = goes_external(&server).await;
    gate.holds().await;
    server
        .update("services", "default", "s", back_to(&ip))
        .await
        .unwrap();
    gate.open();
    away.await.unwrap().unwrap();
    let other = service("other", json!({"clusterIP": ip, "ports": ports()}));
    let status = server.create("services", "default", other).await;
    let message = status.unwrap_err().message;
    assert!(message.contains("already allocated"), "{message}");
    assert!(server.get(CLAIMS, "", &ip).await.is_some());
}

/// Makes a Service `s`, and then has it changed to one without an address; which one it had.
async fn goes_external(server: &Arc<Server>) -> (String, JoinHandle<Result<Value, Status>>) {
    let made = service("s", json!({"ports": ports()}));
    let made = server.create("services", "default", made).await.unwrap();
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let server = server.clone();
    (ip, tokio::spawn(async move { external(&server).await }))
}

/// As it was before, with the same address.
fn back_to(ip: &str) -> impl Fn(&mut Value) + Send + Sync + use<> {
    let ip = ip.to_owned();
    move |object| {
        object["spec"] = json!({"type": "ClusterIP", "clusterIP": ip, "ports": ports()});
    }
}

async fn external(server: &Server) -> Result<Value, Status> {
    let change = |object: &mut Value| {
        let spec = &mut object["spec"];
        spec["type"] = "ExternalName".into();
        spec["externalName"] = "example.com".into();
        let spec = spec.as_object_mut().unwrap();
        spec.retain(|name, _| matches!(name.as_str(), "type" | "externalName" | "ports"));
    };
    server.update("services", "default", "s", change).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_not_stored_with_an_address_that_was_given_back_meanwhile() {
    let stored = Gate::new(At::Replaced, "services", "s");
    let admitted = Gate::after(1, At::Validation(Operation::Update), "services", "s");
    let plugins: Vec<Arc<dyn Plugin>> = vec![stored.clone(), admitted.clone()];
    let server = Arc::new(Server::with(plugins, Vec::new()).await);
    let (ip, away) = goes_external(&server).await;
    stored.holds().await;
    // The claim goes between the admission of the second write and its commit.
    let server_ = server.clone();
    let back = {
        let change = back_to(&ip);
        tokio::spawn(async move { server_.update("services", "default", "s", change).await })
    };
    admitted.holds().await;
    stored.open();
    away.await.unwrap().unwrap();
    assert!(server.get(CLAIMS, "", &ip).await.is_none());
    admitted.open();
    back.await.unwrap().unwrap();
    assert!(server.get(CLAIMS, "", &ip).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_quota_two_updates_never_share_the_last() {
    let gate = Gate::new(At::Validation(Operation::Update), "services", "a");
    let server = server(&[&gate], false).await;
    let quota = json!({"metadata": {"name": "q"},
        "spec": {"hard": {"services.nodeports": "1", "count/configmaps": "100"}}});
    server
        .create("resourcequotas", "default", quota)
        .await
        .unwrap();
    for name in ["a", "b"] {
        let made = service(name, json!({"ports": ports()}));
        server.create("services", "default", made).await.unwrap();
    }
    let open = |server: &Arc<Server>, name: &'static str| {
        let server = server.clone();
        tokio::spawn(async move {
            let change = |object: &mut Value| object["spec"]["type"] = "NodePort".into();
            server.update("services", "default", name, change).await
        })
    };
    let first = open(&server, "a");
    gate.holds().await;
    // What changes besides has everything counted again.
    server
        .create("configmaps", "default", named("c"))
        .await
        .unwrap();
    until("the quota is counted", async || {
        let quota = server.get("resourcequotas", "default", "q").await;
        quota.is_some_and(|quota| quota["status"]["used"]["count/configmaps"] == "1")
    })
    .await;
    let status = open(&server, "b").await.unwrap().unwrap_err();
    assert_eq!(
        status.message,
        "services \"b\" is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1"
    );
    gate.open();
    first.await.unwrap().unwrap();
}

/// The ports in the table.
async fn taken(server: &Server) -> usize {
    let table = server
        .get("configmaps", "kube-system", "service-node-ports")
        .await;
    table.map_or(0, |table| {
        table["data"].as_object().map_or(0, serde_json::Map::len)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_services_get_their_ports_and_give_them_back() {
    let server = Arc::new(Server::start().await);
    let all = (0..120).map(|index| {
        let server = server.clone();
        tokio::spawn(async move {
            let name = format!("s{index}");
            let made = service(&name, json!({"type": "NodePort", "ports": ports()}));
            server.create("services", "default", made).await.unwrap();
        })
    });
    futures::future::try_join_all(all).await.unwrap();
    assert_eq!(taken(&server).await, 120);
    let all = (0..120).map(|index| {
        let server = server.clone();
        tokio::spawn(async move {
            let name = format!("s{index}");
            server.delete("services", &name).await.unwrap();
        })
    });
    futures::future::try_join_all(all).await.unwrap();
    assert_eq!(taken(&server).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_update_gives_back_what_it_took() {
    let server = Server::start().await;
    let made = service("s", json!({"ports": ports()}));
    server.create("services", "default", made).await.unwrap();
    let invalid = |object: &mut Value| {
        object["spec"]["type"] = "NodePort".into();
        object["spec"]["ports"][0]["port"] = 0.into();
    };
    let refused = server.update("services", "default", "s", invalid).await;
    assert_eq!(refused.unwrap_err().reason, Reason::Invalid);
    assert_eq!(taken(&server).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_starts_whatever_users_refuse() {
    let server = Server::start().await;
    let rules = json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}]);
    for kind in ["validating", "mutating"] {
        let hook = json!({"metadata": {"name": "dead"}, "webhooks": [{"name": "dead.example.com",
            "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Fail", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 1, "rules": rules}]});
        let plural = format!("{kind}webhookconfigurations.admissionregistration.k8s.io");
        server.create(&plural, "", hook).await.unwrap();
    }
    let status = server.create("configmaps", "default", named("c")).await;
    assert!(status.is_err(), "the webhooks are asked");
    let server = server.again(Ipv4Addr::new(10, 0, 0, 2)).await.unwrap();
    let endpoints = server.get("endpoints", "default", "kubernetes").await;
    assert_eq!(
        endpoints.unwrap()["subsets"][0]["addresses"][0]["ip"],
        "10.0.0.2"
    );
    // Nothing that is as it should be is written again.
    let kept = [
        (
            "configmaps",
            "kube-system",
            "extension-apiserver-authentication",
        ),
        ("endpoints", "default", "kubernetes"),
        ("endpointslices.discovery.k8s.io", "default", "kubernetes"),
    ];
    let again = server.again(Ipv4Addr::new(10, 0, 0, 2)).await.unwrap();
    for (plural, namespace, name) in kept {
        let before = server.get(plural, namespace, name).await.unwrap();
        let after = again.get(plural, namespace, name).await.unwrap();
        assert_eq!(before, after, "{plural}");
    }
}

async fn evict(server: &Server, name: &str) -> Result<Value, Status> {
    let resource = server.handle.server.row("pods").unwrap();
    let handlers = special::of_pods();
    let handler = handlers
        .iter()
        .find(|handler| handler.serves(resource, Some("eviction")))
        .unwrap();
    let call = Call {
        user: &server.user,
        resource,
        subresource: Some("eviction"),
        namespace: "default",
        name,
        dry_run: false,
        objects: &*server.handle.server,
    };
    handler.create(&call, json!({})).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_becomes_ready_meanwhile_is_not_evicted() {
    let gate = Gate::new(At::Validation(Operation::Delete), "pods", "p");
    let server = server(&[&gate], false).await;
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    let budgets = "poddisruptionbudgets.policy";
    server.create(budgets, "default", budget).await.unwrap();
    let status = |object: &mut Value| {
        object["status"] = json!({"observedGeneration": 1, "disruptionsAllowed": 0,
            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 2});
    };
    let budgets_status = format!("{budgets}/status");
    server
        .update(&budgets_status, "default", "b", status)
        .await
        .unwrap();
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    server.create("pods", "default", pod).await.unwrap();
    let phase = |ready: &'static str| {
        move |object: &mut Value| {
            object["status"]["phase"] = "Running".into();
            object["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
        }
    };
    server
        .update("pods/status", "default", "p", phase("False"))
        .await
        .unwrap();
    let eviction = {
        let server = server.clone();
        tokio::spawn(async move { evict(&server, "p").await })
    };
    gate.holds().await;
    server
        .update("pods/status", "default", "p", phase("True"))
        .await
        .unwrap();
    gate.open();
    let status = eviction.await.unwrap().unwrap_err();
    assert_eq!(status.code, 429, "{}", status.message);
    let left = server.get("pods", "default", "p").await.unwrap();
    assert!(left["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_the_definition_of_what_it_watches() {
    let server = Server::start().await;
    define(&server).await;
    server.create(TABS, "default", named("a")).await.unwrap();
    let row = server.handle.server.rows.by_plural(TABS).unwrap();
    let options = WatchOptions {
        selector: Selector::new(row, Selection::default()).unwrap(),
        start: Start::Everything {
            at_least: None,
            marked: false,
        },
        bookmarks: false,
        timeout: Duration::from_secs(3600),
    };
    let api = server.handle.server.clone();
    let events = verbs::watch(api, row, "default", options).await.unwrap();
    server.delete_in(DEFINITIONS, "", TABS).await.unwrap();
    let all = tokio::time::timeout(Duration::from_secs(10), events.collect::<Vec<_>>()).await;
    let seen: Vec<&str> = all
        .expect("the watch ends")
        .iter()
        .map(|event| match event {
            Event::Added(_) => "added",
            Event::Modified(_) => "modified",
            Event::Deleted(_) => "deleted",
            Event::Bookmark { .. } | Event::Error(_) => "other",
        })
        .collect();
    assert_eq!(seen, ["added", "deleted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_pair_of_fields_one_alone_is_no_way_round() {
    let server = Server::start().await;
    let made = service("s", json!({"ports": ports()}));
    let made = server.create("services", "default", made).await.unwrap();
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let other = |object: &mut Value| object["spec"]["clusterIP"] = "10.96.200.1".into();
    let status = server
        .update("services", "default", "s", other)
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "Service \"s\" is invalid: spec.clusterIPs[0]: Invalid value: [\"10.96.200.1\"]: may not change once set"
    );
    assert!(server.get(CLAIMS, "", "10.96.200.1").await.is_none());
    // Left out by a client that does not know it.
    let less = |object: &mut Value| {
        object["spec"].as_object_mut().unwrap().remove("clusterIPs");
        object["metadata"]["labels"] = json!({"a": "b"});
    };
    let kept = server.update("services", "default", "s", less).await;
    assert_eq!(kept.unwrap()["spec"]["clusterIPs"], json!([ip]));
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}});
    let node = server.create("nodes", "", node).await.unwrap();
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    server.create("pods", "default", pod).await.unwrap();
    for ip in ["10.1.0.7", "10.1.0.8"] {
        let told = |object: &mut Value| object["status"]["podIP"] = ip.into();
        let told = server.update("pods/status", "default", "p", told).await;
        assert_eq!(told.unwrap()["status"]["podIPs"], json!([{"ip": ip}]));
    }
    let wrong = |object: &mut Value| {
        object["status"]["hostIP"] = "10.0.0.1".into();
        object["status"]["hostIPs"] = json!([{"ip": "10.0.0.2"}]);
    };
    let status = server.update("pods/status", "default", "p", wrong).await;
    assert_eq!(
        status.unwrap_err().message,
        "Pod \"p\" is invalid: status.hostIPs[0].ip: Invalid value: \"10.0.0.2\": must be equal to `hostIP`"
    );
}
