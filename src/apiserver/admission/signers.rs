//! Approving and signing certificate requests needs a right on their signer, besides the one on
//! the endpoint.

use std::sync::Arc;

use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    authz::Authorizer,
    objects::Lookup,
    registry::kinds::value::{same, text},
    request::{Attributes, Target, User},
    status::Status,
};

const GROUP: &str = "certificates.k8s.io";

/// Refuses who may not `approve` or `sign` for a request's signer.
pub struct CertificateSigners(pub Arc<Authorizer>);

#[async_trait::async_trait]
impl Plugin for CertificateSigners {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        csr: Option<&Value>,
        _: &dyn Lookup,
    ) -> Result<(), Status> {
        let (Some(new), Some(old)) = (csr, request.old) else {
            return Ok(());
        };
        let ours = request.operation == Operation::Update
            && request.resource.group == GROUP
            && request.resource.plural == "certificatesigningrequests";
        let verb = match request.subresource {
            Some("approval") if ours => "approve",
            Some("status") if ours && !same_status(new, old) => "sign",
            _ => return Ok(()),
        };
        let signer = text(old, "spec.signerName");
        match self.may(request.user, verb, signer).await {
            true => Ok(()),
            false => Err(request.forbidden(&format!(
                "user not permitted to {verb} requests with signerName {signer:?}"
            ))),
        }
    }
}

fn same_status(new: &Value, old: &Value) -> bool {
    ["status.certificate", "status.conditions"]
        .iter()
        .all(|path| same(new, old, path))
}

impl CertificateSigners {
    /// The right on this signer, or on all of its domain.
    async fn may(&self, user: &User, verb: &str, signer: &str) -> bool {
        let domain = signer.split('/').next().unwrap_or_default();
        for name in [signer.to_owned(), format!("{domain}/*")] {
            let attributes = Attributes {
                verb: verb.to_owned(),
                target: Target::Resource {
                    group: GROUP.to_owned(),
                    version: "*".to_owned(),
                    resource: "signers".to_owned(),
                    subresource: None,
                    namespace: None,
                    name: Some(name),
                },
                fields: Vec::new(),
            };
            if self.0.authorize(user, &attributes).await.is_allowed() {
                return true;
            }
        }
        false
    }
}
