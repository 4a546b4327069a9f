//! The API as it is on the wire: who owns fields, and answers that clients compare.

use k8s_openapi::api::core::v1::ReplicationController;

use super::{field_validation::send, *};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// Sends JSON; the code and what came back.
async fn ask(
    lab: &Lab,
    how: (&str, &str),
    content_type: &str,
    body: impl ToString,
) -> Result<(u16, Value), Box<dyn Error + Send + Sync>> {
    let (code, text, _) = send(&lab.client, how, content_type, body.to_string()).await?;
    Ok((
        code,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    ))
}

/// Manager, operation and subresource of each entry, with its fields.
fn owners(object: &Value) -> Vec<(String, Value)> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let list = object["metadata"]["managedFields"].as_array();
    let entries = list.into_iter().flatten().map(|entry| {
        let (manager, operation) = (text(entry, "manager"), text(entry, "operation"));
        let who = format!("{manager} {operation} {}", text(entry, "subresource"));
        (who.trim_end().to_owned(), entry["fieldsV1"].clone())
    });
    entries.collect()
}

fn names(object: &Value) -> Vec<String> {
    owners(object).into_iter().map(|owner| owner.0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_is_followed() -> TestResult {
    let lab = Lab::new().await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1", "b": "1"}});
    let path = format!("{CONFIGMAPS}?fieldManager=maker");
    let (code, made) = ask(&lab, ("POST", &path), JSON, &map).await?;
    assert_eq!(code, 201, "{made}");
    let all = json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}});
    assert_eq!(owners(&made), [("maker Update".to_owned(), all)]);
    let one = |manager: &str| format!("{CONFIGMAPS}/m?fieldManager={manager}");
    // Update, and each kind of patch.
    let mut next = made.clone();
    next["data"]["a"] = json!("2");
    let (_, put) = ask(&lab, ("PUT", &one("putter")), JSON, &next).await?;
    // Those of one second stand in the order of their names.
    let sorted = |object: &Value| {
        let mut names = names(object);
        names.sort();
        names
    };
    assert_eq!(sorted(&put), ["maker Update", "putter Update"]);
    let patch = json!({"data": {"b": "2"}});
    let (_, merged) = ask(&lab, ("PATCH", &one("merger")), MERGE, &patch).await?;
    assert_eq!(
        sorted(&merged),
        ["maker Update", "merger Update", "putter Update"]
    );
    let patch = json!({"data": {"c": "1"}});
    let strategic = "application/strategic-merge-patch+json";
    let (_, patched) = ask(&lab, ("PATCH", &one("strategic")), strategic, &patch).await?;
    let own = json!({"f:data": {"f:c": {}}});
    assert!(
        owners(&patched).contains(&("strategic Update".to_owned(), own)),
        "{patched}"
    );
    let patch = json!([{"op": "test", "path": "/metadata/deletionTimestamp", "value": null},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]}, {"op": "remove", "path": "/metadata/finalizers"},
        {"op": "add", "path": "/data/d", "value": "1"}]);
    let json_patch = "application/json-patch+json";
    let (code, patched) = ask(&lab, ("PATCH", &one("json")), json_patch, &patch).await?;
    assert_eq!(code, 200, "{patched}");
    assert!(
        names(&patched).contains(&"json Update".to_owned()),
        "{patched}"
    );
    // What changes nothing changes nothing.
    let (_, same) = ask(
        &lab,
        ("PATCH", &one("nobody")),
        MERGE,
        json!({"data": {"d": "1"}}),
    )
    .await?;
    assert_eq!(same, patched);
    // Applied beside them; a second time it is the same.
    let apply = "application/apply-patch+yaml";
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "2", "e": "1"}});
    let (_, applied) = ask(&lab, ("PATCH", &one("applier")), apply, &config).await?;
    assert_eq!(names(&applied)[0], "applier Apply");
    let (_, again) = ask(&lab, ("PATCH", &one("applier")), apply, &config).await?;
    assert_eq!(again, applied);
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"b": "3"}});
    let (code, refused) = ask(&lab, ("PATCH", &one("other")), apply, &config).await?;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"merger\" using v1: .data.b"
    );
    let forced = one("other") + "&force=true";
    let (_, forced) = ask(&lab, ("PATCH", &forced), apply, &config).await?;
    assert!(
        !names(&forced).contains(&"merger Update".to_owned()),
        "{forced}"
    );
    // The list may be emptied; then nobody is followed until somebody applies.
    let patch = json!({"metadata": {"managedFields": [{}]}});
    let (_, reset) = ask(&lab, ("PATCH", &one("resetter")), MERGE, &patch).await?;
    assert!(owners(&reset).is_empty(), "{reset}");
    let (_, next) = ask(
        &lab,
        ("PATCH", &one("late")),
        MERGE,
        json!({"data": {"a": "9"}}),
    )
    .await?;
    assert!(owners(&next).is_empty(), "{next}");
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "9"}});
    let (_, applied) = ask(&lab, ("PATCH", &one("applier")), apply, &config).await?;
    assert_eq!(
        names(&applied),
        ["applier Apply", "before-first-apply Update"]
    );
    let (code, refused) = ask(&lab, ("PATCH", &one(&"x".repeat(129))), MERGE, "{}").await?;
    assert_eq!((code, &refused["reason"]), (422, &json!("Invalid")));
    let (code, _) = ask(&lab, ("PATCH", &(one("x") + "&force=true")), MERGE, "{}").await?;
    assert_eq!(code, 422, "who does not apply does not force");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_an_object_have_owners_of_their_own() -> TestResult {
    let lab = Lab::new().await?;
    let wanted = workload("web", json!({"replicas": 1}));
    let wanted = {
        let mut wanted = wanted;
        wanted["apiVersion"] = json!("apps/v1");
        wanted["kind"] = json!("Deployment");
        wanted
    };
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let (code, made) = ask(
        &lab,
        ("POST", &format!("{all}?fieldManager=maker")),
        JSON,
        &wanted,
    )
    .await?;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        made["metadata"]["managedFields"][0]["apiVersion"],
        "apps/v1"
    );
    let scale = format!("{all}/web/scale?fieldManager=scaler");
    let patch = json!({"spec": {"replicas": 2}});
    let (code, scaled) = ask(&lab, ("PATCH", &scale), MERGE, &patch).await?;
    assert_eq!(code, 200, "{scaled}");
    let status = format!("{all}/web/status?fieldManager=teller");
    let patch = json!({"status": {"collisionCount": 7}});
    let (code, told) = ask(&lab, ("PATCH", &status), MERGE, &patch).await?;
    assert_eq!(code, 200, "{told}");
    let owned = owners(&told);
    let fields = |who: &str| {
        let mut found = owned.iter().filter(|owner| owner.0 == who);
        found.next().map(|owner| owner.1.clone())
    };
    assert_eq!(
        fields("scaler Update scale"),
        Some(json!({"f:spec": {"f:replicas": {}}}))
    );
    assert_eq!(
        fields("teller Update status"),
        Some(json!({"f:status": {"f:collisionCount": {}}}))
    );
    assert!(fields("maker Update").is_some_and(|set| set["f:spec"]["f:replicas"].is_null()));
    // Our own controllers go the same way, under the original's names.
    until("the controller tells how it goes", || async {
        let deployments: Api<Deployment> = lab.api("default");
        let web = serde_json::to_value(deployments.get("web").await?).unwrap_or_default();
        Ok(names(&web).contains(&"kube-controller-manager Update status".to_owned()))
    })
    .await?;
    let pods: Api<Pod> = lab.api("default");
    let list = pods.list(&ListParams::default()).await?;
    let pod = list.items.first().ok_or("a pod")?;
    let pod = serde_json::to_value(pod)?;
    let own = &owners(&pod)[0];
    assert_eq!(own.0, "kube-controller-manager Update");
    // Nobody owns what admission adds.
    assert!(own.1["f:spec"]["f:serviceAccountName"].is_null(), "{own:?}");
    assert!(own.1["f:spec"]["f:containers"].is_object(), "{own:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_of_a_name_that_is_taken_is_a_conflict() -> TestResult {
    let lab = Lab::new().await?;
    let map = json!({"metadata": {"name": "m"}});
    let path = format!("{CONFIGMAPS}?dryRun=All");
    let (code, _) = ask(&lab, ("POST", &path), JSON, &map).await?;
    assert_eq!(code, 201);
    let (code, _) = ask(&lab, ("POST", CONFIGMAPS), JSON, &map).await?;
    assert_eq!(code, 201, "nothing was stored");
    let (code, refused) = ask(&lab, ("POST", &path), JSON, &map).await?;
    assert_eq!((code, &refused["reason"]), (409, &json!("AlreadyExists")));
    let (code, refused) = ask(
        &lab,
        ("POST", &format!("{CONFIGMAPS}?dryRun=Some")),
        JSON,
        &map,
    )
    .await?;
    assert_eq!(code, 422);
    let message = "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"";
    assert_eq!(refused["message"], message);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_dependents_nobody_spoke_of() -> TestResult {
    let lab = Lab::new().await?;
    let controllers: Api<ReplicationController> = lab.api("default");
    let mut controller = workload("rc", json!({"replicas": 1}));
    controller["spec"]["selector"] = json!({"app": "rc"});
    controllers
        .create(&PostParams::default(), &object(controller)?)
        .await?;
    let jobs: Api<Job> = lab.api("default");
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    jobs.create(&PostParams::default(), &object(job)?).await?;
    let pods: Api<Pod> = lab.api("default");
    until("both have a pod", || async {
        Ok(pods.list(&ListParams::default()).await?.items.len() == 2)
    })
    .await?;
    let path = "/apis/batch/v1/namespaces/default/jobs/j";
    let (code, text, warnings) = send(&lab.client, ("DELETE", path), JSON, "").await?;
    assert_eq!(code, 200, "{text}");
    let warned = warnings
        .iter()
        .any(|warning| warning.contains("child pods are preserved by default"));
    assert!(warned, "{warnings:?}");
    let path = "/api/v1/namespaces/default/replicationcontrollers/rc";
    let (code, text, _) = send(&lab.client, ("DELETE", path), JSON, "").await?;
    assert_eq!(code, 200, "{text}");
    until("both are gone, their pods stay", || async {
        let gone = controllers.get_opt("rc").await?.is_none() && jobs.get_opt("j").await?.is_none();
        let left = pods.list(&ListParams::default()).await?.items;
        let alone = left.iter().filter(|pod| pod.owner_references().is_empty());
        Ok(gone && alone.count() == 2)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_what_remains_are_the_whole() -> TestResult {
    let lab = Lab::new().await?;
    let start = 5;
    for at in 0..start {
        let map = json!({"metadata": {"name": format!("m{at}"), "labels": {"p": "q"}}});
        ask(&lab, ("POST", CONFIGMAPS), JSON, &map).await?;
    }
    let (_, whole) = ask(&lab, ("GET", CONFIGMAPS), JSON, "").await?;
    let total = whole["items"].as_array().map_or(0, Vec::len);
    let list = format!("{CONFIGMAPS}?limit=2");
    let (_, first) = ask(&lab, ("GET", &list), JSON, "").await?;
    assert_eq!(first["metadata"]["remainingItemCount"], json!(total - 2));
    // What is made in between is in none of the pages.
    ask(
        &lab,
        ("POST", CONFIGMAPS),
        JSON,
        json!({"metadata": {"name": "m9"}}),
    )
    .await?;
    let mut page = first.clone();
    let mut seen = 2;
    while let Some(next) = page["metadata"]["continue"]
        .as_str()
        .filter(|next| !next.is_empty())
    {
        let path = format!("{list}&continue={next}");
        let (code, following) = ask(&lab, ("GET", &path), JSON, "").await?;
        assert_eq!(code, 200, "{following}");
        assert_eq!(
            following["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        seen += following["items"].as_array().map_or(0, Vec::len);
        let left = following["metadata"]["remainingItemCount"]
            .as_u64()
            .unwrap_or(0);
        assert_eq!(seen as u64 + left, total as u64);
        page = following;
    }
    assert_eq!(seen, total);
    // With a selector nobody counts.
    let (_, some) = ask(
        &lab,
        ("GET", &format!("{list}&labelSelector=p%3Dq")),
        JSON,
        "",
    )
    .await?;
    assert!(some["metadata"]["remainingItemCount"].is_null());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_those_of_the_original() -> TestResult {
    let lab = Lab::new().await?;
    let (_, root) = ask(&lab, ("GET", "/"), JSON, "").await?;
    let paths: Vec<&str> = root["paths"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for path in [
        "/api/v1",
        "/apis/apps",
        "/apis/apps/v1",
        "/apis/apiregistration.k8s.io/v1",
        "/openapi/v3",
        "/openapi/v3/apis/apps/v1",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
        "/livez/ping",
        "/readyz/etcd",
    ] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
    assert!(paths.is_sorted());
    for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        let request = http::Request::get(path).body(kube::client::Body::empty())?;
        let answer = lab.client.send(request).await?;
        assert_eq!(
            answer.headers()["cache-control"],
            "public, max-age=3600",
            "{path}"
        );
    }
    for (method, path) in [
        ("POST", "/version"),
        ("DELETE", "/apis"),
        ("PATCH", "/healthz"),
        ("PUT", "/api/v1"),
        ("POST", "/openapi/v2"),
    ] {
        let (code, refused) = ask(&lab, (method, path), JSON, "").await?;
        assert_eq!(
            (code, &refused["reason"]),
            (405, &json!("MethodNotAllowed")),
            "{method} {path}"
        );
    }
    for name in ["ping", "log", "etcd"] {
        for endpoint in ["healthz", "livez", "readyz"] {
            let (code, said) = ask(&lab, ("GET", &format!("/{endpoint}/{name}")), JSON, "").await?;
            assert_eq!((code, said), (200, json!("ok")), "{endpoint} {name}");
        }
    }
    let (_, text, _) = send(
        &lab.client,
        ("GET", "/api/v1/namespaces/default/pods/x"),
        JSON,
        "",
    )
    .await?;
    assert_eq!(
        text,
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"pods \\\"x\\\" not found\",\"reason\":\"NotFound\",\"details\":{\"name\":\"x\",\"kind\":\"pods\"},\"code\":404}\n"
    );
    let (code, list, warnings) =
        send(&lab.client, ("GET", "/api/v1/componentstatuses"), JSON, "").await?;
    assert_eq!(code, 200, "{list}");
    assert_eq!(
        warnings,
        ["299 - \"v1 ComponentStatus is deprecated in v1.19+\""]
    );
    let list: Value = serde_json::from_str(&list)?;
    assert_eq!(list["kind"], "ComponentStatusList");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(3));
    let (_, one) = ask(
        &lab,
        ("GET", "/api/v1/componentstatuses/scheduler"),
        JSON,
        "",
    )
    .await?;
    assert_eq!(
        one["conditions"],
        json!([{"type": "Healthy", "status": "True", "message": "ok"}])
    );
    let (code, _) = ask(&lab, ("GET", "/api/v1/componentstatuses/x"), JSON, "").await?;
    assert_eq!(code, 404);
    let pod = json!({"metadata": {"name": "Bad_Name"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, refused) = ask(
        &lab,
        ("POST", "/api/v1/namespaces/default/pods"),
        JSON,
        &pod,
    )
    .await?;
    assert_eq!(code, 422);
    assert_eq!(
        refused["details"]["causes"].as_array().map(Vec::len),
        Some(1),
        "{refused}"
    );
    Ok(())
}
