//! Patches that cost more than they should.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    harness::{DAEMON_MEMORY, Health, Neighbour, Tenant},
    lab::{Cluster, is_unoptimised},
    limits::{CONFIGMAPS, send},
};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/NS/deployments/d?fieldManager=one";

fn environment(from: usize, to: usize, value: &str) -> Vec<Value> {
    (from..to)
        .map(|at| json!({"name": format!("N{at}"), "value": value}))
        .collect()
}

#[test]
#[ignore = "needs root"]
fn long_lists_and_many_keys_are_merged_in_seconds() {
    let cluster = Cluster::started();
    let tenant = Tenant::new(&cluster, "patches");
    let health = Health::watch(&cluster);
    let neighbour = Neighbour::works(&cluster, "neighbour");
    let quick = |request: [&str; 3], body: &Value, code: &str| {
        let begun = Instant::now();
        let (got, answer) = send(&tenant, request, body.to_string().as_bytes());
        assert_eq!(got, code, "{request:?}: {answer:.500}");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "{request:?} took {took:?}");
        answer
    };
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 0,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "env": environment(0, 9000, "a")}]}}}});
    let collection = DEPLOYMENT.replace("/d?", "?");
    quick(
        ["POST", &collection, "application/json"],
        &deployment,
        "201",
    );

    // Merged by key, in an order of its own.
    let names: Vec<Value> = (0..18_000)
        .map(|at| json!({"name": format!("N{at}")}))
        .collect();
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c",
        "env": environment(0, 18_000, "b"), "$setElementOrder/env": names}]}}}});
    let strategic = "application/strategic-merge-patch+json";
    quick(["PATCH", DEPLOYMENT, strategic], &patch, "200");

    // Each operation moves the whole list.
    let operation = json!({"op": "add", "path": "/spec/template/spec/containers/0/env/0",
        "value": {"name": "X", "value": "x"}});
    let answer = quick(
        ["PATCH", DEPLOYMENT, "application/json-patch+json"],
        &json!(vec![operation; 10_000]),
        "422",
    );
    assert!(
        answer.contains("move more than 50000000 list items"),
        "{answer:.500}"
    );

    // One field more than may be named, fifty thousand times.
    let data = |value: &str| -> Value {
        let data: serde_json::Map<String, Value> = (0..50_000)
            .map(|at| (format!("k{at}"), value.into()))
            .collect();
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
    };
    let apply = "application/apply-patch+yaml";
    let map = format!("{CONFIGMAPS}/m?fieldManager=");
    quick(["PATCH", &format!("{map}one"), apply], &data("a"), "201");
    let answer = quick(["PATCH", &format!("{map}two"), apply], &data("b"), "409");
    assert!(
        answer.contains("Apply failed with 50000 conflicts"),
        "{answer:.200}"
    );
    assert!(answer.contains("and 49900 more"));
    assert!(
        answer.len() < 64 << 10,
        "an answer of {} bytes",
        answer.len()
    );
    neighbour.assert();
    // Unoptimised, the program itself and what it works with take more.
    let times = if is_unoptimised() { 2 } else { 1 };
    health.assert_below(times * DAEMON_MEMORY);
}
