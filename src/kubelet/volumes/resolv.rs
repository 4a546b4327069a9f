//! What a pod's /etc/resolv.conf says. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

/// Limits of C libraries and of upstream; what is beyond is cut.
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;

/// A resolv.conf in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    /// `ndots:5`, `rotate`.
    pub options: Vec<String>,
}

/// The node's share in a pod's answers.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    pub servers: &'a [IpAddr],
    pub domain: &'a str,
}

impl Resolv {
    /// The last `search` counts, and every `options`.
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => parsed.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => {
                    // A dot alone is the root: nothing to add to a name.
                    parsed.searches = words
                        .map(|word| {
                            if word == "." {
                                word
                            } else {
                                word.trim_end_matches('.')
                            }
                        })
                        .filter(|word| *word != ".")
                        .map(str::to_owned)
                        .collect();
                }
                Some("options") => parsed.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        parsed
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }

    /// What the pod itself asks for, after and over what there is.
    fn merge(&mut self, config: &PodDNSConfig) {
        let add = |to: &mut Vec<String>, more: &Option<Vec<String>>| {
            for one in more.iter().flatten() {
                if !to.contains(one) {
                    to.push(one.clone());
                }
            }
        };
        add(&mut self.servers, &config.nameservers);
        add(&mut self.searches, &config.searches);
        for option in config.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let text = match option.value.as_deref() {
                None | Some("") => name.to_owned(),
                Some(value) => format!("{name}:{value}"),
            };
            let same = |one: &String| one.split(':').next() == Some(name);
            match self.options.iter_mut().find(|one| same(one)) {
                Some(old) => *old = text,
                None => self.options.push(text),
            }
        }
    }

    /// Cuts what is too much; true if anything was.
    fn cut(&mut self) -> bool {
        let before = (self.servers.len(), self.searches.len());
        self.servers.truncate(SERVERS_MAX);
        self.searches.truncate(SEARCHES_MAX);
        while self.searches.join(" ").len() > SEARCH_CHARACTERS_MAX {
            self.searches.pop();
        }
        before != (self.servers.len(), self.searches.len())
    }
}

/// The pod's resolver by its policy, and whether something had to be left out.
pub fn for_pod(pod: &Pod, host: Resolv, cluster: Cluster<'_>) -> (Resolv, bool) {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    let policy = spec
        .and_then(|spec| spec.dns_policy.as_deref())
        .unwrap_or("ClusterFirst");
    let mut resolv = match policy {
        "None" => Resolv::default(),
        "ClusterFirst" if host_network => host,
        "ClusterFirst" | "ClusterFirstWithHostNet" if !cluster.servers.is_empty() => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let domain = cluster.domain;
            let mut searches = vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.into(),
            ];
            for search in host.searches {
                if !searches.contains(&search) {
                    searches.push(search);
                }
            }
            Resolv {
                servers: cluster.servers.iter().map(IpAddr::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => host,
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        resolv.merge(config);
    }
    let cut = resolv.cut();
    (resolv, cut)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies() {
        const HOST: &str = "# c\nsearch old\nsearch corp.example. .\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\noptions rotate\n";
        const CLUSTER: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n";
        const NODE: &str =
            "search corp.example\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\noptions rotate\n";
        for (spec, want) in [
            (json!({}), CLUSTER),
            (json!({"hostNetwork": true}), NODE),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                CLUSTER,
            ),
            (json!({"dnsPolicy": "Default"}), NODE),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
            ),
            (
                json!({"dnsConfig": {"nameservers": ["1.1.1.1", "10.96.0.10", "2.2.2.2", "3.3.3.3"],
                    "searches": ["cluster.local"], "options": [{"name": "ndots", "value": "1"}]}}),
                "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions ndots:1\n",
            ),
        ] {
            let mut whole = spec.clone();
            whole["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": whole}),
            )
            .unwrap();
            let cluster = Cluster {
                servers: &["10.96.0.10".parse().unwrap()],
                domain: "cluster.local",
            };
            let (resolv, cut) = for_pod(&pod, Resolv::parse(HOST), cluster);
            assert_eq!(resolv.text(), want, "{spec}");
            assert_eq!(cut, want.contains("2.2.2.2"), "{spec}");
        }
    }
}
