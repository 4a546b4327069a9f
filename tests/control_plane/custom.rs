//! Custom resources: their rules, their fields in selectors, what their documents say.

use futures::{StreamExt, TryStreamExt};
use kube::{
    api::WatchParams,
    core::{ApiResource, GroupVersionKind, WatchEvent},
};

use super::*;

type Tabs = Api<DynamicObject>;

/// Defines `tabs.<group>` with this version and waits until it is served.
async fn define(
    lab: &Lab,
    group: &str,
    version: Value,
) -> Result<Tabs, Box<dyn Error + Send + Sync>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let name = format!("tabs.{group}");
    let definition = definition(group, version)?;
    definitions
        .create(&PostParams::default(), &definition)
        .await?;
    until("the definition is established", || {
        established(&definitions, &name)
    })
    .await?;
    let kind =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", "Tab"), "tabs");
    Ok(Api::namespaced_with(lab.client.clone(), "default", &kind))
}

fn definition(group: &str, version: Value) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut version = version;
    version["name"] = json!("v1");
    version["served"] = json!(true);
    version["storage"] = json!(true);
    object(
        json!({"metadata": {"name": format!("tabs.{group}")}, "spec": {
        "group": group, "scope": "Namespaced", "names": {"plural": "tabs", "kind": "Tab"},
        "versions": [version]}}),
    )
}

async fn established(
    definitions: &Api<CustomResourceDefinition>,
    name: &str,
) -> Result<bool, kube::Error> {
    let status = definitions.get(name).await?.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let mut all = conditions.iter();
    Ok(all.any(|one| one.type_ == "Established" && one.status == "True"))
}

fn tab(group: &str, name: &str, rest: Value) -> Result<DynamicObject, serde_json::Error> {
    let mut tab =
        json!({"apiVersion": format!("{group}/v1"), "kind": "Tab", "metadata": {"name": name}});
    for (member, value) in rest.as_object().into_iter().flatten() {
        tab[member] = value.clone();
    }
    object(tab)
}

/// The causes of a refusal.
fn refused<T>(result: Result<T, kube::Error>) -> Result<Vec<String>, String> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 422 => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            Ok(causes
                .map(|one| format!("{}: {}", one.field, one.message))
                .collect())
        }
        Err(other) => Err(format!("refused otherwise: {other}")),
        Ok(_) => Err("it was accepted".to_owned()),
    }
}

/// As the conformance test of this name: rules are kept by creation, update and the status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validation_rules_of_custom_resources() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let group = "rules.example.com";
    let schema = json!({"type": "object",
        "x-kubernetes-validations": [{"rule": "self.metadata.name.startsWith('t')", "message": "the name begins with t"}],
        "properties": {
            "spec": {"type": "object", "required": ["min", "max"], "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"},
                "fixed": {"type": "string", "maxLength": 10, "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
            }, "x-kubernetes-validations": [{"rule": "self.min <= self.max",
                "messageExpression": "'%d is more than %d'.format([self.min, self.max])", "fieldPath": ".max", "reason": "FieldValueForbidden"}]},
            "status": {"type": "object", "properties": {"n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= 0"}]}}}}});
    let version = json!({"schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}});
    let tabs = define(&lab, group, version).await?;
    let spec = |min: i64, max: i64| json!({"spec": {"min": min, "max": max, "fixed": "x"}});
    let made = tabs.create(&params, &tab(group, "x", spec(1, 2))?).await;
    assert_eq!(
        refused(made)?,
        ["<nil>: Invalid value: the name begins with t"]
    );
    let made = tabs.create(&params, &tab(group, "t", spec(3, 2))?).await;
    assert_eq!(refused(made)?, ["spec.max: Forbidden: 3 is more than 2"]);
    // What is not as the schema says is told first.
    let made = tabs
        .create(&params, &tab(group, "x", json!({"spec": {"min": 3}}))?)
        .await;
    let causes = refused(made)?;
    assert_eq!(causes[0], "spec.max: Required value");
    assert!(
        causes[1].contains("some validation rules were not checked"),
        "{causes:?}"
    );
    tabs.create(&params, &tab(group, "t", spec(1, 2))?).await?;
    let patch = async |patch: Value| {
        tabs.patch("t", &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    let changed = patch(json!({"spec": {"fixed": "y"}})).await;
    assert_eq!(
        refused(changed)?,
        ["spec.fixed: Invalid value: \"y\": is immutable"]
    );
    patch(json!({"spec": {"max": 5}})).await?;
    let status = Patch::Merge(json!({"status": {"n": -1}}));
    let told = tabs
        .patch_status("t", &PatchParams::default(), &status)
        .await;
    assert_eq!(
        refused(told)?,
        ["status.n: Invalid value: -1: failed rule: self >= 0"]
    );
    // A definition with a rule that cannot be is refused.
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let wrong = |rule: &str| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "list": {"type": "array", "items": {"type": "string"}}}, "x-kubernetes-validations": [{"rule": rule}]}}});
        definition(
            "wrong.example.com",
            json!({"schema": {"openAPIV3Schema": schema}}),
        )
    };
    for (rule, want) in [
        (
            "self.gone == 1",
            "compilation failed: ERROR: <input>:1:5: undefined field 'gone'",
        ),
        (
            "self.list.all(a, self.list.all(b, a == b))",
            "estimated rule cost exceeds budget by factor of more than 100x",
        ),
    ] {
        let causes = refused(definitions.create(&params, &wrong(rule)?).await)?;
        assert!(causes[0].contains(want), "{causes:?}");
    }
    Ok(())
}

