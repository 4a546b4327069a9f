//! Many objects through the API.

use std::net::Ipv4Addr;

use futures::{StreamExt, stream};
use k8s_openapi::api::{
    core::v1::Service, discovery::v1::EndpointSlice, networking::v1::NetworkPolicy,
};
use kube::{Api, Client, api::PostParams};
use serde_json::json;

/// Requests under way.
const AT_ONCE: usize = 32;
/// The services' range of clusters that have many: their own is small below a root of a test.
pub const SERVICE_RANGE: &str = "--service-cidr=10.96.0.0/12";
/// Many objects take more than a cluster has by itself.
pub const STORE: &str = "--store-quota=2Gi";

/// The address of the Service `number`; the allocator gives others only by great chance.
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + u32::try_from(number).unwrap())
}

pub fn name(number: usize) -> String {
    format!("bench-{number}")
}

/// Services of these numbers, each with so many endpoints that nobody has.
pub async fn services(client: &Client, numbers: std::ops::Range<usize>, endpoints: usize) {
    each(numbers, async |number| {
        let there = (0..endpoints).map(|one| format!("10.200.{}.{}", number / 250 % 250, one + 1));
        slice(client, number, there.collect(), 8080).await;
        service(client, number).await;
    })
    .await;
}

/// One Service without a selector, with port 80.
pub async fn service(client: &Client, number: usize) {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = json!({"metadata": {"name": name(number)},
        "spec": {"clusterIP": address(number), "ports": [{"port": 80, "targetPort": 8080}]}});
    let service = serde_json::from_value(service).unwrap();
    services
        .create(&PostParams::default(), &service)
        .await
        .unwrap();
}

pub async fn slice(client: &Client, number: usize, addresses: Vec<String>, port: u16) {
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let endpoints = addresses
        .into_iter()
        .map(|address| json!({"addresses": [address]}));
    let slice = json!({"addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"port": port}],
        "metadata": {"name": name(number), "labels": {"kubernetes.io/service-name": name(number)}}});
    let slice = serde_json::from_value(slice).unwrap();
    slices.create(&PostParams::default(), &slice).await.unwrap();
}

/// Policies that all select the bench's pods. The first lets them reach each other, and each of the others
/// lets in a range from which nobody comes and that no other is next to.
pub async fn policies(client: &Client, count: usize) {
    let policies: Api<NetworkPolicy> = Api::default_namespaced(client.clone());
    each(0..count, async |number| {
        let from = match number {
            0 => json!({"podSelector": {}}),
            _ => json!({"ipBlock": {"cidr": format!("172.{}.{}.0/25", 16 + number / 250, number % 250)}}),
        };
        let policy = json!({"metadata": {"name": name(number)}, "spec": {
            "podSelector": {"matchLabels": {"bench": "pod"}}, "ingress": [{"from": [from]}]}});
        let policy = serde_json::from_value(policy).unwrap();
        policies.create(&PostParams::default(), &policy).await.unwrap();
    })
    .await;
}

async fn each(numbers: std::ops::Range<usize>, make: impl AsyncFn(usize)) {
    let make = &make;
    let all = stream::iter(numbers).map(|number| make(number));
    all.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
