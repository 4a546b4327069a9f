//! What a node may have signed: certificates in its own name. The signers check the rest.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::Asked;
use crate::apiserver::{admission::Operation, registry::kinds::value::text, status::Status};

const SIGNERS: [&str; 2] = [
    "kubernetes.io/kubelet-serving",
    "kubernetes.io/kube-apiserver-client-kubelet",
];

pub fn check(asked: &Asked<'_>) -> Result<(), Status> {
    let of_kubelets = SIGNERS.contains(&text(asked.object, "spec.signerName"));
    if asked.request.operation != Operation::Create || !of_kubelets {
        return Ok(());
    }
    let want = format!("system:node:{}", asked.node);
    match common_name(asked.object) {
        Ok(name) if name == want => Ok(()),
        Ok(_) => asked.refuse(&format!("can only create a node CSR with CN={want}")),
        Err(why) => asked.refuse(&format!("unable to parse csr: {why}")),
    }
}

/// The one name of the subject; two of them are as good as none.
fn common_name(csr: &Value) -> Result<String, String> {
    let pem = BASE64_STANDARD.decode(text(csr, "spec.request"));
    let pem = pem.map_err(|error| error.to_string())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).map_err(|error| error.to_string())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    let mut names = subject.iter_common_name();
    match (names.next().map(|name| name.as_str()), names.next()) {
        (Some(Ok(name)), None) => Ok(name.to_owned()),
        _ => Err("the subject has not one common name".to_owned()),
    }
}
