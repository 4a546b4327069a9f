//! What the built-in signers sign. Pure.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;

use super::{Requested, certificate, has};

/// A certificate for which no other life is asked, and the longest that one may have.
const LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Twice what certificates are dated back.
const SHORTEST: Duration = Duration::from_secs(10 * 60);

pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// Whose certificates we issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    ApiClient,
    KubeletClient,
    KubeletServing,
    Legacy,
}

impl Signer {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            API_CLIENT => Self::ApiClient,
            KUBELET_CLIENT => Self::KubeletClient,
            KUBELET_SERVING => Self::KubeletServing,
            "kubernetes.io/legacy-unknown" => Self::Legacy,
            _ => return None,
        })
    }
}

/// Whether a request is to be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    No,
    Wanted(Signer),
}

/// Only what is approved, has not failed, is not signed yet, and is for a signer of ours.
pub fn wanted(csr: &Csr) -> Signing {
    let open = has(csr, "Approved")
        && !has(csr, "Denied")
        && !has(csr, "Failed")
        && certificate(csr).is_none();
    match Signer::of(&csr.spec.signer_name) {
        Some(signer) if open => Signing::Wanted(signer),
        _ => Signing::No,
    }
}

/// Whether the signer signs that, or in its words why not.
pub fn check(signer: Signer, requested: &Requested, usages: &[&str]) -> Result<(), String> {
    match signer {
        Signer::ApiClient => api_client_usages(usages),
        Signer::KubeletClient => kubelet_client(requested, usages),
        Signer::KubeletServing => kubelet_serving(requested, usages),
        // Whoever approves it has looked at it.
        Signer::Legacy => Ok(()),
    }
}

