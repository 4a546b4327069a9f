//! Which requests are approved without anybody's doing: those of kubelets for their client
//! certificate, if the requester may have one, and for the one that their own API shows, if it is for
//! addresses of that node alone. Pure.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        authorization::v1::ResourceAttributes, certificates::v1::CertificateSigningRequest as Csr,
        core::v1::Node,
    },
    jiff::Timestamp,
};

use super::{
    Former, Requested, certificate, has,
    signing::{
        API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, api_client_usages, kubelet_client,
        kubelet_serving,
    },
    usages,
};
use crate::{
    addresses::may_be_proxied_to,
    node_identity::{NODES, PROXY, is_from_before, node_of, proxy_group},
};

/// A right that is missing may be given later. It is asked for as long after as it was missing,
/// between these.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(5 * 60);

/// What a request is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognized {
    /// A node renews its own certificate.
    SelfNode,
    /// Somebody asks for a node's first.
    Node,
}

impl Recognized {
    /// The right that its requester must have.
    pub fn right(self) -> ResourceAttributes {
        let subresource = match self {
            Self::SelfNode => "selfnodeclient",
            Self::Node => "nodeclient",
        };
        ResourceAttributes {
            verb: Some("create".to_owned()),
            group: Some("certificates.k8s.io".to_owned()),
            version: Some("*".to_owned()),
            resource: Some("certificatesigningrequests".to_owned()),
            subresource: Some(subresource.to_owned()),
            ..ResourceAttributes::default()
        }
    }

    pub fn message(self) -> &'static str {
        match self {
            Self::SelfNode => {
                "Auto approving self kubelet client certificate after SubjectAccessReview."
            }
            Self::Node => "Auto approving kubelet client certificate after SubjectAccessReview.",
        }
    }
}

/// Whether nobody has decided over it, and it is for the signer whose requests are approved here.
pub fn is_open(csr: &Csr) -> bool {
    let signer = csr.spec.signer_name.as_str();
    ([KUBELET_CLIENT, KUBELET_SERVING].contains(&signer) || signer == API_CLIENT && is_of_node(csr))
        && certificate(csr).is_none()
        && !has(csr, "Approved")
        && !has(csr, "Denied")
        && !has(csr, "Failed")
}

/// What it may be approved as, in the order of asking.
pub fn recognized(csr: &Csr, requested: &Requested) -> Vec<Recognized> {
    let is_client = csr.spec.signer_name == KUBELET_CLIENT;
    if !is_open(csr) || !is_client || kubelet_client(requested, &usages(csr)).is_err() {
        return Vec::new();
    }
    match csr.spec.username.as_deref() == Some(&requested.common_name) {
        true => vec![Recognized::SelfNode, Recognized::Node],
        false => vec![Recognized::Node],
    }
}

fn is_of_node(csr: &Csr) -> bool {
    let groups = csr.spec.groups.iter().flatten();
    groups.into_iter().any(|group| group == NODES)
}

/// Whether a node asks for the certificate that its service proxy is known by: on every node the same user, in a
/// group that tells the node.
pub fn is_proxy(csr: &Csr, requested: &Requested) -> bool {
    let (user, groups) = (csr.spec.username.as_deref(), csr.spec.groups.as_deref());
    let node = node_of(user.unwrap_or_default(), groups.unwrap_or_default());
    let wanted = node.map(|node| Requested {
        common_name: PROXY.to_owned(),
        organizations: vec![proxy_group(node)],
        ..Requested::default()
    });
    is_open(csr)
        && csr.spec.signer_name == API_CLIENT
        && wanted.is_some_and(|wanted| *requested == wanted)
        && api_client_usages(&usages(csr)).is_ok()
}

/// Whether a node asks for the certificate that its own API shows.
pub fn is_serving(csr: &Csr, requested: &Requested) -> bool {
    is_open(csr)
        && csr.spec.signer_name == KUBELET_SERVING
        && csr.spec.username.as_deref() == Some(&requested.common_name)
        && kubelet_serving(requested, &usages(csr)).is_ok()
}

