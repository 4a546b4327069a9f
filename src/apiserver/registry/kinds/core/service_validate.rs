//! Rules of Services.

use std::net::IpAddr;

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        ips, names,
        pods::probes::port as int_or_name,
        value::{at, has, items, number, text, texts},
    },
};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub fn validate(service: &Value, causes: &mut Causes) {
    names::object_name(service, names::dns_label, causes);
    let kind = text(service, "spec.type");
    if !TYPES.contains(&kind) {
        causes.unsupported("spec.type", kind, &TYPES);
    }
    names::labels(at(service, "spec.selector"), "spec.selector", causes);
    let headless = text(service, "spec.clusterIP") == "None";
    let ports = items(service, "spec.ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        causes.required("spec.ports", "");
    }
    match kind {
        "ExternalName" => {
            let name = text(service, "spec.externalName").trim_end_matches('.');
            if name.is_empty() {
                causes.required("spec.externalName", "");
            } else {
                names::report(
                    names::dns_subdomain(name),
                    name,
                    "spec.externalName",
                    causes,
                );
            }
            for field in ["clusterIP", "clusterIPs"] {
                let given = text(service, "spec.clusterIP");
                if field == "clusterIP" && !given.is_empty() {
                    causes.forbidden(
                        "spec.clusterIPs[0]",
                        "may not be set for ExternalName services",
                    );
                }
            }
        }
        "LoadBalancer" | "NodePort" if headless => {
            causes.invalid(
                "spec.clusterIPs[0]",
                "None",
                &format!("may not be set to 'None' for {kind} services"),
            );
        }
        _ => {}
    }
    addresses(service, causes);
    let mut seen_names = Vec::new();
    let mut seen_ports = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        one_port(
            port,
            index,
            ports.len() > 1,
            &mut seen_names,
            &mut seen_ports,
            causes,
        );
        if number(port, "nodePort").is_some_and(|port| port > 0) && kind == "ClusterIP" {
            causes.forbidden(
                format!("spec.ports[{index}].nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            );
        }
    }
    for (field, known) in [
        ("sessionAffinity", &["ClientIP", "None"][..]),
        ("externalTrafficPolicy", &["Cluster", "Local"][..]),
        ("internalTrafficPolicy", &["Cluster", "Local"][..]),
        (
            "trafficDistribution",
            &["PreferClose", "PreferSameNode", "PreferSameZone"],
        ),
        (
            "ipFamilyPolicy",
            &["PreferDualStack", "RequireDualStack", "SingleStack"][..],
        ),
    ] {
        let given = text(&service["spec"], field);
        if !given.is_empty() && !known.contains(&given) {
            causes.unsupported(format!("spec.{field}"), given, known);
        }
    }
    if let Some(seconds) = number(
        service,
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    )
    .filter(|seconds| !(1..=86400).contains(seconds))
    {
        causes.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            "must be between 1 and 86400, inclusive",
        );
    }
    for (index, ip) in texts(service, "spec.externalIPs").iter().enumerate() {
        ips::endpoint(ip, &format!("spec.externalIPs[{index}]"), causes);
    }
    source_ranges(service, kind, causes);
    balancer_class(service, kind, causes);
}

fn balancer_class(service: &Value, kind: &str, causes: &mut Causes) {
    const FIELD: &str = "spec.loadBalancerClass";
    let Some(class) = at(service, FIELD).and_then(Value::as_str) else {
        return;
    };
    match kind {
        "LoadBalancer" => names::report(names::qualified_name(class), class, FIELD, causes),
        _ => causes.forbidden(FIELD, "may only be used when `type` is 'LoadBalancer'"),
    }
}

