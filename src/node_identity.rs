//! To which node a certificate belongs, and the record of nodes that were taken out of the cluster for good. Pure.
//!
//! Known to the API server, which refuses the certificates of removed nodes, to the controllers that approve
//! certificates, to machines that join, and to the command line that removes nodes.
//! Always true: of a node in the record no certificate counts that was issued before its removal, and each does
//! that was issued after the second of it.

use std::{collections::BTreeMap, time::SystemTime};

use jiff::{SignedDuration, Timestamp};

/// The group of nodes' own certificates.
pub const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
/// The user that the service proxies of all nodes are.
pub const PROXY: &str = "system:kube-proxy";
/// The group that says of which node a service proxy is.
const PROXY_OF: &str = "vetch.io:proxy-of:";

/// The namespace of the ConfigMap with the record.
pub const NAMESPACE: &str = "kube-system";
/// Its name. Each removed node is a key of it; the value is the time of its removal.
pub const RECORD: &str = "removed-nodes";
/// What the cause of a refusal is called.
pub const REMOVED: &str = "NodeRemoved";

/// The annotation of a certificate request that has the requester's last certificate, as PEM: it has expired, and the
/// request is made with its key.
pub const FORMER: &str = "vetch.io/former-certificate";

/// No certificate lives longer: what is older need not be recorded.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(24 * 400);

/// The user that a node is.
pub fn user(node: &str) -> String {
    format!("{NODE}{node}")
}

/// The group that the service proxy of `node` is in.
pub fn proxy_group(node: &str) -> String {
    format!("{PROXY_OF}{node}")
}

/// The node whose certificate says these.
pub fn node_of<'a>(user: &'a str, groups: &'a [String]) -> Option<&'a str> {
    if user == PROXY {
        return groups.iter().find_map(|group| group.strip_prefix(PROXY_OF));
    }
    let is_node = groups.iter().any(|group| group == NODES);
    user.strip_prefix(NODE).filter(|_| is_node)
}

/// Whether a certificate issued then is one from before the removal that `entry` tells of. An entry that
/// cannot be read stands for all times.
pub fn is_from_before(entry: &str, issued: SystemTime) -> bool {
    match entry.parse::<Timestamp>() {
        Ok(removed) => issued <= SystemTime::from(removed),
        Err(_) => true,
    }
}

/// The record with `node` removed now, and without what is too old to matter.
pub fn with_removed(
    mut record: BTreeMap<String, String>,
    node: &str,
    now: Timestamp,
) -> BTreeMap<String, String> {
    record.retain(|_, entry| {
        let removed = entry.parse::<Timestamp>();
        removed.map_or(true, |removed| now.duration_since(removed) < KEPT_FOR)
    });
    record.insert(node.to_owned(), now.to_string());
    record
}

/// What a machine is told whose node was removed.
pub fn refusal(node: &str) -> String {
    format!(
        "the node {node} was removed from the cluster: to make this machine a node again, run `vetch reset` and \
         then `vetch agent` with a new token"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn whose_a_certificate_is() {
        for (user, groups, want) in [
            ("system:node:n", &["system:nodes"][..], Some("n")),
            ("system:node:n", &[], None),
            ("jane", &["system:nodes"], None),
            ("system:kube-proxy", &["vetch.io:proxy-of:n"], Some("n")),
            ("system:kube-proxy", &["system:nodes"], None),
            ("jane", &["vetch.io:proxy-of:n"], None),
        ] {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            assert_eq!(node_of(user, &groups), want, "{user} {groups:?}");
        }
        let own = [proxy_group("a.b")];
        assert_eq!(node_of(PROXY, &own), Some("a.b"));
        assert_eq!(node_of(&user("a.b"), &[NODES.to_owned()]), Some("a.b"));
    }

    #[test]
    fn what_is_from_before() {
        let removed = "2030-01-01T00:00:10.7Z";
        let at = |seconds| {
            let ten = "2030-01-01T00:00:10Z".parse::<Timestamp>().expect("a time");
            SystemTime::from(ten) + Duration::from_secs(seconds)
        };
        for (entry, issued, want) in [
            // Certificates tell whole seconds.
            (removed, at(0), true),
            (removed, at(1), false),
            (removed, at(0) - Duration::from_secs(86_400), true),
            ("yes", at(1_000_000), true),
            ("", at(0), true),
        ] {
            assert_eq!(is_from_before(entry, issued), want, "{entry} {issued:?}");
        }
    }

    #[test]
    fn what_is_recorded() {
        let now = "2030-01-01T00:00:00Z".parse::<Timestamp>().expect("a time");
        let before = [
            ("old", "2028-01-01T00:00:00Z"),
            ("recent", "2029-06-01T00:00:00Z"),
            ("again", "2029-06-01T00:00:00Z"),
            ("unreadable", "x"),
        ];
        let before = before.map(|(node, time)| (node.to_owned(), time.to_owned()));
        let record = with_removed(before.into(), "again", now);
        let got: Vec<_> = record
            .iter()
            .map(|(node, time)| (&**node, &**time))
            .collect();
        assert_eq!(
            got,
            [
                ("again", "2030-01-01T00:00:00Z"),
                ("recent", "2029-06-01T00:00:00Z"),
                ("unreadable", "x"),
            ]
        );
    }
}