/// Whether all that the certificate is for is the node's, and no other node says so of itself. `ranges`: of
/// pods and services. A node says itself what its addresses are: none of these may be what pods take for the
/// API server.
pub fn may_serve(requested: &Requested, nodes: &[Node], ranges: &[IpNet]) -> bool {
    let name = node(requested);
    let is_machines = |address: &IpAddr| {
        may_be_proxied_to(*address) && !ranges.iter().any(|range| range.contains(address))
    };
    if !requested.addresses.iter().all(is_machines)
        || !requested.names.iter().all(|own| own == name)
    {
        return false;
    }
    let reserved = name
        .split('.')
        .any(|part| matches!(part, "kubernetes" | "localhost" | "svc"));
    if reserved && !requested.names.is_empty() {
        return false;
    }
    let (own, others): (Vec<&Node>, Vec<&Node>) = nodes
        .iter()
        .partition(|node| node.metadata.name.as_deref() == Some(name));
    let has = |node: &&Node, wanted: &str| {
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_deref());
        let mut addresses = addresses.unwrap_or_default().iter();
        addresses.any(|one| one.address == wanted)
    };
    let is_its = |wanted: &str| {
        own.iter().any(|node| has(node, wanted)) && !others.iter().any(|node| has(node, wanted))
    };
    let addresses = requested.addresses.iter().map(IpAddr::to_string);
    addresses
        .chain(requested.names.iter().cloned())
        .all(|wanted| is_its(&wanted))
}

/// The node that a request names.
pub fn node(requested: &Requested) -> &str {
    let name = requested.common_name.as_str();
    name.strip_prefix("system:node:").unwrap_or(name)
}

/// Whether a machine that had the certificate `former` gets another one for the same node. `removed`: the record of
/// nodes that were removed for good.
pub fn is_same(former: &Former, requested: &Requested, removed: &BTreeMap<String, String>) -> bool {
    let name = node(requested);
    let entry = removed.get(name);
    node_of(&former.user, &former.groups) == Some(name)
        && former.user == requested.common_name
        && !entry.is_some_and(|entry| is_from_before(entry, former.issued))
}

/// Why another machine does not get the name of a node.
pub fn taken(requested: &Requested) -> String {
    let node = node(requested);
    format!(
        "there is a node {node} already, and only it renews its certificate: give this machine another \
         name, or let it take the place of that one by `kubectl delete node {node}`"
    )
}

