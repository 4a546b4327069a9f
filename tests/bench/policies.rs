//! Creations while policies judge them, and what one policy costs: a dry run is all of a creation but
//! the disk.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::lab::Cluster;

const ROUNDS: usize = 5;
const CREATIONS: usize = 500;
const POLICIES: usize = 3;

pub async fn judged(pods: &Api<Pod>, cluster: &Cluster) {
    let without = best_of(pods).await;
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
    let rate = |time: Duration| CREATIONS as f64 / time.as_secs_f64();
    let more = with.saturating_sub(without).as_secs_f64() * 1e6;
    println!(
        "{:<44} {:>8.0} creates/s, without {:>8.0}; {:>6.1} us a policy (goal 30)",
        "policies: three of CEL",
        rate(with),
        rate(without),
        more / (CREATIONS * POLICIES) as f64,
    );
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
            let pod = super::pod(&format!("judged-{index}"));
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