/// As the conformance test "CustomResourceFieldSelectors MUST list and watch custom resources matching
/// the field selector".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_are_selected_by_their_fields() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let group = "fields.example.com";
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "color": {"type": "string"}, "size": {"type": "integer"}, "on": {"type": "boolean"}}}}});
    let fields =
        json!([{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.size"}, {"jsonPath": ".spec.on"}]);
    let version = json!({"schema": {"openAPIV3Schema": schema}, "selectableFields": fields});
    let tabs = define(&lab, group, version).await?;
    for (name, spec) in [
        ("a", json!({"color": "red", "size": 1, "on": true})),
        ("b", json!({"color": "blue", "size": 1})),
        ("c", json!({"color": "red", "size": 2})),
    ] {
        tabs.create(&params, &tab(group, name, json!({"spec": spec}))?)
            .await?;
    }
    let names = async |fields: &str| -> Result<Vec<String>, kube::Error> {
        let list = tabs.list(&ListParams::default().fields(fields)).await?;
        Ok(list.items.iter().map(ResourceExt::name_any).collect())
    };
    for (fields, want) in [
        ("spec.color=red", &["a", "c"][..]),
        ("spec.color!=red", &["b"]),
        ("spec.color=red,spec.size=1", &["a"]),
        ("spec.on=true", &["a"]),
        ("spec.on=", &["b", "c"]),
        ("metadata.name=b,spec.size=1", &["b"]),
    ] {
        assert_eq!(names(fields).await?, want, "{fields}");
    }
    match names("spec.other=1").await {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 400);
            assert!(
                status
                    .message
                    .contains("field label not supported: spec.other"),
                "{status:?}"
            );
        }
        other => return Err(format!("{other:?}").into()),
    }
    // A watcher sees what enters and leaves its selection.
    let watched = tabs
        .watch(
            &WatchParams::default().fields("spec.color=blue").timeout(5),
            "0",
        )
        .await?;
    let mut watched = watched.boxed();
    let change = Patch::Merge(json!({"spec": {"color": "blue"}}));
    tabs.patch("a", &PatchParams::default(), &change).await?;
    let change = Patch::Merge(json!({"spec": {"color": "green"}}));
    tabs.patch("b", &PatchParams::default(), &change).await?;
    let mut seen = Vec::new();
    while let Some(event) = watched.try_next().await? {
        seen.push(match event {
            WatchEvent::Added(one) => format!("added {}", one.name_any()),
            WatchEvent::Deleted(one) => format!("deleted {}", one.name_any()),
            other => format!("{other:?}"),
        });
        if seen.len() == 3 {
            break;
        }
    }
    assert_eq!(seen, ["added b", "added a", "deleted b"]);
    let red = ListParams::default().fields("spec.color=red");
    tabs.delete_collection(&DeleteParams::default(), &red)
        .await?;
    assert_eq!(names("").await?, ["a", "b"]);
    // The published document says so.
    let request = http::Request::get(format!("/openapi/v3/apis/{group}/v1"))
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    let document: Value = lab.client.request(request).await?;
    let kind = &document["components"]["schemas"]["com.example.fields.v1.Tab"];
    assert_eq!(
        kind["x-kubernetes-selectable-fields"][0],
        json!({"fieldPath": "spec.color"})
    );
    // Custom resources take no strategic merge patch, and their document does not say they do.
    let path = format!("/apis/{group}/v1/namespaces/{{namespace}}/tabs/{{name}}");
    let content = document["paths"][&path]["patch"]["requestBody"]["content"].as_object();
    let forms: Vec<&str> = content
        .into_iter()
        .flatten()
        .map(|(form, _)| form.as_str())
        .collect();
    assert_eq!(
        forms,
        [
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json"
        ]
    );
    Ok(())
}

