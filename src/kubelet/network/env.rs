//! Environment variables by which containers find Services without DNS. Pure.
//!
//! Called by the kubelet when a container starts; the container's own `env` wins over these.

use std::{borrow::Borrow, collections::BTreeMap};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

/// Whether a pod wants variables of the Services of its namespace (`enableServiceLinks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Namespace,
    /// Only the API server's own.
    ApiServer,
}

/// Variables of the Services with a cluster address in `namespace`, and of `default/kubernetes`.
/// A Service of the pod's own namespace goes before that one, if both have the same name.
pub fn service_env<S: Borrow<Service>>(
    services: impl IntoIterator<Item = S>,
    namespace: &str,
    links: Links,
) -> BTreeMap<String, String> {
    let (mut common, mut own) = (BTreeMap::new(), BTreeMap::new());
    for service in services {
        let service = service.borrow();
        let (name, place) = (service.name_any(), service.namespace().unwrap_or_default());
        if place == namespace && links == Links::Namespace {
            add(&mut own, &name, service);
        } else if place == "default" && name == "kubernetes" {
            add(&mut common, &name, service);
        }
    }
    common.extend(own);
    common
}

fn add(env: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let address = match spec.cluster_ip.as_deref() {
        None | Some("" | "None") => return,
        Some(address) => address,
    };
    let host = match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    };
    let prefix = upper(name);
    let mut put = |key: String, value: String| env.insert(key, value);
    let ports = spec.ports.as_deref().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let number = port.port;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{number}", protocol.to_lowercase());
        if index == 0 {
            put(format!("{prefix}_SERVICE_HOST"), address.into());
            put(format!("{prefix}_SERVICE_PORT"), number.to_string());
            put(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(label) = port.name.as_deref().filter(|label| !label.is_empty()) {
            let key = format!("{prefix}_SERVICE_PORT_{}", upper(label));
            put(key, number.to_string());
        }
        let link = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        put(format!("{link}_PROTO"), protocol.to_lowercase());
        put(format!("{link}_PORT"), number.to_string());
        put(format!("{link}_ADDR"), address.into());
        put(link, url);
    }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str, address: &str) -> Service {
        let ports = json!([
            {"name": "http-alt", "port": 80},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ]);
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": address, "ports": ports},
        }))
        .expect("a service")
    }

    #[test]
    fn both_forms() {
        let services = [service("shop", "my-db", "10.96.0.9")];
        let env = service_env(&services, "shop", Links::Namespace);
        let shown: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let want = [
            "MY_DB_PORT=tcp://10.96.0.9:80",
            "MY_DB_PORT_53_UDP=udp://10.96.0.9:53",
            "MY_DB_PORT_53_UDP_ADDR=10.96.0.9",
            "MY_DB_PORT_53_UDP_PORT=53",
            "MY_DB_PORT_53_UDP_PROTO=udp",
            "MY_DB_PORT_80_TCP=tcp://10.96.0.9:80",
            "MY_DB_PORT_80_TCP_ADDR=10.96.0.9",
            "MY_DB_PORT_80_TCP_PORT=80",
            "MY_DB_PORT_80_TCP_PROTO=tcp",
            "MY_DB_SERVICE_HOST=10.96.0.9",
            "MY_DB_SERVICE_PORT=80",
            "MY_DB_SERVICE_PORT_DNS=53",
            "MY_DB_SERVICE_PORT_HTTP_ALT=80",
        ];
        assert_eq!(shown, want);
    }

    #[test]
    fn which_services_count() {
        let services = [
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "other", "10.96.0.2"),
            service("shop", "web", "fd00::1"),
            service("shop", "headless", "None"),
        ];
        let hosts = |namespace, links| -> Vec<String> {
            let env = service_env(&services, namespace, links);
            let keys = env.into_keys();
            keys.filter_map(|key| Some(key.strip_suffix("_SERVICE_HOST")?.to_owned()))
                .collect()
        };
        assert_eq!(hosts("shop", Links::Namespace), ["KUBERNETES", "WEB"]);
        assert_eq!(hosts("shop", Links::ApiServer), ["KUBERNETES"]);
        assert_eq!(hosts("default", Links::Namespace), ["KUBERNETES", "OTHER"]);
        let env = service_env(&services, "shop", Links::Namespace);
        assert_eq!(env["WEB_PORT"], "tcp://[fd00::1]:80");
    }
}
