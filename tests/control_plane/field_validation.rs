//! Fields that nobody knows and fields that stand twice: the conformance tests of v1.37 about them,
//! each under its name, over plain HTTP.

use super::*;

const PORTS: &str = r#"{"type": "array", "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
    "items": {"type": "object", "required": ["containerPort", "protocol"], "properties": {
        "containerPort": {"type": "integer", "format": "int32"}, "hostIP": {"type": "string"},
        "hostPort": {"type": "integer", "format": "int32"}, "name": {"type": "string"},
        "protocol": {"type": "string"}}}}"#;

/// What came back: the code, the body, and the warnings.
pub async fn send(
    client: &Client,
    (method, path): (&str, &str),
    content_type: &str,
    body: impl Into<Vec<u8>>,
) -> Result<(u16, String, Vec<String>), Box<dyn Error + Send + Sync>> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(kube::client::Body::from(body.into()))?;
    let response = client.send(request).await?;
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.filter_map(|warning| warning.to_str().ok().map(str::to_owned));
    let (warnings, code) = (warnings.collect(), response.status().as_u16());
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await?;
    let text = String::from_utf8_lossy(&bytes.to_bytes()).into_owned();
    Ok((code, text, warnings))
}

fn deployment(metadata: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {{"name": "my-dep", {metadata} "labels": {{"app": "nginx"}}}},
        "spec": {{{spec} "selector": {{"matchLabels": {{"app": "nginx"}}}}, "template": {{"metadata": {{"labels": {{"app": "nginx"}}}},
            "spec": {{"containers": [{{"name": "nginx", "image": "nginx:latest"}}]}}}}}}}}"#
    )
}

const DEPLOYMENTS: &str =
    "/apis/apps/v1/namespaces/default/deployments?fieldManager=m&fieldValidation=";

async fn strict_create(body: String) -> Result<String, Box<dyn Error + Send + Sync>> {
    let lab = Lab::new().await?;
    let path = format!("{DEPLOYMENTS}Strict");
    let (code, text, _) = send(&lab.client, ("POST", &path), "application/json", body).await?;
    assert_eq!(code, 400, "{text}");
    let status: Value = serde_json::from_str(&text)?;
    Ok(status["message"].as_str().unwrap_or_default().to_owned())
}

/// A definition of the cluster's scope with this schema, served.
async fn define(lab: &Lab, schema: Value) -> TestResult {
    let definition = object(
        json!({"metadata": {"name": "noxus.mygroup.example.com"}, "spec": {
        "group": "mygroup.example.com", "scope": "Cluster",
        "names": {"plural": "noxus", "singular": "noxu", "kind": "Noxu", "listKind": "NoxuList"},
        "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}}),
    )?;
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    definitions
        .create(&PostParams::default(), &definition)
        .await?;
    let path = "/apis/mygroup.example.com/v1beta1/noxus";
    until("the definition is served", || async {
        let answer = send(&lab.client, ("GET", path), "application/json", "").await;
        Ok(answer.is_ok_and(|(code, ..)| code == 200))
    })
    .await
}

fn spec_schema(more: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&format!(
        r#"{{"type": "object", "properties": {{"spec": {{"type": "object", {more}
        "properties": {{"foo": {{"type": "string"}}, "cronSpec": {{"type": "string", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){{4}}$"}}, "ports": {PORTS},
            "template": {{"type": "object", "x-kubernetes-embedded-resource": true, "properties": {{
                "metadata": {{"type": "object", "properties": {{"name": {{"type": "string"}}}}}}, "spec": {{"type": "object"}}}}}}}}}}}}}}"#
    ))
}

const PRESERVE: &str = r#""x-kubernetes-preserve-unknown-fields": true,"#;

