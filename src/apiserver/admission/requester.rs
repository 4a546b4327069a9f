//! Writes who asks into certificate signing requests, whatever the body says.

use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{remove, set, text},
    status::Status,
};

pub struct CertificateRequester;

#[async_trait::async_trait]
impl Plugin for CertificateRequester {
    fn name(&self) -> &'static str {
        "CertificateRequester"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        csr: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if !request.is(
            Operation::Create,
            "certificates.k8s.io",
            "certificatesigningrequests",
        ) {
            return Ok(());
        }
        let user = request.user;
        set(csr, "spec.username", user.name.clone());
        set(csr, "spec.groups", user.groups.clone());
        if let Some(uid) = &user.uid {
            set(csr, "spec.uid", uid.clone());
        } else {
            remove(csr, "spec.uid");
        }
        set(csr, "spec.extra", json!(user.extra));
        // Nobody may ask the API server's own client signer for full power.
        if text(csr, "spec.signerName") == "kubernetes.io/kube-apiserver-client"
            && names_masters(csr)
        {
            return Err(request.forbidden("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"));
        }
        Ok(())
    }
}

/// Whether the request's subject has the organisation `system:masters`.
fn names_masters(csr: &Value) -> bool {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    let Ok(pem) = BASE64_STANDARD.decode(text(csr, "spec.request")) else {
        return false;
    };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else {
        return false;
    };
    X509CertificationRequest::from_der(&pem.contents).is_ok_and(|(_, parsed)| {
        let subject = &parsed.certification_request_info.subject;
        subject
            .iter_organization()
            .any(|name| name.as_str() == Ok("system:masters"))
    })
}
