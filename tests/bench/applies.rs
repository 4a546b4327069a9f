//! What tools do all day: a Deployment applied again and again, and a definition made and used at once.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::apps::v1::Deployment,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use serde_json::{Value, json};

const ROUNDS: usize = 5;
const APPLIES: usize = 300;
const DEFINITIONS: usize = 40;

/// By server-side apply, one after the other: each changes the pod template, or nothing.
pub async fn deployments(client: Client) {
    let deployments: Api<Deployment> = Api::namespaced(client, "default");
    for (what, changes) in [("each changes it", true), ("nothing changes", false)] {
        let mut best = Duration::MAX;
        for round in 0..ROUNDS {
            let begun = Instant::now();
            for number in 0..APPLIES {
                let version = if changes { round * APPLIES + number } else { 0 };
                let applied = Patch::Apply(deployment(version));
                let params = PatchParams::apply("bench").force();
                deployments.patch("bench", &params, &applied).await.unwrap();
            }
            best = best.min(begun.elapsed());
        }
        println!(
            "{:<44} {:>8.0} applies/s",
            format!("apply: a Deployment, {what}"),
            APPLIES as f64 / best.as_secs_f64()
        );
    }
    deployments
        .delete("bench", &DeleteParams::default())
        .await
        .unwrap();
}

/// Of no replicas, so that its pods do not count.
fn deployment(version: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bench"}, "spec": {
        "replicas": 0, "paused": true, "selector": {"matchLabels": {"app": "bench"}},
        "template": {"metadata": {"labels": {"app": "bench"}, "annotations": {"version": version.to_string()}},
            "spec": {"containers": [{"name": "c", "image": "busybox:1", "env": [{"name": "A", "value": "b"}],
                "ports": [{"containerPort": 80}], "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}}}})
}

/// From the creation of a definition to the first list of its objects.
pub async fn definitions(client: Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut figures = Vec::new();
    for number in 0..DEFINITIONS {
        let plural = format!("benches{number}");
        let definition = serde_json::from_value(definition(&plural)).unwrap();
        let kind = GroupVersionKind::gvk("example.com", "v1", "Bench");
        let served = ApiResource::from_gvk_with_plural(&kind, &plural);
        let objects: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &served);
        let begun = Instant::now();
        definitions
            .create(&PostParams::default(), &definition)
            .await
            .unwrap();
        loop {
            match objects.list(&ListParams::default()).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => panic!("{error}"),
            }
        }
        figures.push(begun.elapsed());
    }
    super::print("definition: create to served", figures, "goal 20");
    for number in 0..DEFINITIONS {
        let name = format!("benches{number}.example.com");
        definitions
            .delete(&name, &DeleteParams::default())
            .await
            .unwrap();
    }
}

fn definition(plural: &str) -> Value {
    let kind = plural.replace("benches", "Bench");
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 1}, "image": {"type": "string", "maxLength": 200},
                        "names": {"type": "array", "maxItems": 20, "items": {"type": "string", "maxLength": 63}}},
                        "x-kubernetes-validations": [{"rule": "self.size < 100", "message": "too large"}]},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}})
}