/// Applies an object of the definition, with more lines in its metadata, at its root and in its spec.
async fn apply(
    lab: &Lab,
    validation: &str,
    (metadata, root, spec): (&str, &str, &str),
) -> Result<(u16, String, Vec<String>), Box<dyn Error + Send + Sync>> {
    let body = format!(
        "\napiVersion: mygroup.example.com/v1beta1\nkind: Noxu\nmetadata:\n  name: mytest\n{metadata}  finalizers:\n  - test/finalizer\n{root}spec:\n{spec}  cronSpec: \"* * * * */5\"\n  ports:\n  - name: x\n    containerPort: 80\n    protocol: TCP"
    );
    let path = format!(
        "/apis/mygroup.example.com/v1beta1/noxus/mytest?fieldManager=field_validation_mgr&fieldValidation={validation}"
    );
    let how = ("PATCH", path.as_str());
    send(&lab.client, how, "application/apply-patch+yaml", body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_detect_unknown_and_duplicate_fields_of_a_typed_object() -> TestResult {
    let body = deployment(
        "",
        r#""unknownField": "foo", "replicas": 2, "replicas": 3,"#,
    );
    let message = strict_create(body).await?;
    let want = r#"strict decoding error: unknown field "spec.unknownField", duplicate field "spec.replicas""#;
    assert!(message.contains(want), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_detect_unknown_metadata_fields_of_a_typed_object() -> TestResult {
    let message = strict_create(deployment(r#""unknownMeta": "foo","#, "")).await?;
    let want = r#"strict decoding error: unknown field "metadata.unknownMeta""#;
    assert!(message.contains(want), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_create_or_apply_a_valid_cr_for_crd_with_validation_schema() -> TestResult {
    let lab = Lab::new().await?;
    define(&lab, spec_schema("")?).await?;
    let (code, text, _) = apply(&lab, "Strict", ("", "", "  foo: foo1\n")).await?;
    assert_eq!(code, 201, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_create_or_apply_a_cr_with_unknown_fields_for_crd_with_no_validation_schema()
-> TestResult {
    let lab = Lab::new().await?;
    define(
        &lab,
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    )
    .await?;
    let (code, text, _) = apply(&lab, "Strict", ("", "", "  unknown: uk1\n")).await?;
    assert_eq!(code, 201, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_create_or_apply_an_invalid_cr_with_extra_properties_for_crd_with_validation_schema()
-> TestResult {
    let lab = Lab::new().await?;
    define(&lab, spec_schema("")?).await?;
    // Who applies owns what is declared: the answer is the same however strict one asks to be.
    for validation in ["Strict", "Warn", "Ignore"] {
        let extra = ("", "unknownField: unknown\n", "  foo: foo1\n");
        let (code, text, _) = apply(&lab, validation, extra).await?;
        assert_eq!(code, 500, "{text}");
        let want = "failed to create typed patch object (/mytest; mygroup.example.com/v1beta1, Kind=Noxu): .unknownField: field not declared in schema";
        assert!(text.contains(want), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_detect_unknown_metadata_fields_in_both_the_root_and_embedded_object_of_a_cr()
-> TestResult {
    let lab = Lab::new().await?;
    define(&lab, spec_schema(PRESERVE)?).await?;
    let template = "  template:\n    apiversion: foo/v1\n    kind: Sub\n    metadata:\n        unknownSubMeta: unknown\n        name: subobject\n        namespace: default\n";
    let (code, text, _) = apply(&lab, "Strict", ("  unknownMeta: unknown\n", "", template)).await?;
    assert_eq!(code, 500, "{text}");
    for want in [
        ".spec.template.metadata.unknownSubMeta: field not declared in schema",
        ".metadata.unknownMeta: field not declared in schema",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    // The other ways to write say it in other words.
    let path = "/apis/mygroup.example.com/v1beta1/noxus?fieldValidation=";
    let body = json!({"apiVersion": "mygroup.example.com/v1beta1", "kind": "Noxu",
        "metadata": {"name": "other", "unknownMeta": 1}, "spec": {"template": {
            "apiVersion": "foo/v1", "kind": "Sub", "metadata": {"name": "s", "x": 1}}}});
    let (code, text, _) = send(
        &lab.client,
        ("POST", &format!("{path}Strict")),
        "application/json",
        body.to_string(),
    )
    .await?;
    assert_eq!(code, 400, "{text}");
    let want = r#"strict decoding error: unknown field \"metadata.unknownMeta\", unknown field \"spec.template.metadata.x\""#;
    assert!(text.contains(want), "{text}");
    let (code, text, warnings) = send(
        &lab.client,
        ("POST", &format!("{path}Warn")),
        "application/json",
        body.to_string(),
    )
    .await?;
    assert_eq!(code, 201, "{text}");
    assert_eq!(
        warnings,
        [
            r#"299 - "unknown field \"metadata.unknownMeta\"""#,
            r#"299 - "unknown field \"spec.template.metadata.x\"""#
        ]
    );
    let made: Value = serde_json::from_str(&text)?;
    assert_eq!(made["spec"]["template"]["metadata"], json!({"name": "s"}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_detect_duplicates_in_a_cr_when_preserving_unknown_fields() -> TestResult {
    let lab = Lab::new().await?;
    define(&lab, spec_schema(PRESERVE)?).await?;
    let twice = ("", "", "  unknown: uk1\n  foo: foo1\n  foo: foo2\n");
    let (code, text, _) = apply(&lab, "Strict", twice).await?;
    assert_eq!(code, 400, "{text}");
    let want = r#"error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 11: key \"foo\" already set in map"#;
    assert!(text.contains(want), "{text}");
    let (code, text, warnings) = apply(&lab, "Warn", twice).await?;
    assert_eq!(code, 201, "{text}");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("line 11: key")),
        "{warnings:?}"
    );
    let (code, text, warnings) = apply(&lab, "Ignore", twice).await?;
    assert_eq!((code, warnings.len()), (200, 0), "{text}");
    Ok(())
}

/// Patches of every kind, and bodies in YAML.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_are_as_strict_as_asked() -> TestResult {
    let lab = Lab::new().await?;
    let path = format!("{DEPLOYMENTS}Strict");
    let body = deployment("", "");
    let (code, text, _) = send(&lab.client, ("POST", &path), "application/json", body).await?;
    assert_eq!(code, 201, "{text}");
    let one = |validation: &str| {
        format!("/apis/apps/v1/namespaces/default/deployments/my-dep?fieldValidation={validation}")
    };
    for (content_type, body, complaints) in [
        (
            "application/json-patch+json",
            r#"[{"op": "add", "op": "add", "path": "/spec/unknown", "value": 1}]"#,
            [
                r#"json patch duplicate field \"[0].op\""#,
                r#"unknown field \"spec.unknown\""#,
            ],
        ),
        (
            "application/merge-patch+json",
            r#"{"spec": {"unknown": 1, "paused": false, "paused": true}}"#,
            [
                r#"duplicate field \"spec.paused\""#,
                r#"unknown field \"spec.unknown\""#,
            ],
        ),
        (
            "application/strategic-merge-patch+json",
            r#"{"spec": {"unknown": 1, "paused": false, "paused": true}}"#,
            [
                r#"duplicate field \"spec.paused\""#,
                r#"unknown field \"spec.unknown\""#,
            ],
        ),
    ] {
        let how = ("PATCH", one("Strict"));
        let (code, text, _) = send(&lab.client, (how.0, &how.1), content_type, body).await?;
        assert_eq!(code, 422, "{content_type}: {text}");
        assert!(text.contains("strict decoding error: "), "{text}");
        for complaint in complaints {
            assert!(text.contains(complaint), "{content_type}: {text}");
        }
        let how = ("PATCH", one("Warn"));
        let (code, text, warnings) = send(&lab.client, (how.0, &how.1), content_type, body).await?;
        assert_eq!(code, 200, "{content_type}: {text}");
        for complaint in complaints {
            let said = warnings.iter().any(|warning| warning.contains(complaint));
            assert!(said, "{content_type}: {warnings:?}");
        }
        let how = ("PATCH", one("Ignore"));
        let (code, _, warnings) = send(&lab.client, (how.0, &how.1), content_type, body).await?;
        assert_eq!((code, warnings.len()), (200, 0), "{content_type}");
    }
    let body =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\n  x: y\ndata:\n  a: b\n  a: c\n";
    let path = "/api/v1/namespaces/default/configmaps?fieldValidation=";
    let strict = ("POST", format!("{path}Strict"));
    let (code, text, _) =
        send(&lab.client, (strict.0, &strict.1), "application/yaml", body).await?;
    assert_eq!(code, 400, "{text}");
    for want in [
        r#"yaml: unmarshal errors:\n  line 8: key \"a\" already set in map"#,
        r#"unknown field \"metadata.x\""#,
    ] {
        assert!(text.contains(want), "{text}");
    }
    let warn = ("POST", format!("{path}Warn"));
    let (code, text, _) = send(&lab.client, (warn.0, &warn.1), "application/yaml", body).await?;
    assert_eq!(code, 201, "{text}");
    let made: Value = serde_json::from_str(&text)?;
    assert_eq!(made["data"], json!({"a": "c"}), "the last counts");
    Ok(())
}
