//! What a pod's /etc/hosts says. Pure.

use std::{fmt::Write, net::IpAddr};

use k8s_openapi::api::core::v1::Pod;

use crate::kubelet::container;

const OWN: &str = "# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";
const HOST: &str = "# Kubernetes-managed hosts file (host network).\n";

/// The pod's addresses and aliases; with the host's network the host's own file and the aliases.
pub fn content(pod: &Pod, addresses: &[IpAddr], host_file: Option<&str>, domain: &str) -> String {
    let mut text = match host_file {
        Some(host) => format!("{HOST}{host}"),
        None => OWN.to_owned(),
    };
    // Writing to a String cannot fail.
    if host_file.is_none() {
        let short = container::hostname(pod);
        for address in addresses {
            let _ = match container::fqdn(pod, domain) {
                Some(full) => writeln!(text, "{address}\t{full}\t{short}"),
                None => writeln!(text, "{address}\t{short}"),
            };
        }
    }
    let aliases = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_aliases.as_ref());
    if aliases.is_some_and(|aliases| !aliases.is_empty()) {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases.into_iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_and_aliases() {
        let pod = |spec: serde_json::Value| -> Pod {
            let meta = json!({"name": "web-0", "namespace": "shop"});
            serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
        };
        let addresses = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let plain = pod(json!({"containers": []}));
        assert_eq!(
            content(&plain, &addresses, None, "cluster.local"),
            format!("{OWN}10.0.0.7\tweb-0\nfd00::7\tweb-0\n")
        );
        let named = pod(json!({"containers": [], "subdomain": "db",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        assert_eq!(
            content(&named, &addresses[..1], None, "cluster.local"),
            format!(
                "{OWN}10.0.0.7\tweb-0.db.shop.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
            )
        );
        assert_eq!(
            content(&plain, &addresses, Some("1.1.1.1 one\n"), "cluster.local"),
            format!("{HOST}1.1.1.1 one\n")
        );
    }
}
