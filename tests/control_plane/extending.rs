//! Programs that take part in the API: webhooks and aggregated servers.

use k8s_openapi::{
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
    },
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};

use super::{partner::partner, *};

/// This host's own address: no Service may lead to its loopback.
fn host_address() -> Result<std::net::IpAddr, std::io::Error> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip())
}

/// A webhook that changes what is called `change`, and refuses what is called `refuse`.
fn review(_: http::request::Parts, review: Value) -> Value {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    match review["request"]["name"].as_str() {
        Some("refuse") => {
            response["allowed"] = json!(false);
            response["status"] = json!({"code": 403, "message": "not here"});
        }
        Some("change") => {
            let patch = json!([{"op": "add", "path": "/data", "value": {"a": "b"}}]);
            response["patch"] = BASE64_STANDARD.encode(patch.to_string()).into();
            response["patchType"] = json!("JSONPatch");
        }
        _ => {}
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

/// An API of one kind, which tells who asks for it.
fn tabs(parts: http::request::Parts, _: Value) -> Value {
    let said = |name: &str| {
        let all = parts.headers.get_all(name).iter();
        all.filter_map(|value| value.to_str().ok())
            .collect::<Vec<_>>()
            .join(",")
    };
    match parts.uri.path() {
        "/apis/x.example/v1" => json!({"kind": "APIResourceList", "groupVersion": "x.example/v1",
            "resources": [{"name": "tabs", "singularName": "tab", "namespaced": true, "kind": "Tab", "verbs": ["list"]}]}),
        "/openapi/v3/apis/x.example/v1" => json!({"openapi": "3.0.0", "paths": {}}),
        path if path.starts_with("/apis/x.example/v1/") => json!({"path": path,
            "query": parts.uri.query(), "user": said("x-remote-user"),
            "groups": said("x-remote-group"), "token": said("authorization")}),
        _ => Value::Null,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_servers_api_is_part_of_this_one() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let place = tempfile::tempdir()?;
    let address = host_address()?;
    let (port, authority) = partner(place.path(), address, "tabs.default.svc", tabs).await?;
    let service = json!({"metadata": {"name": "tabs"}, "spec": {"ports": [{"port": 443}]}});
    lab.api::<Service>("default")
        .create(&params, &object(service)?)
        .await?;
    let ask = async |path: &str| -> Result<Value, kube::Error> {
        let request = http::Request::get(path)
            .header("x-remote-user", "somebody else")
            .header("authorization", "Bearer secret")
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        lab.client.request(request).await
    };
    let services: Api<APIService> = Api::all(lab.client.clone());
    let registered = json!({"metadata": {"name": "v1.x.example"}, "spec": {"group": "x.example",
        "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10, "caBundle": authority,
        "service": {"name": "tabs", "namespace": "default"}}});
    services.create(&params, &object(registered)?).await?;
    let condition = async || -> Result<Option<String>, kube::Error> {
        let status = services
            .get("v1.x.example")
            .await?
            .status
            .unwrap_or_default();
        Ok(status
            .conditions
            .unwrap_or_default()
            .first()
            .and_then(|one| one.reason.clone()))
    };
    until("it says that nobody serves it", || async {
        Ok(condition().await?.as_deref() == Some("MissingEndpoints"))
    })
    .await?;
    assert!(
        ask("/apis/x.example/v1/namespaces/n/tabs").await.is_err(),
        "503"
    );
    let slice = json!({"metadata": {"name": "tabs-1", "labels": {"kubernetes.io/service-name": "tabs"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": port}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]});
    lab.api::<EndpointSlice>("default")
        .create(&params, &object(slice)?)
        .await?;
    until("it is available", || async {
        Ok(condition().await?.as_deref() == Some("Passed"))
    })
    .await?;
    let said = ask("/apis/x.example/v1/namespaces/n/tabs?limit=5").await?;
    assert_eq!(said["path"], "/apis/x.example/v1/namespaces/n/tabs");
    assert_eq!(
        (&said["query"], &said["user"]),
        (&json!("limit=5"), &json!("system:apiserver"))
    );
    assert_eq!(
        (&said["groups"], &said["token"]),
        (&json!("system:masters,system:authenticated"), &json!(""))
    );
    let groups = ask("/apis").await?["groups"].to_string();
    assert!(groups.contains("x.example/v1"), "{groups}");
    let documents = ask("/openapi/v3").await?;
    let document = documents["paths"]["apis/x.example/v1"]["serverRelativeURL"].clone();
    let document = document.as_str().ok_or("its OpenAPI document")?;
    assert_eq!(ask(document).await?["openapi"], "3.0.0");
    services
        .delete("v1.x.example", &DeleteParams::default())
        .await?;
    until("it is gone", || async {
        Ok(!ask("/apis").await?["groups"]
            .to_string()
            .contains("x.example"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_changes_and_refuses() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let place = tempfile::tempdir()?;
    let (port, authority) =
        partner(place.path(), [127, 0, 0, 1].into(), "localhost", review).await?;
    let url = format!("https://localhost:{port}/");
    let hook = |url: &str| {
        json!({"metadata": {"name": "h"}, "webhooks": [{
            "name": "h.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": url, "caBundle": authority},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        }]})
    };
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(lab.client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(lab.client.clone());
    mutating.create(&params, &object(hook(&url))?).await?;
    let maps: Api<ConfigMap> = lab.api("default");
    let map = |name: &str| object::<ConfigMap>(json!({"metadata": {"name": name}}));
    let made = maps.create(&params, &map("change")?).await?;
    assert_eq!(made.data.unwrap_or_default()["a"], "b");
    maps.create(&params, &map("as-it-is")?).await?;
    let refused = maps.create(&params, &map("refuse")?).await;
    let refused = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    let words = "admission webhook \"h.example.com\" denied the request: not here";
    assert!(refused.contains(words), "{refused}");
    mutating.delete("h", &DeleteParams::default()).await?;
    maps.create(&params, &map("refuse")?).await?;
    // Nobody listens there: writes that it wants to see fail, those it does not go on.
    validating
        .create(&params, &object(hook("https://localhost:1/"))?)
        .await?;
    let failed = maps.create(&params, &map("other")?).await;
    let failed = failed
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(failed.contains("failed calling webhook"), "{failed}");
    maps.delete("refuse", &DeleteParams::default()).await?;
    validating.delete("h", &DeleteParams::default()).await?;
    maps.create(&params, &map("other")?).await?;
    Ok(())
}
