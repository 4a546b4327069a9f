//! Where `pods/NAME/proxy`, `services/NAME/proxy` and `nodes/NAME/proxy` lead.

use std::net::SocketAddr;

use rand::Rng;
use serde_json::Value;

use super::{
    Location, Transport, kubelet, not_reached,
    reach::{Reach, resolve},
};
use crate::apiserver::{
    objects::Lookup,
    registry::Resource,
    server::ApiServer,
    status::{Reason, Status},
};

/// The label by which slices say whose they are.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `[scheme:]name[:port]`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name<'a> {
    tls: Option<bool>,
    name: &'a str,
    /// A number or a port's name; empty for none.
    port: &'a str,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self, Status> {
        let bad = || Status::bad_request(format!("invalid proxy target {text:?}"));
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return Err(bad()),
        };
        let tls = match scheme {
            "" => None,
            "http" => Some(false),
            "https" => Some(true),
            _ => return Err(bad()),
        };
        match name.is_empty() {
            true => Err(bad()),
            false => Ok(Self { tls, name, port }),
        }
    }

    fn workload(&self) -> Transport {
        match self.tls {
            Some(true) => Transport::Workload,
            _ => Transport::Plain,
        }
    }
}

/// What is to be proxied to.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub row: &'static Resource,
    pub namespace: &'a str,
    pub name: &'a str,
    pub rest: &'a str,
    pub query: &'a str,
}

pub(super) async fn locate(server: &ApiServer, wanted: Target<'_>) -> Result<Location, Status> {
    let name = Name::parse(wanted.name)?;
    let namespace = wanted.namespace;
    let (host, port, transport) = match wanted.row.plural {
        "pods" => {
            let pod = server.read(wanted.row, namespace, name.name).await?;
            let (host, port) = pod_address(&pod.value(), name.port)?;
            (host, port, name.workload())
        }
        "services" => {
            let service = server.read(wanted.row, namespace, name.name).await?;
            let slices = server
                .list("endpointslices.discovery.k8s.io", namespace)
                .await;
            let service = service.value();
            let port = service_port(&service, name.port)?;
            let slices = slices.iter().map(|slice| &**slice);
            let (host, port) = any_of(ready_endpoints(slices, name.name, port), name.name)?;
            (host, port, name.workload())
        }
        _ => {
            let (host, kubelet_port) = kubelet::kubelet(server, name.name).await?;
            match name.port {
                "" => (host, kubelet_port, Transport::Kubelet),
                port => match number(port)? {
                    port if port == kubelet_port => (host, port, Transport::Kubelet),
                    port => (host, port, name.workload()),
                },
            }
        }
    };
    Ok(Location {
        host,
        port,
        transport,
        path: format!("/{}", encode_path(wanted.rest)),
        query: wanted.query.to_owned(),
    })
}

/// Something ready behind a service's port, for the server's own calls: an address that may be
/// connected to.
pub async fn service_address(
    lookup: &dyn Lookup,
    namespace: &str,
    name: &str,
    port: i64,
) -> Result<SocketAddr, Status> {
    let service = lookup.get("services", namespace, name).await;
    let service = service.ok_or_else(|| Status::not_found("", "services", name))?;
    let (host, port) = if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default();
        (host.to_owned(), number(&port.to_string())?)
    } else {
        let port = service_port(&service, &port.to_string())?;
        let slices = lookup
            .list("endpointslices.discovery.k8s.io", namespace)
            .await;
        let slices = slices.iter().map(|slice| &**slice);
        any_of(ready_endpoints(slices, name, port), name)?
    };
    let found = resolve(&host, port, Reach::Workload).await;
    let found = found.map_err(|error| not_reached(&error))?;
    let first = found.first().copied();
    first.ok_or_else(|| Status::bad_request("address not allowed"))
}

/// One of the endpoints, by chance.
fn any_of(mut ready: Vec<(String, u16)>, service: &str) -> Result<(String, u16), Status> {
    if ready.is_empty() {
        let what = format!("no endpoints available for service {service:?}");
        return Err(Status::new(Reason::ServiceUnavailable, what));
    }
    Ok(ready.swap_remove(rand::rng().random_range(0..ready.len())))
}

fn number(port: &str) -> Result<u16, Status> {
    port.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Status::bad_request(format!("{port:?} is not a port")))
}

fn pod_address(pod: &Value, asked: &str) -> Result<(String, u16), Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let host = pod["status"]["podIP"]
        .as_str()
        .filter(|ip| !ip.is_empty())
        .ok_or_else(|| Status::bad_request(format!("pod {name} does not have an address")))?;
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = || containers().flat_map(|one| one["ports"].as_array().into_iter().flatten());
    let declared = |port: &Value| {
        port["containerPort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
    };
    let port = match asked {
        "" => ports().find_map(declared).unwrap_or(80),
        asked => match ports()
            .find(|port| port["name"] == asked)
            .and_then(declared)
        {
            Some(port) => port,
            None => number(asked)?,
        },
    };
    Ok((host.to_owned(), port))
}

