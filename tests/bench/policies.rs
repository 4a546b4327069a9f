//! Creations while policies and webhooks judge them, and what one policy costs: a dry run is all of a
//! creation but the disk.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::{lab::Cluster, partner::partner};

const ROUNDS: usize = 5;
const CREATIONS: usize = 500;
const POLICIES: usize = 3;
const WEBHOOKS: [&str; 2] = [
    "mutatingwebhookconfiguration",
    "validatingwebhookconfiguration",
];

pub async fn judged(pods: &Api<Pod>, cluster: &Cluster) {
    let place = tempfile::tempdir().unwrap();
    let loopback = [127, 0, 0, 1].into();
    let webhook = partner(place.path(), loopback, "localhost", allow).await;
    let (port, authority) = webhook.unwrap();
    let mut without = best_of(pods).await;
    for webhooks in [0, WEBHOOKS.len()] {
        if webhooks > 0 {
            for configuration in configurations(port, &authority) {
                cluster.apply(&configuration.to_string());
            }
            without = best_of(pods).await;
        }
        for index in 0..POLICIES {
            for object in policy(index) {
                cluster.apply(&object.to_string());
            }
        }
        let with = best_of(pods).await;
        for index in 0..POLICIES {
            cluster.ok(&format!(
                "delete validatingadmissionpolicy,validatingadmissionpolicybinding bench-{index}"
            ));
        }
        print(webhooks, with, without);
    }
    for kind in WEBHOOKS {
        cluster.ok(&format!("delete {kind} bench"));
    }
}

fn print(webhooks: usize, with: Duration, without: Duration) {
    let rate = |time: Duration| CREATIONS as f64 / time.as_secs_f64();
    let more = with.saturating_sub(without).as_secs_f64() * 1e6;
    println!(
        "{:<44} {:>8.0} creates/s, without {:>8.0}; {:>6.1} us a policy (goal 30)",
        format!("policies: three of CEL, {webhooks} webhooks"),
        rate(with),
        rate(without),
        more / (CREATIONS * POLICIES) as f64,
    );
}

/// What the webhooks answer.
fn allow(_: http::request::Parts, review: Value) -> Value {
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "response": {"uid": review["request"]["uid"], "allowed": true}})
}

/// One that may change pods, and one that may refuse them.
fn configurations(port: u16, authority: &str) -> [Value; 2] {
    ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"].map(|kind| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "bench"},
            "webhooks": [{"name": "bench.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://localhost:{port}/"), "caBundle": authority},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]})
    })
}

async fn best_of(pods: &Api<Pod>) -> Duration {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for index in 0..CREATIONS {
            let pod = super::pods::pod(&format!("judged-{index}"));
            pods.create(&params, &pod).await.unwrap();
        }
        best = best.min(begun.elapsed());
    }
    best
}

/// A policy of three validations and a variable, and its binding.
fn policy(index: usize) -> [Value; 2] {
    let (version, name) = ("admissionregistration.k8s.io/v1", format!("bench-{index}"));
    let policy = json!({"apiVersion": version, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}]},
        "matchConditions": [{"name": "users", "expression": "!request.userInfo.username.startsWith('system:node:')"}],
        "variables": [{"name": "containers", "expression": "object.spec.containers"}],
        "validations": [
            {"expression": "variables.containers.all(c, c.image.contains(':'))", "message": "images have tags"},
            {"expression": "!has(object.spec.hostNetwork) || !object.spec.hostNetwork", "message": "no network of the host"},
            {"expression": "variables.containers.size() <= 10 && object.metadata.name.size() < 60", "message": "few and short"}],
    }});
    let binding = json!({"apiVersion": version, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]}});
    [policy, binding]
}
