//! Certificate signing requests: who asks is written by the server, and the subject of a client's
//! certificate has limits.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::{
    apiserver::{
        authz::MASTERS,
        objects::Lookup,
        registry::kinds::value::{remove, set, text},
        status::Status,
    },
    pki,
};

/// Whose certificates are for the API server itself.
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// Writes who asks into a new request, whatever the body says.
pub struct CertificateRequester;

#[async_trait::async_trait]
impl Plugin for CertificateRequester {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        csr: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if !is_new(request) {
            return Ok(());
        }
        let user = request.user;
        set(csr, "spec.username", user.name.clone());
        set(csr, "spec.groups", user.groups.clone());
        match &user.uid {
            Some(uid) => set(csr, "spec.uid", uid.clone()),
            None => {
                remove(csr, "spec.uid");
            }
        }
        set(csr, "spec.extra", json!(user.extra));
        Ok(())
    }

    /// After all that may change it: nobody asks the API server's own signer for full power.
    async fn validate(
        &self,
        request: &mut Request<'_>,
        csr: Option<&Value>,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let Some(csr) = csr.filter(|_| is_new(request)) else {
            return Ok(());
        };
        if text(csr, "spec.signerName") != API_CLIENT {
            return Ok(());
        }
        let pem = BASE64_STANDARD.decode(text(csr, "spec.request"));
        let read = pki::Request::parse(&pem.unwrap_or_default())
            .map_err(|error| request.forbidden(&format!("failed to parse CSR: {error}")))?;
        if read.organizations.iter().any(|group| group == MASTERS) {
            let why = format!("use of {API_CLIENT} signer with {MASTERS} group is not allowed");
            return Err(request.forbidden(&why));
        }
        Ok(())
    }
}

fn is_new(request: &Request<'_>) -> bool {
    request.is(
        Operation::Create,
        "certificates.k8s.io",
        "certificatesigningrequests",
    )
}
