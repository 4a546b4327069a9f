//! The allocator against objects in memory.

use serde_json::{Value, json};

use super::*;
use crate::apiserver::admission::testing::{Memory, admit, row};

fn allocator(memory: &Arc<Memory>) -> Allocator {
    let config = ServiceConfig {
        cidrs: vec!["10.96.0.0/24".parse().unwrap()],
        reserved_addresses: vec![ReservedAddress {
            address: "10.96.0.10".parse().unwrap(),
            namespace: "kube-system",
            name: "kube-dns",
        }],
        node_ports: 30000..=30001,
        reserved_ports: Vec::new(),
        external_ips: super::ExternalIps::default(),
    };
    Allocator::new(memory.late(), config)
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "a", "uid": format!("uid-{name}")}, "spec": spec})
}

async fn create(plugin: &Allocator, memory: &Memory, service: &mut Value) -> Result<(), String> {
    let result = admit(plugin, memory, "services", service, None).await;
    if result.is_ok() {
        memory.put("services", service.clone());
    }
    result.map_err(|status| status.message)
}

#[tokio::test]
async fn addresses_are_given_and_taken_back() {
    let memory = Memory::with(&[]);
    let plugin = allocator(&memory);
    let mut one = service("one", json!({"type": "ClusterIP"}));
    create(&plugin, &memory, &mut one).await.unwrap();
    let ip = text(&one, "spec.clusterIP").to_owned();
    assert_eq!(one["spec"]["clusterIPs"], json!([ip]));
    assert_eq!(one["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut two = service("two", json!({"type": "ClusterIP", "clusterIP": ip}));
    let message = create(&plugin, &memory, &mut two).await.unwrap_err();
    assert_eq!(
        message,
        format!(
            "Service \"two\" is invalid: spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: provided IP is already allocated"
        )
    );
    // Another service's failed create gives nothing of `one` back.
    plugin
        .deleted(row("services"), &service("two", one["spec"].clone()))
        .await;
    assert!(create(&plugin, &memory, &mut two).await.is_err());
    // Nor does anything while the service has it.
    plugin.deleted(row("services"), &one).await;
    assert!(create(&plugin, &memory, &mut two).await.is_err());
    memory
        .0
        .lock()
        .unwrap()
        .remove(&("services".into(), "a".into(), "one".into()));
    plugin.deleted(row("services"), &one).await;
    create(&plugin, &memory, &mut two).await.unwrap();
}

#[tokio::test]
async fn the_address_of_the_cluster_dns_is_nobody_elses() {
    let memory = Memory::with(&[]);
    let plugin = allocator(&memory);
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"});
    let mut other = service("kube-dns", spec.clone()); // in another namespace
    let message = create(&plugin, &memory, &mut other).await.unwrap_err();
    assert!(
        message.ends_with("provided IP is already allocated"),
        "{message}"
    );
    let mut dns = service("kube-dns", spec);
    dns["metadata"]["namespace"] = "kube-system".into();
    create(&plugin, &memory, &mut dns).await.unwrap();
}

#[tokio::test]
async fn some_services_have_no_address() {
    let memory = Memory::with(&[]);
    let plugin = allocator(&memory);
    let mut headless = service(
        "h",
        json!({"type": "ClusterIP", "clusterIP": "None", "selector": {"a": "b"}}),
    );
    create(&plugin, &memory, &mut headless).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let mut external = service("e", json!({"type": "ExternalName", "externalName": "x.y"}));
    create(&plugin, &memory, &mut external).await.unwrap();
    assert!(external["spec"].get("clusterIP").is_none());
    let mut outside = service("o", json!({"type": "ClusterIP", "clusterIP": "1.2.3.4"}));
    assert!(
        create(&plugin, &memory, &mut outside)
            .await
            .unwrap_err()
            .contains("not in the valid range")
    );
}

#[tokio::test]
async fn node_ports_are_unique_in_the_store() {
    let memory = Memory::with(&[]);
    // Two servers, one store.
    let (first, second) = (allocator(&memory), allocator(&memory));
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]});
    let (mut one, mut two, mut three) = (
        service("one", spec.clone()),
        service("two", spec.clone()),
        service("three", spec),
    );
    create(&first, &memory, &mut one).await.unwrap();
    create(&second, &memory, &mut two).await.unwrap();
    assert_ne!(
        one["spec"]["ports"][0]["nodePort"],
        two["spec"]["ports"][0]["nodePort"]
    );
    assert!(
        create(&first, &memory, &mut three)
            .await
            .unwrap_err()
            .contains("range is full")
    );
    // The address claimed for the refused service went back with it.
    assert_eq!(
        memory.list("ipaddresses.networking.k8s.io", "").await.len(),
        2
    );
    memory
        .0
        .lock()
        .unwrap()
        .remove(&("services".into(), "a".into(), "one".into()));
    first.deleted(row("services"), &one).await;
    create(&second, &memory, &mut three).await.unwrap();
}

#[tokio::test]
async fn an_update_keeps_what_was_given() {
    let memory = Memory::with(&[]);
    let plugin = allocator(&memory);
    let mut old = service(
        "one",
        json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    create(&plugin, &memory, &mut old).await.unwrap();
    let mut new = service(
        "one",
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    admit(&plugin, &memory, "services", &mut new, Some(&old))
        .await
        .unwrap();
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert!(new["spec"]["ports"][0]["nodePort"].as_i64().is_some());
}

#[tokio::test]
async fn what_nobody_uses_is_tidied_and_what_is_used_is_claimed() {
    let memory = Memory::with(&[]);
    let plugin = allocator(&memory);
    let mut kept = service(
        "kept",
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    create(&plugin, &memory, &mut kept).await.unwrap();
    let ip = text(&kept, "spec.clusterIP").to_owned();
    let port = kept["spec"]["ports"][0]["nodePort"].to_string();
    // A crash left these; somebody deleted the others.
    let made = "2026-01-01T00:00:00Z";
    let claims = addresses::PLURAL;
    let claim = |name: &str, created: &str| {
        json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {"vetch/service-uid": "gone"}},
            "spec": {"parentRef": {"resource": "services", "namespace": "a", "name": "gone"}}})
    };
    let now = jiff::Timestamp::now().to_string();
    for (name, created) in [("10.96.0.77", made), ("10.96.0.78", now.as_str())] {
        memory.put(claims, claim(name, created));
    }
    let mut table = memory
        .get("configmaps", "kube-system", "service-node-ports")
        .await
        .map(|table| (*table).clone())
        .unwrap();
    table["data"] = json!({"30001": "gone 1"});
    memory.put("configmaps", table);
    memory
        .0
        .lock()
        .unwrap()
        .remove(&(claims.into(), String::new(), ip.clone()));
    let settled = repair::pass(&plugin.shared, &*memory).await;
    assert!(!settled, "one claim is too young to judge");
    let names: Vec<String> = memory
        .list(claims, "")
        .await
        .iter()
        .map(|claim| text(claim, "metadata.name").to_owned())
        .collect();
    let mut want = vec![ip, "10.96.0.78".to_owned()];
    want.sort();
    assert_eq!(names, want);
    let table = memory
        .get("configmaps", "kube-system", "service-node-ports")
        .await
        .unwrap();
    let ports: Vec<&String> = table["data"].as_object().unwrap().keys().collect();
    assert_eq!(ports, [&port]);
}
