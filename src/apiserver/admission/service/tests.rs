//! The allocator against objects in memory.

use serde_json::{Value, json};

use super::*;
use crate::apiserver::admission::testing::{Memory, admit, row};

const CLAIMS: &str = addresses::PLURAL;
const RANGES: &str = ranges::PLURAL;

fn range(name: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": {"cidrs": [cidr]}})
}

/// With one range, as every cluster has it.
fn cluster(cidr: &str) -> Arc<Memory> {
    Memory::with(&[(RANGES, range(ranges::DEFAULT, cidr))])
}

/// The reasons of the events there are, and what they say.
async fn told(memory: &Memory) -> Vec<(String, String)> {
    let events = memory.list("events", "").await;
    let said = |event: &Arc<Value>| {
        (
            text(event, "reason").to_owned(),
            text(event, "message").to_owned(),
        )
    };
    let mut all: Vec<_> = events.iter().map(said).collect();
    all.sort();
    all
}

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
    let memory = cluster("10.96.0.0/24");
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
    let memory = cluster("10.96.0.0/24");
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
    let memory = cluster("10.96.0.0/24");
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
            .ends_with("failed to allocate IP 1.2.3.4: the provided network does not match the current range")
    );
}

#[tokio::test]
async fn node_ports_are_unique_in_the_store() {
    let memory = cluster("10.96.0.0/24");
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
    let memory = cluster("10.96.0.0/24");
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
    let memory = cluster("10.96.0.0/24");
    let plugin = allocator(&memory);
    let mut kept = service(
        "kept",
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    create(&plugin, &memory, &mut kept).await.unwrap();
    let ip = text(&kept, "spec.clusterIP").to_owned();
    let port = kept["spec"]["ports"][0]["nodePort"].to_string();
    // A crash left these; somebody deleted the others. They are of the part of the range from which none is
    // given out unasked: the Service has another.
    let made = "2026-01-01T00:00:00Z";
    let claims = CLAIMS;
    let claim = |name: &str, created: &str| {
        json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {"vetch/service-uid": "gone"},
                "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io", "ipaddress.kubernetes.io/ip-family": "IPv4"}},
            "spec": {"parentRef": {"resource": "services", "namespace": "a", "name": "gone"}}})
    };
    let now = jiff::Timestamp::now().to_string();
    for (name, created) in [("10.96.0.7", made), ("10.96.0.8", now.as_str())] {
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
    let mut want = vec![ip.clone(), "10.96.0.8".to_owned()];
    want.sort();
    assert_eq!(names, want);
    let said = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
    assert_eq!(
        told(&memory).await,
        [
            said(
                "ClusterIPNotAllocated",
                &format!("Cluster IP [IPv4]: {ip} is not allocated; repairing")
            ),
            said(
                "IPAddressNotAllocated",
                "IPAddress: 10.96.0.7 for Service a/gone appears to have leaked: cleaning up"
            ),
        ]
    );
    let table = memory
        .get("configmaps", "kube-system", "service-node-ports")
        .await
        .unwrap();
    let ports: Vec<&String> = table["data"].as_object().unwrap().keys().collect();
    assert_eq!(ports, [&port]);
}

#[tokio::test]
async fn a_range_is_used_up_and_another_one_added() {
    let memory = cluster("10.96.0.0/28");
    let plugin = allocator(&memory);
    // 14, one of which is kept for the DNS.
    for index in 0..13 {
        let mut one = service(&format!("s{index}"), json!({"type": "ClusterIP"}));
        create(&plugin, &memory, &mut one).await.unwrap();
    }
    const FULL: &str = "Internal error occurred: failed to allocate a serviceIP: range is full";
    let mut late = service("late", json!({"type": "ClusterIP"}));
    for _ in 0..2 {
        let refused = create(&plugin, &memory, &mut late).await.unwrap_err();
        assert_eq!(refused, FULL);
    }
    let full = "Service CIDR 10.96.0.0/28 is full; you must widen the CIDR in order to create new services";
    assert_eq!(
        told(&memory).await,
        [("ServiceCIDRFull".to_owned(), full.to_owned())]
    );

    let mut going = range("more", "10.97.0.0/28");
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    memory.put(RANGES, going);
    assert_eq!(create(&plugin, &memory, &mut late).await.unwrap_err(), FULL);
    let mut asks = service(
        "asks",
        json!({"type": "ClusterIP", "clusterIP": "10.97.0.5"}),
    );
    let refused = create(&plugin, &memory, &mut asks).await.unwrap_err();
    assert!(
        refused.ends_with("the provided network does not match the current range"),
        "{refused}"
    );

    memory.put(RANGES, range("more", "10.97.0.0/28"));
    create(&plugin, &memory, &mut late).await.unwrap();
    assert!(
        text(&late, "spec.clusterIP").starts_with("10.97.0."),
        "{late}"
    );
    // The DNS has its own address, and gets it even if the range goes.
    let mut default = range(ranges::DEFAULT, "10.96.0.0/28");
    default["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    memory.put(RANGES, default);
    let mut dns = service(
        "kube-dns",
        json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}),
    );
    dns["metadata"]["namespace"] = "kube-system".into();
    create(&plugin, &memory, &mut dns).await.unwrap();
}

