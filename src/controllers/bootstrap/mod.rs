//! Bootstrap tokens: the ConfigMap `cluster-info` of `kube-public`, by which a machine that holds a token
//! finds out that it talks to the right cluster, and the removal of tokens that have expired.
//!
//! `signing.rs` and `cleaning.rs` are the controllers.

pub mod cleaning;
pub mod signing;

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
