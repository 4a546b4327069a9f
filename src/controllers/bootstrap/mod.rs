//! Bootstrap tokens: the ConfigMap `cluster-info` of `kube-public`, by which a machine that holds a token
//! finds out that it talks to the right cluster, and the removal of tokens that have expired.
//!
//! `signing.rs` and `cleaning.rs` are the controllers.

pub mod cleaning;
pub mod signing;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use crate::bootstrap_token::KeptToken;

/// The Secrets that keep tokens, in any namespace.
const ONLY: &str = "type=bootstrap.kubernetes.io/token";

/// The token that a Secret keeps, if it does and counts.
fn kept(secret: &Secret) -> Option<KeptToken> {
    if secret.namespace().as_deref() != Some(crate::bootstrap_token::NAMESPACE) {
        return None;
    }
    let datum = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    KeptToken::read(&secret.name_any(), secret.type_.as_deref()?, datum)
}

#[cfg(test)]
mod testing {
    use std::collections::BTreeMap;

    use k8s_openapi::{ByteString, api::core::v1::Secret};
    use kube::api::ObjectMeta;

    /// A token's Secret, with more data.
    pub fn secret(id: &str, more: &[(&str, &str)]) -> Secret {
        let all = [
            ("token-id", id),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-signing", "true"),
        ];
        let data: BTreeMap<String, ByteString> = all
            .iter()
            .chain(more)
            .map(|(key, value)| ((*key).to_owned(), ByteString((*value).into())))
            .collect();
        Secret {
            metadata: ObjectMeta {
                name: Some(format!("bootstrap-token-{id}")),
                namespace: Some("kube-system".to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some("bootstrap.kubernetes.io/token".to_owned()),
            data: Some(data),
            ..Secret::default()
        }
    }
}