#[tokio::test]
async fn an_address_costs_the_same_beside_many() {
    use std::sync::atomic::Ordering;
    let memory = cluster("10.96.0.0/28");
    memory.put(RANGES, range("more", "10.97.0.0/16"));
    let plugin = allocator(&memory);
    let mut most = 0;
    for index in 0..3000 {
        let mut one = service(&format!("s{index}"), json!({"type": "ClusterIP"}));
        let before = memory.1.load(Ordering::Relaxed);
        create(&plugin, &memory, &mut one).await.unwrap();
        if index > 100 {
            most = most.max(memory.1.load(Ordering::Relaxed) - before);
        }
    }
    // The first range is full: each of its addresses that is tried is read, and no others.
    assert!(most < 60, "{most} objects were read for one address");
}

#[tokio::test]
async fn a_node_port_costs_the_same_beside_many() {
    use std::sync::atomic::Ordering;
    let memory = cluster("10.96.0.0/16");
    let config = ServiceConfig {
        node_ports: 30000..=30999,
        ..allocator(&memory).shared.config.clone()
    };
    let plugin = Allocator::new(memory.late(), config);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]});
    for index in 0..1000 {
        let mut one = service(&format!("plain{index}"), json!({"type": "ClusterIP"}));
        create(&plugin, &memory, &mut one).await.unwrap();
    }
    let mut costs = Vec::new();
    for index in 0..100 {
        let mut one = service(&format!("s{index}"), spec.clone());
        let before = memory.1.load(Ordering::Relaxed);
        create(&plugin, &memory, &mut one).await.unwrap();
        costs.push(memory.1.load(Ordering::Relaxed) - before);
    }
    // At first nobody knows whether the table has them all.
    assert!(costs[0] > 1000, "{costs:?}");
    assert!(costs[1..].iter().all(|cost| *cost < 20), "{costs:?}");
    // Somebody has taken the table away: the ports are still the Services'.
    let key = (
        "configmaps".into(),
        "kube-system".into(),
        "service-node-ports".into(),
    );
    memory.0.lock().unwrap().remove(&key);
    let mut ports = std::collections::HashSet::new();
    for index in 100..200 {
        let mut one = service(&format!("s{index}"), spec.clone());
        create(&plugin, &memory, &mut one).await.unwrap();
    }
    for one in memory.list("services", "").await {
        for port in ports::held(&one) {
            assert!(ports.insert(port), "{port} twice");
        }
    }
    assert_eq!(ports.len(), 200);
}

#[tokio::test]
async fn what_the_repair_tells() {
    let memory = cluster("10.96.0.0/24");
    let plugin = allocator(&memory);
    let with = |name: &str, ip: &str| {
        service(
            name,
            json!({"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}),
        )
    };
    for (name, ip) in [
        ("outside", "10.98.0.1"),
        ("first", "10.96.0.20"),
        ("second", "10.96.0.20"),
        ("robbed", "10.96.0.21"),
    ] {
        memory.put("services", with(name, ip));
    }
    let claim = |ip: &str, parent: Value, managed: bool| {
        let mut claim = json!({"metadata": {"name": ip, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"parentRef": parent}});
        if managed {
            claim["metadata"]["labels"] = json!({"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io", "ipaddress.kubernetes.io/ip-family": "IPv4"});
        }
        claim
    };
    let of =
        |name: &str| json!({"group": "", "resource": "services", "namespace": "a", "name": name});
    let gateway = json!({"group": "g.io", "resource": "gateways", "name": "x"});
    for claim in [
        claim("10.96.0.20", of("first"), true),
        claim("10.96.0.21", of("gone"), true),
        claim("10.96.0.30", of("first"), true),
        claim("10.96.0.31", gateway.clone(), true),
        // Somebody else's business.
        claim("10.96.0.32", gateway, false),
    ] {
        memory.put(CLAIMS, claim);
    }
    assert!(repair::pass(&plugin.shared, &*memory).await);
    let told = told(&memory).await;
    let said: Vec<(&str, &str)> = told
        .iter()
        .map(|(reason, message)| (&**reason, &**message))
        .collect();
    assert_eq!(
        said,
        [
            (
                "ClusterIPAlreadyAllocated",
                "Cluster IP [IPv4]:10.96.0.20 was assigned to multiple services; please recreate service"
            ),
            (
                "ClusterIPNotAllocated",
                "the ClusterIP [IPv4]: 10.96.0.21 for Service a/robbed has a wrong reference; repairing"
            ),
            (
                "ClusterIPOutOfRange",
                "Cluster IP [IPv4]: 10.98.0.1 is not within any configured Service CIDR; please recreate service"
            ),
            (
                "IPAddressNotAllocated",
                "IPAddress 10.96.0.31 appears to have been modified, not referencing a Service {\"group\":\"g.io\",\"name\":\"x\",\"resource\":\"gateways\"}: cleaning up"
            ),
            (
                "IPAddressWrongReference",
                "IPAddress: 10.96.0.30 for Service a/first has a wrong reference; cleaning up"
            ),
        ]
    );
    let claims = memory.list(CLAIMS, "").await;
    let names: Vec<&str> = claims
        .iter()
        .map(|claim| text(claim, "metadata.name"))
        .collect();
    assert_eq!(names, ["10.96.0.20", "10.96.0.21", "10.96.0.32"]);
    assert_eq!(text(&claims[1], "spec.parentRef.name"), "robbed");
    // Told again, the same events count.
    repair::pass(&plugin.shared, &*memory).await;
    let events = memory.list("events", "").await;
    let outside = events
        .iter()
        .find(|event| text(event, "reason") == "ClusterIPOutOfRange");
    assert_eq!(outside.unwrap()["count"], 2);
}
