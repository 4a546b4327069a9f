//! Services. Addresses and ports are given out by the admission plugin of the same name.

use serde_json::{Value, json};

use super::service_validate;
use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource, SpecialSubresource,
    Subresource::{Special, Status},
    kinds::{
        cells::{NONE, join, labels},
        row::{self, AGE, column, field, read, special, wide},
        twins::CLUSTER_IPS,
        value::{default_text, default_to, has, items, items_mut, number, set, text, texts},
    },
};

const PROXY: SpecialSubresource = special("proxy", row::PROXY, "", "v1", "ServiceProxyOptions");

pub const ROW: Resource = Resource {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Special(&PROXY), Status],
    columns: &[
        column("Type", |service| row::cell(service, "spec.type")),
        column("Cluster-IP", |service| {
            match text(service, "spec.clusterIP") {
                "" => NONE.into(),
                ip => ip.into(),
            }
        }),
        column("External-IP", |service| external(service).into()),
        column("Port(s)", |service| ports(service).into()),
        AGE,
        wide("Selector", |service| labels(service, "spec.selector")),
    ],
    fields: &[
        field("spec.clusterIP", |service| read(service, "spec.clusterIP")),
        field("spec.type", |service| read(service, "spec.type")),
    ],
    behaviour: Behaviour {
        default,
        prepare_create: |service| {
            set(service, "status", json!({"loadBalancer": {}}));
            CLUSTER_IPS.complete(service);
        },
        prepare_update: |new, old| CLUSTER_IPS.follow(new, old),
        validate: service_validate::validate,
        validate_update: service_validate::validate_update,
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "Service",
        "services",
        "service",
        "io.k8s.api.core.v1.Service",
    )
};

fn default(service: &mut Value) {
    default_text(service, "spec.type", "ClusterIP");
    default_text(service, "spec.sessionAffinity", "None");
    if text(service, "spec.sessionAffinity") == "ClientIP" {
        default_to(
            service,
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            10800,
        );
    } else if has(service, "spec.sessionAffinityConfig")
        && text(service, "spec.sessionAffinity") == "None"
    {
        super::super::value::remove(service, "spec.sessionAffinityConfig");
    }
    for port in items_mut(service, "spec.ports") {
        default_text(port, "protocol", "TCP");
        let target = &port["targetPort"];
        if target.is_null() || *target == 0 || *target == "" {
            let number = port["port"].clone();
            set(port, "targetPort", number);
        }
    }
    let kind = text(service, "spec.type").to_owned();
    let external = matches!(&*kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !items(service, "spec.externalIPs").is_empty());
    if external {
        default_text(service, "spec.externalTrafficPolicy", "Cluster");
    }
    if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        default_text(service, "spec.internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default_to(service, "spec.allocateLoadBalancerNodePorts", true);
    }
    default_to(service, "status.loadBalancer", json!({}));
}

fn external(service: &Value) -> String {
    let ips = texts(service, "spec.externalIPs").join(",");
    match text(service, "spec.type") {
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let given = join(
                items(service, "status.loadBalancer.ingress")
                    .iter()
                    .map(|ingress| {
                        match text(ingress, "ip") {
                            "" => text(ingress, "hostname"),
                            ip => ip,
                        }
                        .to_owned()
                    }),
            );
            match (given.is_empty(), ips.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (true, false) => ips,
                (false, true) => given,
                (false, false) => format!("{given},{ips}"),
            }
        }
        _ if ips.is_empty() => NONE.to_owned(),
        _ => ips,
    }
}

fn ports(service: &Value) -> String {
    let ports = items(service, "spec.ports");
    if ports.is_empty() {
        return NONE.to_owned();
    }
    join(ports.iter().map(|port| {
        let (number, protocol) = (
            self::number(port, "port").unwrap_or_default(),
            text(port, "protocol"),
        );
        match self::number(port, "nodePort") {
            Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_by_type() {
        let mut service = json!({"spec": {"ports": [{"port": 80}]}});
        default(&mut service);
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
        let mut service = json!({"spec": {"type": "LoadBalancer", "ports": []}});
        default(&mut service);
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(service["spec"]["allocateLoadBalancerNodePorts"], true);
        let mut service = json!({"spec": {"type": "ExternalName"}});
        default(&mut service);
        assert!(service["spec"].get("internalTrafficPolicy").is_none());
    }

    #[test]
    fn columns() {
        let service = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(ports(&service), "80:30080/TCP,53/UDP");
        assert_eq!(external(&service), "<none>");
        assert_eq!(
            external(&json!({"spec": {"type": "LoadBalancer"}})),
            "<pending>"
        );
    }
}