pub fn api_client_usages(usages: &[&str]) -> Result<(), String> {
    let fits = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !fits.contains(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    match usages.contains(&"client auth") {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".to_owned()),
    }
}

pub fn kubelet_client(requested: &Requested, usages: &[&str]) -> Result<(), String> {
    of_nodes(requested)?;
    for (count, what) in [
        (requested.names.len(), "DNS"),
        (requested.emails, "Email"),
        (requested.addresses.len(), "IP"),
        (requested.uris, "URI"),
    ] {
        no_names(count, what)?;
    }
    of_a_node(requested)?;
    usages_are(usages, "client auth")
}

pub fn kubelet_serving(requested: &Requested, usages: &[&str]) -> Result<(), String> {
    of_nodes(requested)?;
    if requested.names.is_empty() && requested.addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    no_names(requested.emails, "Email")?;
    no_names(requested.uris, "URI")?;
    usages_are(usages, "server auth")?;
    of_a_node(requested)
}

fn of_nodes(requested: &Requested) -> Result<(), String> {
    match requested.organizations == ["system:nodes"] {
        true => Ok(()),
        false => Err("subject organization is not system:nodes".to_owned()),
    }
}

fn of_a_node(requested: &Requested) -> Result<(), String> {
    match requested.common_name.starts_with("system:node:") {
        true => Ok(()),
        false => Err("subject common name does not begin with system:node:".to_owned()),
    }
}

fn no_names(count: usize, what: &str) -> Result<(), String> {
    match count {
        0 => Ok(()),
        _ => Err(format!("{what} subjectAltNames are not allowed")),
    }
}

/// Keys that are not RSA encipher nothing.
fn usages_are(usages: &[&str], main: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().copied().collect();
    let with_rsa = BTreeSet::from([main, "digital signature", "key encipherment"]);
    let without = BTreeSet::from([main, "digital signature"]);
    if given == with_rsa || given == without {
        return Ok(());
    }
    let all: Vec<&str> = with_rsa.into_iter().collect();
    Err(format!("usages did not match [{}]", all.join(" ")))
}

/// How long a certificate lives of which so many seconds are asked.
pub fn life(asked: Option<i32>) -> Duration {
    let asked = asked.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    asked.map_or(LIFE, |asked| asked.clamp(SHORTEST, LIFE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::certificates::testing::{csr, node};

    #[test]
    fn what_is_signed() {
        for (conditions, signer, issued, want) in [
            (&["Approved"][..], KUBELET_CLIENT, false, true),
            (&[], KUBELET_CLIENT, false, false),
            (&["Approved"], "example.com/own", false, false),
            (&["Approved"], "kubernetes.io/other", false, false),
            (&["Approved", "Failed"], KUBELET_CLIENT, false, false),
            (&["Approved", "Denied"], KUBELET_CLIENT, false, false),
            (&["Denied"], KUBELET_CLIENT, false, false),
            (&["Approved"], KUBELET_CLIENT, true, false),
        ] {
            let csr = csr(signer, conditions, issued);
            let got = wanted(&csr) != Signing::No;
            assert_eq!(got, want, "{conditions:?} {signer} {issued}");
        }
    }

    #[test]
    fn what_each_signer_signs() {
        let client = ["client auth", "digital signature", "key encipherment"];
        let serving = ["server auth", "digital signature"];
        let with = |change: fn(&mut Requested)| {
            let mut requested = node("n");
            change(&mut requested);
            requested
        };
        let named = |requested: &mut Requested| requested.names = vec!["n".to_owned()];
        for (signer, requested, usages, want) in [
            (Signer::ApiClient, Requested::default(), &client[..], ""),
            (
                Signer::ApiClient,
                Requested::default(),
                &["client auth"],
                "",
            ),
            (
                Signer::ApiClient,
                Requested::default(),
                &["digital signature"],
                "missing required usage for client certificate: client auth",
            ),
            (
                Signer::ApiClient,
                Requested::default(),
                &["client auth", "server auth"],
                "invalid usage for client certificate: server auth",
            ),
            (
                Signer::ApiClient,
                Requested::default(),
                &["client auth", "cert sign"],
                "invalid usage for client certificate: cert sign",
            ),
            (Signer::KubeletClient, node("n"), &client, ""),
            (Signer::KubeletClient, node("n"), &client[..2], ""),
            (
                Signer::KubeletClient,
                node("n"),
                &serving,
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (
                Signer::KubeletClient,
                with(named),
                &client,
                "DNS subjectAltNames are not allowed",
            ),
            (
                Signer::KubeletClient,
                with(|requested| requested.addresses = vec![[192, 0, 2, 1].into()]),
                &client,
                "IP subjectAltNames are not allowed",
            ),
            (
                Signer::KubeletClient,
                with(|requested| requested.organizations.push("system:masters".to_owned())),
                &client,
                "subject organization is not system:nodes",
            ),
            (
                Signer::KubeletClient,
                with(|requested| requested.common_name = "root".to_owned()),
                &client,
                "subject common name does not begin with system:node:",
            ),
            (Signer::KubeletServing, with(named), &serving, ""),
            (
                Signer::KubeletServing,
                node("n"),
                &serving,
                "DNS or IP subjectAltName is required",
            ),
            (
                Signer::KubeletServing,
                with(|requested| (requested.names, requested.uris) = (vec!["n".to_owned()], 1)),
                &serving,
                "URI subjectAltNames are not allowed",
            ),
            (
                Signer::KubeletServing,
                with(|requested| (requested.names, requested.emails) = (vec!["n".to_owned()], 1)),
                &serving,
                "Email subjectAltNames are not allowed",
            ),
            (
                Signer::KubeletServing,
                with(named),
                &client,
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (
                Signer::KubeletServing,
                with(|requested| {
                    requested.names = vec!["n".to_owned()];
                    requested.organizations.clear();
                }),
                &serving,
                "subject organization is not system:nodes",
            ),
            (Signer::Legacy, Requested::default(), &["cert sign"], ""),
        ] {
            let got = check(signer, &requested, usages).err().unwrap_or_default();
            assert_eq!(got, want, "{signer:?} {requested:?} {usages:?}");
        }
    }

    #[test]
    fn how_long_it_lives() {
        for (asked, want) in [
            (None, LIFE),
            (Some(3600), Duration::from_secs(3600)),
            (Some(600), SHORTEST),
            (Some(1), SHORTEST),
            (Some(-1), SHORTEST),
            (Some(i32::MAX), LIFE),
        ] {
            assert_eq!(life(asked), want, "{asked:?}");
        }
    }
}
