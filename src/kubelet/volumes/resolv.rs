//! What a pod's /etc/resolv.conf says. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

/// Limits of C libraries and of upstream; what is beyond is left out.
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;
/// Resolvers end their process over a longer one.
const SEARCH_MAX: usize = 253;

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
            for one in std::mem::take(to).iter().chain(more.iter().flatten()) {
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

    /// Leaves out what is too much, and says so for each kind.
    fn fit(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        if self.servers.len() > SERVERS_MAX {
            self.servers.truncate(SERVERS_MAX);
            said.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied \
                 nameserver line is: {}",
                self.servers.join(" ")
            ));
        }
        let before = self.searches.len();
        self.searches.truncate(SEARCHES_MAX);
        self.searches.retain(|search| search.len() <= SEARCH_MAX);
        while self.searches.join(" ").len() > SEARCH_CHARACTERS_MAX {
            self.searches.pop();
        }
        if self.searches.len() < before {
            said.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied \
                 search line is: {}",
                self.searches.join(" ")
            ));
        }
        said
    }
}

/// The pod's resolver by its policy, and what had to be left out, for events.
pub fn for_pod(pod: &Pod, host: Resolv, cluster: Cluster<'_>) -> (Resolv, Vec<String>) {
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
    let left_out = resolv.fit();
    (resolv, left_out)
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
            let (resolv, left_out) = for_pod(&pod, Resolv::parse(HOST), cluster);
            assert_eq!(resolv.text(), want, "{spec}");
            assert_eq!(
                left_out.len(),
                usize::from(want.contains("2.2.2.2")),
                "{spec}"
            );
        }
    }

    #[test]
    fn what_is_too_much_is_left_out_and_said() {
        const SERVERS: &str = "Nameserver limits were exceeded, some nameservers have been omitted, \
                               the applied nameserver line is: ";
        const SEARCHES: &str = "Search Line limits were exceeded, some search paths have been \
                                omitted, the applied search line is: ";
        let paths = |count: usize, length: usize| -> Vec<String> {
            (0..count).map(|n| format!("{n:0>length$}")).collect()
        };
        let servers = ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"];
        let of_cluster = "n.svc.cluster.local svc.cluster.local cluster.local";
        for (policy, count, searches, want) in [
            ("Default", 3, paths(32, 3), vec![]),
            (
                "Default",
                4,
                vec![],
                vec![format!("{SERVERS}1.1.1.1 2.2.2.2 3.3.3.3")],
            ),
            (
                "Default",
                3,
                paths(33, 3),
                vec![format!("{SEARCHES}{}", paths(32, 3).join(" "))],
            ),
            // 32 of 63 are 2047 characters with the blanks between them, 32 of 64 are 2079.
            ("Default", 3, paths(32, 63), vec![]),
            (
                "Default",
                3,
                paths(32, 64),
                vec![format!("{SEARCHES}{}", paths(31, 64).join(" "))],
            ),
            // One alone that no resolver takes.
            (
                "Default",
                3,
                [paths(1, 3), paths(1, 254), paths(1, 4)].concat(),
                vec![format!("{SEARCHES}000 0000")],
            ),
            (
                "Default",
                4,
                paths(33, 3),
                vec![
                    format!("{SERVERS}1.1.1.1 2.2.2.2 3.3.3.3"),
                    format!("{SEARCHES}{}", paths(32, 3).join(" ")),
                ],
            ),
            // The cluster's own come first, and the host's servers do not count.
            ("ClusterFirst", 4, paths(29, 3), vec![]),
            (
                "ClusterFirst",
                4,
                paths(30, 3),
                vec![format!("{SEARCHES}{of_cluster} {}", paths(29, 3).join(" "))],
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n"},
                "spec": {"containers": [], "dnsPolicy": policy},
            }))
            .unwrap();
            let host = Resolv {
                servers: servers
                    .iter()
                    .take(count)
                    .copied()
                    .map(str::to_owned)
                    .collect(),
                searches: searches.clone(),
                options: Vec::new(),
            };
            let cluster = Cluster {
                servers: &["10.96.0.10".parse().unwrap()],
                domain: "cluster.local",
            };
            let (resolv, left_out) = for_pod(&pod, host, cluster);
            assert_eq!(left_out, want, "{policy} {count} {searches:?}");
            let applied = resolv.searches.join(" ");
            for said in left_out
                .iter()
                .filter_map(|said| said.strip_prefix(SEARCHES))
            {
                assert_eq!(said, applied);
            }
        }
    }
}