/// The name of the service's port; empty where the only one has none.
fn service_port<'a>(service: &'a Value, asked: &str) -> Result<&'a str, Status> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let ports = service["spec"]["ports"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let found = match (asked, ports) {
        ("", [only]) => Some(only),
        ("", _) => ports
            .iter()
            .find(|port| port["name"].as_str().unwrap_or_default().is_empty()),
        (asked, _) => ports.iter().find(|port| {
            port["name"] == asked
                || asked
                    .parse::<u64>()
                    .is_ok_and(|number| port["port"] == number)
        }),
    };
    match found {
        Some(port) => Ok(port["name"].as_str().unwrap_or_default()),
        None => Err(Status::new(
            Reason::ServiceUnavailable,
            format!("no service port {asked:?} found for service {name:?}"),
        )),
    }
}

/// Addresses that take traffic for that port. Pure.
fn ready_endpoints<'a>(
    slices: impl Iterator<Item = &'a Value>,
    service: &str,
    port: &str,
) -> Vec<(String, u16)> {
    let list = |value: &'a Value| value.as_array().into_iter().flatten();
    let mut found = Vec::new();
    for slice in slices.filter(|slice| slice["metadata"]["labels"][SERVICE_NAME] == service) {
        let number = list(&slice["ports"])
            .find(|one| one["name"].as_str().unwrap_or_default() == port)
            .and_then(|one| u16::try_from(one["port"].as_u64()?).ok());
        let Some(number) = number else { continue };
        for endpoint in list(&slice["endpoints"]) {
            // Unknown counts as ready.
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let addresses = list(&endpoint["addresses"]).filter_map(Value::as_str);
            found.extend(addresses.map(|address| (address.to_owned(), number)));
        }
    }
    found
}

/// Percent-encodes what may not stand in one segment of a path.
pub(super) fn encode_segment(segment: &str) -> String {
    segment
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ if b"-._~!$&'()*+,;=:@".contains(&byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// As [`encode_segment`], for a whole path.
pub fn encode_path(path: &str) -> String {
    let segments: Vec<String> = path.split('/').map(encode_segment).collect();
    segments.join("/")
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::Forward;
    use super::*;
    use crate::apiserver::{
        query::Query,
        registry::{PLAIN, Resource, Scope},
        response::full,
    };

    /// A row with nothing but a name.
    pub fn row(plural: &'static str) -> &'static Resource {
        Box::leak(Box::new(Resource {
            group: "",
            version: "v1",
            kind: "Pod",
            plural,
            singular: "",
            short_names: &[],
            categories: &[],
            scope: Scope::Namespaced,
            verbs: &[],
            subresources: &[],
            type_name: "",
            storage: plural,
            columns: &[],
            fields: &[],
            behaviour: PLAIN,
            convert: None,
            custom: None,
        }))
    }

    pub fn forward(
        plural: &'static str,
        namespace: &str,
        name: &str,
        subresource: &str,
        rest: &str,
    ) -> Forward {
        Forward {
            row: row(plural),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
            path: String::new(),
            rest: rest.to_owned(),
            method: http::Method::GET,
            headers: http::HeaderMap::new(),
            options: Query::default(),
            query: String::new(),
            body: full(""),
            upgrade: None,
        }
    }

    #[test]
    fn names_taken_apart() {
        for (text, want) in [
            ("web", Some((None, "web", ""))),
            ("web:80", Some((None, "web", "80"))),
            ("https:web:api", Some((Some(true), "web", "api"))),
            ("http:web:", Some((Some(false), "web", ""))),
            ("ftp:web:1", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            let got = Name::parse(text).ok();
            assert_eq!(
                got,
                want.map(|(tls, name, port)| Name { tls, name, port }),
                "{text}"
            );
        }
    }

    #[test]
    fn pods_and_their_ports() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": "10.1.0.2"},
        });
        for (asked, want) in [
            ("", Some(8080)),
            ("web", Some(8080)),
            ("9000", Some(9000)),
            ("x", None),
        ] {
            assert_eq!(
                pod_address(&pod, asked).ok().map(|(_, port)| port),
                want,
                "{asked}"
            );
        }
        assert!(pod_address(&json!({}), "").is_err());
    }

    #[test]
    fn services_lead_to_ready_endpoints() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "http", "port": 80}, {"name": "api", "port": 81}]}});
        assert_eq!(service_port(&service, "80").unwrap(), "http");
        assert_eq!(service_port(&service, "api").unwrap(), "api");
        assert!(service_port(&service, "").is_err());
        let slice = json!({
            "metadata": {"labels": {(SERVICE_NAME): "s"}},
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.1.0.2"], "conditions": {"ready": true}},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.1.0.4"]},
            ],
        });
        let found = ready_endpoints([&slice].into_iter(), "s", "http");
        assert_eq!(
            found,
            [("10.1.0.2".to_owned(), 8080), ("10.1.0.4".to_owned(), 8080)]
        );
        assert!(ready_endpoints([&slice].into_iter(), "t", "http").is_empty());
    }

    #[test]
    fn paths_are_encoded_again() {
        assert_eq!(encode_path("a b/c%/d"), "a%20b/c%25/d");
    }
}
