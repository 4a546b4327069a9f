//! Endpoint slices.

use serde_json::Value;

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    kinds::{
        ips, names,
        row::{self, AGE, column},
        value::{at, default_text, default_to, items, items_mut, number, text, texts},
    },
};

const FAMILIES: [&str; 3] = ["IPv4", "IPv6", "FQDN"];
const MAX_ENDPOINTS: usize = 1000;

pub const ENDPOINTSLICE: Resource = Resource {
    columns: &[
        column("AddressType", |slice| row::cell(slice, "addressType")),
        column("Ports", |slice| ports(slice).into()),
        column("Endpoints", |slice| endpoints(slice).into()),
        AGE,
    ],
    behaviour: Behaviour {
        default: |slice| {
            for port in items_mut(slice, "ports") {
                default_to(port, "name", "");
                default_text(port, "protocol", "TCP");
            }
        },
        validate,
        validate_update: |new, old, causes| {
            if at(new, "addressType") != at(old, "addressType") {
                causes.invalid(
                    "addressType",
                    text(new, "addressType"),
                    "field is immutable",
                );
            }
        },
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
        "io.k8s.api.discovery.v1.EndpointSlice",
    )
};

fn validate(slice: &Value, causes: &mut Causes) {
    names::object_name(slice, names::dns_subdomain, causes);
    let family = text(slice, "addressType");
    if family.is_empty() {
        causes.required("addressType", "");
    } else if !FAMILIES.contains(&family) {
        causes.unsupported("addressType", family, &FAMILIES);
    }
    let endpoints = items(slice, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        causes.push(
            crate::apiserver::status::CauseType::FieldValueTooMany,
            "endpoints",
            format!(
                "Too many: {}: must have at most {MAX_ENDPOINTS} items",
                endpoints.len()
            ),
        );
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let addresses = texts(endpoint, "addresses");
        if addresses.is_empty() {
            causes.required(&path, "must contain at least 1 address");
        }
        for (at, address) in addresses.iter().enumerate() {
            let path = format!("{path}[{at}]");
            let ip = address.parse::<std::net::IpAddr>().ok();
            let fine = match family {
                "IPv4" => ip.is_some_and(|ip| ip.is_ipv4()),
                "IPv6" => ip.is_some_and(|ip| ip.is_ipv6()),
                "FQDN" => {
                    names::report(names::dns_subdomain(address), address, &path, causes);
                    address.contains('.') || ip.is_some()
                }
                _ => true,
            };
            if !fine && family == "FQDN" {
                let what = "should be a domain with at least two segments separated by dots";
                causes.invalid(path, address, what);
            } else if !fine {
                causes.invalid(path, address, &format!("must be an {family} address"));
            } else if let Some(ip) = ip {
                ips::not_special(ip, address, &path, causes);
            }
        }
    }
    for (index, port) in items(slice, "ports").iter().enumerate() {
        if !matches!(text(port, "protocol"), "TCP" | "UDP" | "SCTP") {
            causes.unsupported(
                format!("ports[{index}].protocol"),
                text(port, "protocol"),
                &["SCTP", "TCP", "UDP"],
            );
        }
    }
}

fn ports(slice: &Value) -> String {
    let ports = items(slice, "ports");
    let shown = ports.iter().take(3).map(|port| match number(port, "port") {
        Some(number) => number.to_string(),
        None => "*".to_owned(),
    });
    more(shown.collect(), ports.len(), "<unset>")
}

fn endpoints(slice: &Value) -> String {
    let all: Vec<&str> = items(slice, "endpoints")
        .iter()
        .flat_map(|endpoint| texts(endpoint, "addresses"))
        .collect();
    more(
        all.iter().take(3).map(|ip| (*ip).to_owned()).collect(),
        all.len(),
        "<unset>",
    )
}

fn more(shown: Vec<String>, total: usize, none: &str) -> String {
    match total.checked_sub(shown.len()) {
        _ if total == 0 => none.to_owned(),
        Some(rest) if rest > 0 => format!("{} + {rest} more...", shown.join(",")),
        _ => shown.join(","),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_a_slice_may_lead() {
        for (family, address, want) in [
            ("IPv4", "10.1.0.2", ""),
            ("IPv4", "127.0.0.1", "loopback"),
            ("IPv4", "::1", "must be an IPv4 address"),
            ("IPv6", "::ffff:127.0.0.1", "loopback"),
            ("IPv6", "fe80::1", "link-local"),
            ("FQDN", "db.example.com", ""),
            ("FQDN", "localhost", "at least two segments"),
            ("FQDN", "127.0.0.1", "loopback"),
            ("FQDN", "a.b/c", "RFC 1123"),
        ] {
            let slice = json!({"metadata": {"name": "s"}, "addressType": family,
                "endpoints": [{"addresses": [address]}]});
            let mut causes = Causes::default();
            validate(&slice, &mut causes);
            let said: Vec<&str> = causes.0.iter().map(|cause| &*cause.message).collect();
            assert_eq!(said.is_empty(), want.is_empty(), "{address}: {said:?}");
            assert!(said.join("").contains(want), "{address}: {said:?}");
        }
    }
}
