//! Which requests are approved without anybody's doing: those of kubelets for their client
//! certificate, if the requester may have one. Pure.

use std::time::Duration;

use k8s_openapi::{
    api::{
        authorization::v1::ResourceAttributes, certificates::v1::CertificateSigningRequest as Csr,
    },
    jiff::Timestamp,
};

use super::{
    Requested, certificate, has,
    signing::{KUBELET_CLIENT, kubelet_client},
    usages,
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
    csr.spec.signer_name == KUBELET_CLIENT
        && certificate(csr).is_none()
        && !has(csr, "Approved")
        && !has(csr, "Denied")
        && !has(csr, "Failed")
}

/// What it may be approved as, in the order of asking.
pub fn recognized(csr: &Csr, requested: &Requested) -> Vec<Recognized> {
    if !is_open(csr) || kubelet_client(requested, &usages(csr)).is_err() {
        return Vec::new();
    }
    match csr.spec.username.as_deref() == Some(&requested.common_name) {
        true => vec![Recognized::SelfNode, Recognized::Node],
        false => vec![Recognized::Node],
    }
}

/// The node that a request names.
pub fn node(requested: &Requested) -> &str {
    let name = requested.common_name.as_str();
    name.strip_prefix("system:node:").unwrap_or(name)
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
    if recognized(csr, requested).is_empty() {
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
