//! Requests for tables.

use k8s_openapi::{
    ByteString, api::certificates::v1::CertificateSigningRequest as Csr, jiff::Timestamp,
};
use serde_json::json;

use super::Requested;

/// When requests were made and decided over.
pub const DECIDED_AT: i64 = 1_000_000;

/// For a kubelet's client certificate by its usages.
pub fn csr(signer: &str, conditions: &[&str], issued: bool) -> Csr {
    let at = Timestamp::from_second(DECIDED_AT).expect("a time");
    let conditions: Vec<_> = conditions
        .iter()
        .map(|kind| json!({"type": kind, "status": "True", "lastUpdateTime": at.to_string()}))
        .collect();
    let mut csr: Csr = serde_json::from_value(json!({
        "metadata": {"name": "c", "creationTimestamp": at.to_string()},
        "spec": {"request": "", "signerName": signer,
            "usages": ["client auth", "digital signature"]},
        "status": {"conditions": conditions},
    }))
    .expect("a request");
    if issued {
        let status = csr.status.get_or_insert_default();
        status.certificate = Some(ByteString(b"PEM".to_vec()));
    }
    csr
}

/// What a kubelet asks for.
pub fn node(name: &str) -> Requested {
    Requested {
        common_name: format!("system:node:{name}"),
        organizations: vec!["system:nodes".to_owned()],
        ..Requested::default()
    }
}
