//! Ingresses, network policies, addresses and service ranges.

mod addresses;
mod policy;

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::{label_selector, text_or_none},
        names,
        row::{self, AGE, column},
        value::{at, default_text, default_to, has, items, set, text, texts},
    },
};

const GROUP: &str = "networking.k8s.io";

pub const INGRESS: Resource = Resource {
    short_names: &["ing"],
    subresources: &[Status],
    columns: &[
        column("Class", |ingress| {
            text_or_none(ingress, "spec.ingressClassName")
        }),
        column("Hosts", |ingress| hosts(ingress).into()),
        column("Address", |ingress| {
            let addresses = items(ingress, "status.loadBalancer.ingress").iter();
            let shown: Vec<&str> = addresses
                .map(|address| match text(address, "ip") {
                    "" => text(address, "hostname"),
                    ip => ip,
                })
                .collect();
            shown.join(",").into()
        }),
        column("Ports", |ingress| {
            match items(ingress, "spec.tls").is_empty() {
                true => "80".into(),
                false => "80, 443".into(),
            }
        }),
        AGE,
    ],
    behaviour: Behaviour {
        default: |ingress| default_to(ingress, "status.loadBalancer", json!({})),
        prepare_create: |ingress| set(ingress, "status", json!({"loadBalancer": {}})),
        validate: ingress,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        GROUP,
        "v1",
        "Ingress",
        "ingresses",
        "ingress",
        "io.k8s.api.networking.v1.Ingress",
    )
};

pub const INGRESSCLASS: Resource = Resource {
    columns: &[
        column("Controller", |class| row::cell(class, "spec.controller")),
        column("Parameters", |class| match at(class, "spec.parameters") {
            None => "<none>".into(),
            Some(parameters) => {
                let kind = match text(parameters, "apiGroup") {
                    "" => text(parameters, "kind").to_owned(),
                    group => format!("{}.{group}", text(parameters, "kind")),
                };
                format!("{kind}/{}", text(parameters, "name")).into()
            }
        }),
        AGE,
    ],
    behaviour: Behaviour {
        default: |class| {
            if has(class, "spec.parameters") {
                default_text(class, "spec.parameters.scope", "Cluster");
            }
        },
        validate: |class, causes| {
            names::object_name(class, names::dns_subdomain, causes);
            if text(class, "spec.controller").is_empty() {
                causes.required("spec.controller", "");
            }
        },
        validate_update: |new, old, causes| {
            if at(new, "spec.controller") != at(old, "spec.controller") {
                causes.invalid(
                    "spec.controller",
                    text(new, "spec.controller"),
                    "field is immutable",
                );
            }
        },
        generation: true,
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "IngressClass",
        "ingressclasses",
        "ingressclass",
        "io.k8s.api.networking.v1.IngressClass",
    )
};

pub const NETWORKPOLICY: Resource = Resource {
    short_names: &["netpol"],
    columns: &[
        column("Pod-Selector", |policy| {
            label_selector(policy, "spec.podSelector")
        }),
        AGE,
    ],
    behaviour: Behaviour {
        default: policy::default,
        validate: policy::validate,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        GROUP,
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
        "io.k8s.api.networking.v1.NetworkPolicy",
    )
};

pub const IPADDRESS: Resource = Resource {
    short_names: &["ip"],
    columns: &[
        column("ParentRef", |address| {
            let parent = &address["spec"]["parentRef"];
            let parts = [
                text(parent, "resource"),
                text(parent, "group"),
                text(parent, "namespace"),
                text(parent, "name"),
            ];
            let (resource, rest) = ((parts[0], parts[1]), &parts[2..]);
            let resource = if resource.1.is_empty() {
                resource.0.to_owned()
            } else {
                format!("{}.{}", resource.0, resource.1)
            };
            let rest: Vec<&str> = rest
                .iter()
                .copied()
                .filter(|part| !part.is_empty())
                .collect();
            format!("{resource}/{}", rest.join("/")).into()
        }),
        AGE,
    ],
    behaviour: Behaviour {
        validate: addresses::address,
        validate_update: |new, old, causes| {
            if at(new, "spec.parentRef") != at(old, "spec.parentRef") {
                causes.invalid(
                    "spec.parentRef",
                    at(new, "spec.parentRef"),
                    "field is immutable",
                );
            }
        },
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "IPAddress",
        "ipaddresses",
        "ipaddress",
        "io.k8s.api.networking.v1.IPAddress",
    )
};

pub const SERVICECIDR: Resource = Resource {
    subresources: &[Status],
    columns: &[
        column("CIDRs", |range| texts(range, "spec.cidrs").join(",").into()),
        AGE,
    ],
    behaviour: Behaviour {
        prepare_create: |range| set(range, "status", json!({})),
        validate: addresses::range,
        validate_update: addresses::range_update,
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "ServiceCIDR",
        "servicecidrs",
        "servicecidr",
        "io.k8s.api.networking.v1.ServiceCIDR",
    )
};

fn hosts(ingress: &Value) -> String {
    let hosts: Vec<&str> = items(ingress, "spec.rules")
        .iter()
        .map(|rule| text(rule, "host"))
        .filter(|host| !host.is_empty())
        .collect();
    match hosts.len() {
        0 => "*".to_owned(),
        count if count > 3 => format!("{} + {} more...", hosts[..3].join(","), count - 3),
        _ => hosts.join(","),
    }
}

fn ingress(ingress: &Value, causes: &mut Causes) {
    names::object_name(ingress, names::dns_subdomain, causes);
    if items(ingress, "spec.rules").is_empty() && !has(ingress, "spec.defaultBackend") {
        causes.invalid(
            "spec",
            &ingress["spec"],
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if let Some(backend) = at(ingress, "spec.defaultBackend") {
        self::backend(backend, "spec.defaultBackend", causes);
    }
    for (index, rule) in items(ingress, "spec.rules").iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        let host = text(rule, "host");
        if !host.is_empty() {
            let bare = host.strip_prefix("*.").unwrap_or(host);
            names::report(
                names::dns_subdomain(bare),
                host,
                &format!("{path}.host"),
                causes,
            );
        }
        for (at, entry) in items(rule, "http.paths").iter().enumerate() {
            let path = format!("{path}.http.paths[{at}]");
            match text(entry, "pathType") {
                "Exact" | "Prefix" => {
                    if !text(entry, "path").starts_with('/') {
                        causes.invalid(
                            format!("{path}.path"),
                            text(entry, "path"),
                            "must be an absolute path",
                        );
                    }
                }
                "ImplementationSpecific" => {}
                "" => causes.required(format!("{path}.pathType"), "pathType must be specified"),
                other => causes.unsupported(
                    format!("{path}.pathType"),
                    other,
                    &["Exact", "ImplementationSpecific", "Prefix"],
                ),
            }
            backend(&entry["backend"], &format!("{path}.backend"), causes);
        }
    }
}

fn backend(backend: &Value, path: &str, causes: &mut Causes) {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => causes.invalid(path, "", "cannot set both resource and service backends"),
        (false, false) => causes.invalid(path, "", "resource or service backend is required"),
        (true, false) => {
            if text(backend, "service.name").is_empty() {
                causes.required(format!("{path}.service.name"), "");
            }
            let port = &backend["service"]["port"];
            if text(port, "name").is_empty() && port["number"].as_i64().unwrap_or_default() == 0 {
                causes.required(
                    format!("{path}.service.port"),
                    "port name or number is required",
                );
            }
        }
        (false, true) => {}
    }
}