/// A definition that has become stricter does not stop changes of what is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_may_stay() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let group = "ratchet.example.com";
    let version = |spec: Value, rules: Value| {
        json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"a": spec, "b": {"type": "string"}, "t": {"type": "object",
                "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}},
            "x-kubernetes-validations": rules}}}}})
    };
    let tabs = define(&lab, group, version(json!({"type": "string"}), json!([]))).await?;
    let spec = json!({"spec": {"a": "long", "b": null}});
    let made = tabs.create(&params, &tab(group, "t", spec)?).await?;
    assert_eq!(
        made.data["spec"],
        json!({"a": "long"}),
        "a null that may not be there goes"
    );
    let embedded = json!({"spec": {"t": {"metadata": {}}}});
    let causes = refused(tabs.create(&params, &tab(group, "e", embedded)?).await)?;
    assert_eq!(
        causes,
        [
            "spec.t.apiVersion: Required value",
            "spec.t.kind: Required value"
        ]
    );
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let stricter = version(json!({"type": "string", "maxLength": 2}), json!([]));
    let mut next = definition(group, stricter)?;
    let now = definitions.get("tabs.ratchet.example.com").await?;
    next.metadata.resource_version = now.metadata.resource_version;
    definitions
        .replace("tabs.ratchet.example.com", &params, &next)
        .await?;
    let patch = async |patch: Value| {
        tabs.patch("t", &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    // Another value each time: one that was taken before the definition changed may stay.
    let mut tries = 0;
    until("the stricter definition is served", || {
        tries += 1;
        let longer = json!({"spec": {"a": format!("longer {tries}")}});
        let patch = &patch;
        async move { Ok(patch(longer).await.is_err()) }
    })
    .await?;
    patch(json!({"spec": {"b": "new"}})).await?;
    let causes = refused(patch(json!({"spec": {"a": "other"}})).await)?;
    assert_eq!(causes, ["spec.a: Too long: may not be more than 2 bytes"]);
    Ok(())
}

/// A dry run converts as the store would have it; who cannot be asked is named as the original names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_of_conversion_that_is_not_there() -> TestResult {
    let lab = Lab::new().await?;
    let group = "converted.example.com";
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    let service = json!({"namespace": "default", "name": "absent", "path": "/convert"});
    let definition: CustomResourceDefinition = object(json!({
        "metadata": {"name": format!("tabs.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": "tabs", "kind": "Tab"},
            "versions": [version("v1", false), version("v2", true)],
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"], "clientConfig": {"service": service}}},
        },
    }))?;
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let name = format!("tabs.{group}");
    let params = PostParams::default();
    definitions.create(&params, &definition).await?;
    until("the definition is established", || {
        established(&definitions, &name)
    })
    .await?;
    let kind =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", "Tab"), "tabs");
    let tabs: Tabs = Api::namespaced_with(lab.client.clone(), "default", &kind);
    for dry_run in [true, false] {
        let params = PostParams {
            dry_run,
            ..PostParams::default()
        };
        let made = tabs.create(&params, &tab(group, "t", json!({}))?).await;
        let Err(kube::Error::Api(status)) = made else {
            return Err(format!("{made:?}").into());
        };
        assert_eq!(status.code, 500);
        assert_eq!(
            status.message,
            format!(
                "conversion webhook for {group}/v1, Kind=Tab failed: Post \
                 \"https://absent.default.svc:443/convert?timeout=30s\": service \"absent\" not found"
            )
        );
    }
    Ok(())
}
