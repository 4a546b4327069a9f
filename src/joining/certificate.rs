//! Asking a cluster for the certificates of a node: the one that it is known by, and the one that its own API
//! shows.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest as Csr, CertificateSigningRequestCondition as Condition,
        CertificateSigningRequestSpec as Spec,
    },
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::wait::await_condition,
};

use crate::{
    node_identity::{FORMER, PROXY, proxy_group},
    pki::{self, Identity, Leaf},
};

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// The node is known to the API server by it.
    Client,
    /// The node's own API shows it, at these addresses.
    Serving(&'a [IpAddr]),
    /// The parts that must know Services and other nodes are known by it: the node itself sees none of these.
    Proxy,
}

impl Purpose<'_> {
    fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving(_) => "kubernetes.io/kubelet-serving",
            Self::Proxy => "kubernetes.io/kube-apiserver-client",
        }
    }

    fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client | Self::Proxy => ["digital signature", "client auth"],
            Self::Serving(_) => ["digital signature", "server auth"],
        }
    }

    fn leaf(self, node: &str) -> Leaf {
        match self {
            Self::Client => Leaf::node_client(node),
            Self::Serving(addresses) => Leaf::kubelet_serving(node, addresses),
            Self::Proxy => Leaf::client(PROXY, &[&proxy_group(node)]),
        }
    }
}

/// Why no certificate came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}")]
    Api {
        doing: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("watch the certificate signing request {name}")]
    Watch {
        name: String,
        #[source]
        source: Box<kube::runtime::wait::Error>,
    },
    #[error("the certificate signing request {name} was {condition}: {message}")]
    Refused {
        name: String,
        condition: String,
        message: String,
    },
    #[error(
        "nobody has approved the certificate signing request {name} within {after:?}: \
         `kubectl certificate approve {name}` does"
    )]
    Pending { name: String, after: Duration },
    #[error(transparent)]
    Pki(#[from] pki::Error),
}

/// What has become of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Issued(String),
    /// Condition and message.
    Refused(String, String),
    Waiting,
}

fn outcome(csr: &Csr) -> Outcome {
    let status = csr.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let refused = |one: &&Condition| matches!(one.type_.as_str(), "Denied" | "Failed");
    if let Some(one) = conditions.unwrap_or_default().iter().rfind(refused) {
        let message = one.message.clone().unwrap_or_default();
        return Outcome::Refused(one.type_.to_lowercase(), message);
    }
    let certificate = status.and_then(|status| status.certificate.as_ref());
    let pem = certificate.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    match pem.filter(|pem| !pem.is_empty()) {
        Some(pem) => Outcome::Issued(pem),
        None => Outcome::Waiting,
    }
}

/// A new key with a certificate for the node `name`, which `client` may ask for. Given up after `within`.
pub async fn request(
    client: Client,
    name: &str,
    purpose: Purpose<'_>,
    within: Duration,
) -> Result<Identity, Error> {
    let wanted = pki::SigningRequest::new(&purpose.leaf(name))?;
    ask(client, wanted, purpose, None, within).await
}

/// The certificate by which the node `name` is known, for a machine whose last one, `former`, has expired: `client`
/// holds a token, and the request is made with the old key, so that nobody else can become that node.
pub async fn request_again(
    client: Client,
    name: &str,
    former: &Identity,
    within: Duration,
) -> Result<Identity, Error> {
    let purpose = Purpose::Client;
    let wanted = pki::SigningRequest::with_key(&purpose.leaf(name), &former.key)?;
    let shown = BTreeMap::from([(FORMER.to_owned(), former.certificate.clone())]);
    ask(client, wanted, purpose, Some(shown), within).await
}

async fn ask(
    client: Client,
    wanted: pki::SigningRequest,
    purpose: Purpose<'_>,
    annotations: Option<BTreeMap<String, String>>,
    within: Duration,
) -> Result<Identity, Error> {
    let requests: Api<Csr> = Api::all(client);
    let csr = Csr {
        metadata: ObjectMeta {
            generate_name: Some("node-csr-".to_owned()),
            annotations,
            ..ObjectMeta::default()
        },
        spec: Spec {
            request: ByteString(wanted.pem.into_bytes()),
            signer_name: purpose.signer().to_owned(),
            usages: Some(purpose.usages().map(str::to_owned).to_vec()),
            ..Spec::default()
        },
        status: None,
    };
    let made = requests.create(&PostParams::default(), &csr).await;
    let made = made.map_err(|source| Error::Api {
        doing: "ask for the certificate of a node",
        source: Box::new(source),
    })?;
    let name = made.name_any();
    let decided = |csr: Option<&Csr>| csr.is_some_and(|csr| outcome(csr) != Outcome::Waiting);
    let decided = await_condition(requests, &name, decided);
    let decided = match tokio::time::timeout(within, decided).await {
        Ok(decided) => decided,
        Err(_) => {
            return Err(Error::Pending {
                name,
                after: within,
            });
        }
    };
    let decided = decided.map_err(|source| Error::Watch {
        name: name.clone(),
        source: Box::new(source),
    })?;
    match decided.as_ref().map_or(Outcome::Waiting, outcome) {
        Outcome::Issued(certificate) => Ok(Identity {
            certificate,
            key: wanted.key,
        }),
        Outcome::Refused(condition, message) => Err(Error::Refused {
            name,
            condition,
            message,
        }),
        Outcome::Waiting => Err(Error::Pending {
            name,
            after: within,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_becomes_of_a_request() {
        let issued = Outcome::Issued("cert".to_owned());
        let refused = |condition: &str| Outcome::Refused(condition.to_owned(), "no".to_owned());
        for (conditions, certificate, want) in [
            (&[][..], None, Outcome::Waiting),
            (&["Approved"], None, Outcome::Waiting),
            (&["Approved"], Some("cert"), issued),
            (&["Denied"], None, refused("denied")),
            (&["Approved", "Failed"], None, refused("failed")),
        ] {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|kind| json!({"type": kind, "status": "True", "message": "no"}))
                .collect();
            let bytes = certificate.map(|text: &str| ByteString(text.into()));
            let csr: Csr = serde_json::from_value(json!({
                "metadata": {"name": "x"},
                "spec": {"request": "", "signerName": Purpose::Client.signer()},
                "status": {"conditions": conditions, "certificate": bytes},
            }))
            .expect("a request");
            assert_eq!(outcome(&csr), want, "{conditions:?}");
        }
    }
}