/// When to ask again about a request whose requester had no right to it.
pub fn ask_again(
    csr: &Csr,
    requested: &Requested,
    created: Option<Timestamp>,
    now: Timestamp,
) -> Option<Duration> {
    if recognized(csr, requested).is_empty() && !is_serving(csr, requested) {
        return None;
    }
    let age = created.and_then(|created| now.duration_since(created).try_into().ok());
    let age: Duration = age.unwrap_or_default();
    Some(age.clamp(SOONEST, LATEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::certificates::testing::{csr, node};

    #[test]
    fn whose_requests_are_recognized() {
        let both = [Recognized::SelfNode, Recognized::Node];
        for (username, change, want) in [
            ("system:node:n", None, &both[..]),
            ("system:bootstrap:abc", None, &both[1..]),
            // A node that asks for another's.
            ("system:node:m", None, &both[1..]),
            ("system:node:n", Some("signer"), &[]),
            ("system:node:n", Some("usages"), &[]),
            ("system:node:n", Some("Denied"), &[]),
            ("system:node:n", Some("Approved"), &[]),
        ] {
            let mut request = csr(KUBELET_CLIENT, &[], false);
            match change {
                Some("signer") => request.spec.signer_name = "kubernetes.io/kubelet-serving".into(),
                Some("usages") => request.spec.usages = Some(vec!["server auth".into()]),
                Some(condition) => request = csr(KUBELET_CLIENT, &[condition], false),
                None => {}
            }
            request.spec.username = Some(username.to_owned());
            assert_eq!(
                recognized(&request, &node("n")),
                want,
                "{username} {change:?}"
            );
        }
    }

    #[test]
    fn who_was_the_node_is_it_again() {
        use std::time::{Duration, SystemTime, UNIX_EPOCH};
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let former = |user: &str, group: &str, issued: SystemTime| Former {
            user: user.to_owned(),
            groups: vec![group.to_owned()],
            issued,
        };
        let removed = BTreeMap::from([("gone".to_owned(), "1970-01-01T00:16:40Z".to_owned())]);
        for (former, name, want) in [
            (former("system:node:n", "system:nodes", at(0)), "n", true),
            (former("system:node:m", "system:nodes", at(0)), "n", false),
            (former("system:node:n", "people", at(0)), "n", false),
            (
                former("system:kube-proxy", "vetch.io:proxy-of:n", at(0)),
                "n",
                false,
            ),
            (
                former("system:node:gone", "system:nodes", at(999)),
                "gone",
                false,
            ),
            (
                former("system:node:gone", "system:nodes", at(1001)),
                "gone",
                true,
            ),
        ] {
            assert_eq!(is_same(&former, &node(name), &removed), want, "{former:?}");
        }
    }

    #[test]
    fn a_nodes_proxy_and_nobody_else_is_the_proxy() {
        let in_groups = |groups: &[&str]| Requested {
            common_name: PROXY.to_owned(),
            organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Requested::default()
        };
        let own = "vetch.io:proxy-of:n";
        let proxy = in_groups(&[own]);
        let master = in_groups(&["system:masters"]);
        let also_master = in_groups(&[own, "system:masters"]);
        // Nobody knows whose it is.
        let nobodys = in_groups(&[]);
        let anothers = in_groups(&["vetch.io:proxy-of:m"]);
        let other = Requested {
            common_name: "system:kube-scheduler".to_owned(),
            ..Requested::default()
        };
        for (requested, group, signer, want) in [
            (&proxy, "system:nodes", API_CLIENT, true),
            (&proxy, "system:bootstrappers", API_CLIENT, false),
            (&proxy, "system:nodes", KUBELET_CLIENT, false),
            (&master, "system:nodes", API_CLIENT, false),
            (&also_master, "system:nodes", API_CLIENT, false),
            (&nobodys, "system:nodes", API_CLIENT, false),
            (&anothers, "system:nodes", API_CLIENT, false),
            (&other, "system:nodes", API_CLIENT, false),
        ] {
            let mut request = csr(signer, &[], false);
            request.spec.username = Some("system:node:n".to_owned());
            request.spec.groups = Some(vec![group.to_owned()]);
            assert_eq!(is_proxy(&request, requested), want, "{requested:?} {group}");
            assert!(recognized(&request, requested).is_empty());
        }
    }

    #[test]
    fn what_a_kubelet_may_show() {
        let has = |name: &str, addresses: &[&str]| -> Node {
            let addresses: Vec<_> = addresses
                .iter()
                .map(|one| serde_json::json!({"type": "InternalIP", "address": one}))
                .collect();
            let node = serde_json::json!({"metadata": {"name": name},
                "status": {"addresses": addresses}});
            serde_json::from_value(node).expect("a node")
        };
        let nodes = [
            has("n", &["192.0.2.1", "n", "192.0.2.9"]),
            has("m", &["192.0.2.2", "m", "192.0.2.9"]),
            has("empty", &[]),
            has(
                "kubernetes.default.svc",
                &["192.0.2.5", "kubernetes.default.svc", "10.96.0.1"],
            ),
            has("loop", &["127.0.0.1", "loop"]),
        ];
        let ranges: Vec<IpNet> = ["10.42.0.0/16", "10.96.0.0/12"]
            .map(|range| range.parse().expect("a range"))
            .into();
        for (name, addresses, names, want) in [
            ("n", &["192.0.2.1"][..], &["n"][..], true),
            ("n", &["192.0.2.1", "192.0.2.3"], &["n"], false),
            ("n", &["192.0.2.2"], &["n"], false),
            ("n", &["192.0.2.1"], &["m"], false),
            ("n", &["192.0.2.1"], &["kubernetes.default"], false),
            // Another one says the same of itself.
            ("n", &["192.0.2.9"], &[], false),
            ("empty", &["192.0.2.1"], &[], false),
            ("gone", &["192.0.2.1"], &[], false),
            // What pods know the API server by.
            ("kubernetes.default.svc", &["10.96.0.1"], &[], false),
            (
                "kubernetes.default.svc",
                &["192.0.2.5"],
                &["kubernetes.default.svc"],
                false,
            ),
            ("kubernetes.default.svc", &["192.0.2.5"], &[], true),
            ("loop", &["127.0.0.1"], &["loop"], false),
        ] {
            let mut wanted = node(name);
            wanted.addresses = addresses
                .iter()
                .map(|one| one.parse().expect("one"))
                .collect();
            wanted.names = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(
                may_serve(&wanted, &nodes, &ranges),
                want,
                "{name} {addresses:?} {names:?}"
            );
            let mut request = csr(KUBELET_SERVING, &[], false);
            request.spec.usages = Some(vec!["server auth".into(), "digital signature".into()]);
            for (user, is_own) in [
                (format!("system:node:{name}"), true),
                ("jane".into(), false),
            ] {
                request.spec.username = Some(user);
                assert_eq!(is_serving(&request, &wanted), is_own);
                assert!(recognized(&request, &wanted).is_empty());
            }
        }
    }

    #[test]
    fn a_missing_right_is_asked_for_less_and_less() {
        let at = |seconds| Timestamp::from_second(1_000_000 + i64::from(seconds)).expect("a time");
        let open = csr(KUBELET_CLIENT, &[], false);
        for (now, want) in [(0, 1), (-50, 1), (7, 7), (100_000, 300)] {
            let got = ask_again(&open, &node("n"), Some(at(0)), at(now));
            assert_eq!(got, Some(Duration::from_secs(want)), "{now}");
        }
        let other = csr("example.com/own", &[], false);
        assert_eq!(ask_again(&other, &node("n"), Some(at(0)), at(9)), None);
    }
}
