//! The chain in a whole API server over a real store.

use serde_json::{Value, json};

use super::*;
use crate::apiserver::{
    objects::{Named, Objects},
    special::{self, Call},
    status::Reason,
    testing::Server,
};

impl Server {
    async fn post(&self, name: &str, subresource: &str, body: Value) -> Result<Value, Status> {
        let resource = testing::row("pods");
        let handler = special::of_pods()
            .into_iter()
            .find(|handler| handler.serves(resource, Some(subresource)))
            .unwrap();
        let call = Call {
            user: &self.user,
            resource,
            subresource: Some(subresource),
            namespace: "default",
            name,
            dry_run: false,
            objects: &*self.handle.server,
        };
        handler.create(&call, body).await
    }
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "busybox", "resources": {"limits": {"cpu": "1", "memory": "8Mi"}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_dies() {
    let server = Server::start().await;
    let made = server.create("pods", "default", pod("p")).await.unwrap();
    assert_eq!(made["status"]["qosClass"], "Guaranteed");
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(
        made["spec"]["tolerations"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(made["spec"]["securityContext"], json!({}));
    let again = server
        .create("pods", "default", pod("p"))
        .await
        .unwrap_err();
    assert_eq!(again.reason, Reason::AlreadyExists);
    let mut nameless = pod("q");
    nameless["spec"]["containers"][0]["image"] = Value::Null;
    let status = server
        .create("pods", "default", nameless)
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "Pod \"q\" is invalid: spec.containers[0].image: Required value"
    );
    let binding = json!({"target": {"kind": "Node", "name": "n"}});
    server.post("p", "binding", binding.clone()).await.unwrap();
    assert_eq!(
        server.post("p", "binding", binding).await.unwrap_err().code,
        409
    );
    server.post("p", "eviction", json!({})).await.unwrap();
    let left = server
        .handle
        .server
        .get("pods", "default", "p")
        .await
        .unwrap();
    assert!(
        left["metadata"]["deletionTimestamp"].is_string(),
        "the node confirms the end: {left}"
    );
    server
        .create("pods", "default", pod("unbound"))
        .await
        .unwrap();
    server.post("unbound", "eviction", json!({})).await.unwrap();
    assert!(
        server
            .handle
            .server
            .get("pods", "default", "unbound")
            .await
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_hold_their_addresses_and_ports() {
    let server = Server::start().await;
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let service = |name: &str, spec: &Value| json!({"metadata": {"name": name}, "spec": spec});
    let one = server
        .create("services", "default", service("one", &spec))
        .await
        .unwrap();
    let (ip, port) = (
        one["spec"]["clusterIP"].clone(),
        one["spec"]["ports"][0]["nodePort"].clone(),
    );
    let claim = server
        .handle
        .server
        .get("ipaddresses.networking.k8s.io", "", ip.as_str().unwrap())
        .await;
    assert_eq!(claim.unwrap()["spec"]["parentRef"]["name"], "one");
    let taken = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let status = server
        .create("services", "default", service("two", &taken))
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        format!(
            "Service \"two\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
        )
    );
    // The same name again: the refused one's claims go back, the first one's stay.
    let again = server
        .create("services", "default", service("one", &spec))
        .await
        .unwrap_err();
    assert_eq!(again.reason, Reason::AlreadyExists);
    assert!(
        server
            .create("services", "default", service("two", &taken))
            .await
            .is_err()
    );
    server.delete("services", "one").await.unwrap();
    let two =
        json!({"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]});
    server
        .create("services", "default", service("two", &two))
        .await
        .unwrap();
    let kubernetes = server
        .handle
        .server
        .get("services", "default", "kubernetes")
        .await
        .unwrap();
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_and_a_deployment_are_accepted() {
    let server = Server::start().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = server
        .create("deployments.apps", "default", deployment)
        .await
        .unwrap();
    assert_eq!(made["metadata"]["generation"], 1);
    let mut job = json!({"metadata": {"name": "j"}, "spec": {"template": template}});
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    let made = server.create("jobs.batch", "default", job).await.unwrap();
    assert_eq!(
        made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"],
        made["metadata"]["uid"]
    );
    let missing = server
        .create("configmaps", "nowhere", json!({"metadata": {"name": "c"}}))
        .await
        .unwrap_err();
    assert_eq!(missing.message, "namespaces \"nowhere\" not found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_cluster_has_is_there_again() {
    let server = Server::start().await;
    let objects = server.handle.server.clone();
    let kept = [
        ("services", "default", "kubernetes"),
        ("endpoints", "default", "kubernetes"),
        ("endpointslices.discovery.k8s.io", "default", "kubernetes"),
        (
            "configmaps",
            "kube-system",
            "extension-apiserver-authentication",
        ),
        (
            "priorityclasses.scheduling.k8s.io",
            "",
            "system-node-critical",
        ),
        ("clusterroles.rbac.authorization.k8s.io", "", "view"),
    ];
    let uid = async |(plural, namespace, name)| {
        let object = objects.get(plural, namespace, name).await?;
        object["metadata"]["uid"].as_str().map(str::to_owned)
    };
    for one in kept {
        let before = uid(one).await.unwrap();
        let target = Named {
            plural: one.0,
            subresource: "",
            namespace: one.1,
            name: one.2,
        };
        let user = crate::apiserver::start::own_user();
        objects
            .delete(&user, target, json!({}), Vec::new())
            .await
            .unwrap();
        let again = async {
            while uid(one).await.is_none_or(|uid| uid == before) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let within = std::time::Duration::from_secs(10);
        let made = tokio::time::timeout(within, again).await;
        made.unwrap_or_else(|_| panic!("{one:?} is not made again"));
    }
    let service = objects.get("services", "default", "kubernetes").await;
    assert_eq!(service.unwrap()["spec"]["clusterIP"], "10.96.0.1");
}

/// Admission that takes its time with Pods.
#[derive(Default)]
struct Slow(tokio::sync::Notify);

#[async_trait::async_trait]
impl Plugin for Slow {
    fn name(&self) -> &'static str {
        "Slow"
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        _: Option<&Value>,
        _: &dyn Lookup,
    ) -> Result<(), Status> {
        if request.resource.plural == "pods" {
            self.0.notify_one();
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_has_begun_goes_on_without_its_client() {
    use crate::apiserver::{http::Peer, response::full};
    let slow = Arc::new(Slow::default());
    let server = Server::with(Vec::new(), vec![slow.clone()]).await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}});
    let made = server.create("resourcequotas", "default", quota).await;
    made.unwrap();
    let request = http::Request::post("/api/v1/namespaces/default/pods")
        .header("content-type", "application/json")
        .body(full(pod("p").to_string()))
        .unwrap();
    let peer = Peer::Internal(Arc::new(server.user.clone()));
    tokio::select! {
        _ = server.handle.frontend.clone().handle(request, peer) => panic!("answered at once"),
        () = slow.0.notified() => {} // and here its client goes away
    }
    let objects = &server.handle.server;
    let stored = async {
        while objects.get("pods", "default", "p").await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let within = std::time::Duration::from_secs(10);
    assert!(tokio::time::timeout(within, stored).await.is_ok());
}