/// Blanks around a range are allowed, as they always were.
fn source_ranges(service: &Value, kind: &str, causes: &mut Causes) {
    const FIELD: &str = "spec.loadBalancerSourceRanges";
    let ranges = texts(service, FIELD);
    if !ranges.is_empty() && kind != "LoadBalancer" {
        causes.forbidden(FIELD, "may only be used when `type` is 'LoadBalancer'");
    }
    for (index, range) in ranges.iter().enumerate() {
        if range.trim().parse::<ipnet::IpNet>().is_err() {
            causes.invalid(
                format!("{FIELD}[{index}]"),
                range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
}

/// What a load balancer's controller may write into the status.
fn balancer(service: &Value, causes: &mut Causes) {
    const FIELD: &str = "status.loadBalancer.ingress";
    let ingress = items(service, FIELD);
    if !ingress.is_empty() && text(service, "spec.type") != "LoadBalancer" {
        causes.forbidden(
            FIELD,
            "may only be used when `spec.type` is \"LoadBalancer\"",
        );
        return;
    }
    for (index, entry) in ingress.iter().enumerate() {
        let path = |name: &str| format!("{FIELD}[{index}].{name}");
        let (ip, mode, host) = (
            text(entry, "ip"),
            text(entry, "ipMode"),
            text(entry, "hostname"),
        );
        match (ip.is_empty(), mode) {
            (true, "") => {}
            (true, _) => {
                causes.forbidden(path("ipMode"), "may not be specified when `ip` is not set")
            }
            (false, _) => {
                ips::endpoint(ip, &path("ip"), causes);
                if !mode.is_empty() && !["Proxy", "VIP"].contains(&mode) {
                    causes.unsupported(path("ipMode"), mode, &["Proxy", "VIP"]);
                }
            }
        }
        if !host.is_empty() {
            names::report(names::dns_subdomain(host), host, &path("hostname"), causes);
            if host.parse::<IpAddr>().is_ok() {
                causes.invalid(
                    path("hostname"),
                    host,
                    "must be a DNS name, not an IP address",
                );
            }
        }
    }
}

fn addresses(service: &Value, causes: &mut Causes) {
    let ips = texts(service, "spec.clusterIPs");
    let first = text(service, "spec.clusterIP");
    if let Some(given) = ips.first()
        && *given != first
    {
        causes.invalid(
            "spec.clusterIPs",
            &ips,
            "first value must match `clusterIP`",
        );
    }
    for (index, ip) in ips.iter().enumerate() {
        let fine = ip.is_empty() || *ip == "None" || ip.parse::<IpAddr>().is_ok();
        if !fine {
            causes.invalid(
                format!("spec.clusterIPs[{index}]"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
    if ips.is_empty() && !first.is_empty() && first != "None" && first.parse::<IpAddr>().is_err() {
        causes.invalid(
            "spec.clusterIP",
            first,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
}

fn one_port<'a>(
    port: &'a Value,
    index: usize,
    names_needed: bool,
    seen_names: &mut Vec<&'a str>,
    seen_ports: &mut Vec<(i64, &'a str)>,
    causes: &mut Causes,
) {
    let path = format!("spec.ports[{index}]");
    let name = text(port, "name");
    if name.is_empty() {
        if names_needed {
            causes.required(format!("{path}.name"), "");
        }
    } else {
        names::report(
            names::dns_label(name),
            name,
            &format!("{path}.name"),
            causes,
        );
        if seen_names.contains(&name) {
            causes.duplicate(format!("{path}.name"), name);
        }
        seen_names.push(name);
    }
    let value = number(port, "port").unwrap_or_default();
    names::port(value, &format!("{path}.port"), causes);
    let protocol = text(port, "protocol");
    match protocol {
        "TCP" | "UDP" | "SCTP" => {}
        "" => causes.required(format!("{path}.protocol"), ""),
        other => causes.unsupported(format!("{path}.protocol"), other, &["SCTP", "TCP", "UDP"]),
    }
    if seen_ports.contains(&(value, protocol)) {
        causes.push(
            crate::apiserver::status::CauseType::FieldValueDuplicate,
            &path,
            format!("Duplicate value: {{\"port\":{value},\"protocol\":{protocol:?}}}"),
        );
    }
    seen_ports.push((value, protocol));
    if has(port, "targetPort") {
        int_or_name(&port["targetPort"], &format!("{path}.targetPort"), causes);
    }
}

/// Addresses stay with a Service for as long as it has a type that uses them.
pub fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    if at(new, "status.loadBalancer") != at(old, "status.loadBalancer") {
        balancer(new, causes);
    }
    // Whose load balancer it is: the one that gave it addresses must hear of its end.
    let class = "spec.loadBalancerClass";
    let is_balanced = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    if is_balanced(new) && is_balanced(old) && at(new, class) != at(old, class) {
        causes.invalid(class, at(new, class), "may not change once set");
    }
    let uses_addresses = |service: &Value| text(service, "spec.type") != "ExternalName";
    if !uses_addresses(new) || !uses_addresses(old) {
        return;
    }
    let before = text(old, "spec.clusterIP");
    if !before.is_empty() && text(new, "spec.clusterIP") != before {
        causes.invalid(
            "spec.clusterIPs[0]",
            at(new, "spec.clusterIPs"),
            "may not change once set",
        );
    }
    // A second one may go, but not become another.
    let ips = |service| texts(service, "spec.clusterIPs");
    if let (Some(second), Some(now)) = (ips(old).get(1), ips(new).get(1))
        && second != now
    {
        causes.invalid(
            "spec.clusterIPs[1]",
            at(new, "spec.clusterIPs"),
            "may not change once set",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refusals() {
        for (spec, field, message) in [
            (json!({"type": "ClusterIP"}), "spec.ports", "Required value"),
            (
                json!({"type": "Web", "ports": [{"port": 1, "protocol": "TCP"}]}),
                "spec.type",
                "Unsupported value: \"Web\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                json!({"type": "ClusterIP", "ports": [{"port": 0, "protocol": "TCP"}]}),
                "spec.ports[0].port",
                "Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"type": "ClusterIP", "ports": [{"port": 1, "protocol": "TCP", "name": "a"}, {"port": 2, "protocol": "TCP"}]}),
                "spec.ports[1].name",
                "Required value",
            ),
            (
                json!({"type": "ClusterIP", "ports": [{"port": 1, "protocol": "TCP", "nodePort": 30000}]}),
                "spec.ports[0].nodePort",
                "Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"type": "ClusterIP", "externalIPs": ["127.0.0.1"], "ports": [{"port": 1, "protocol": "TCP"}]}),
                "spec.externalIPs[0]",
                "Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                json!({"type": "ClusterIP", "loadBalancerSourceRanges": ["10.0.0.0/8"], "ports": [{"port": 1, "protocol": "TCP"}]}),
                "spec.loadBalancerSourceRanges",
                "Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"], "ports": [{"port": 1, "protocol": "TCP"}]}),
                "spec.loadBalancerSourceRanges[0]",
                "Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
            (
                json!({"type": "NodePort", "loadBalancerClass": "a.b/c", "ports": [{"port": 1, "protocol": "TCP"}]}),
                "spec.loadBalancerClass",
                "Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"type": "ExternalName"}),
                "spec.externalName",
                "Required value",
            ),
        ] {
            let service = json!({"metadata": {"name": "s"}, "spec": spec});
            let mut causes = Causes::default();
            validate(&service, &mut causes);
            let got: Vec<_> = causes
                .0
                .iter()
                .map(|cause| (&*cause.field, &*cause.message))
                .collect();
            assert_eq!(got, [(field, message)], "{service}");
        }
    }

    #[test]
    fn what_a_balancer_may_say() {
        for (kind, ingress, want) in [
            (
                "LoadBalancer",
                json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]),
                None,
            ),
            (
                "LoadBalancer",
                json!([{"hostname": "lb.example.org"}]),
                None,
            ),
            (
                "ClusterIP",
                json!([{"ip": "192.0.2.1"}]),
                Some("status.loadBalancer.ingress"),
            ),
            (
                "LoadBalancer",
                json!([{"ip": "127.0.0.1"}]),
                Some("status.loadBalancer.ingress[0].ip"),
            ),
            (
                "LoadBalancer",
                json!([{"hostname": "a.b", "ipMode": "VIP"}]),
                Some("status.loadBalancer.ingress[0].ipMode"),
            ),
            (
                "LoadBalancer",
                json!([{"hostname": "10.0.0.1"}]),
                Some("status.loadBalancer.ingress[0].hostname"),
            ),
        ] {
            let old = json!({"spec": {"type": kind}});
            let new = json!({"spec": {"type": kind},
                "status": {"loadBalancer": {"ingress": ingress}}});
            let mut causes = Causes::default();
            validate_update(&new, &old, &mut causes);
            let got = causes.0.first().map(|cause| cause.field.as_str());
            assert_eq!(got, want, "{new}");
        }
    }

    #[test]
    fn a_balancer_keeps_its_class() {
        for (before, after, kind, want) in [
            (Some("a.b/c"), Some("a.b/c"), "LoadBalancer", None),
            (None, None, "LoadBalancer", None),
            (
                None,
                Some("a.b/c"),
                "LoadBalancer",
                Some("spec.loadBalancerClass"),
            ),
            (
                Some("a.b/c"),
                None,
                "LoadBalancer",
                Some("spec.loadBalancerClass"),
            ),
            // Another type has none.
            (Some("a.b/c"), None, "ClusterIP", None),
        ] {
            let service = |kind, class: Option<&str>| {
                let mut service = json!({"spec": {"type": kind}});
                if let Some(class) = class {
                    service["spec"]["loadBalancerClass"] = class.into();
                }
                service
            };
            let (new, old) = (service(kind, after), service("LoadBalancer", before));
            let mut causes = Causes::default();
            validate_update(&new, &old, &mut causes);
            let got = causes.0.first().map(|cause| cause.field.as_str());
            assert_eq!(got, want, "{old} {new}");
        }
    }

    #[test]
    fn cluster_ip_is_kept() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1"}});
        for (new, fine) in [
            (
                json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1"}}),
                true,
            ),
            (
                json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.2"}}),
                false,
            ),
            (json!({"spec": {"type": "ExternalName"}}), true),
        ] {
            let mut causes = Causes::default();
            validate_update(&new, &old, &mut causes);
            assert_eq!(causes.0.is_empty(), fine, "{new}");
        }
    }
}
