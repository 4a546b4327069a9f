//! The file that tells `kubectl` and clients where the cluster is and who they are.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::Identity;

/// A kubeconfig with one cluster, user and context, all named `vetch`. It holds a private key:
/// the caller writes it for its owner only.
pub fn kubeconfig(server_url: &str, ca_pem: &str, user: &Identity) -> String {
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    // A JSON string is a YAML string, whatever is in it.
    let server = serde_json::Value::from(server_url);
    let (ca, certificate, key) = (encode(ca_pem), encode(&user.certificate), encode(&user.key));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: vetch
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: vetch
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: vetch
  context:
    cluster: vetch
    user: vetch
current-context: vetch
"
    )
}

/// A kubeconfig that tells where the cluster is and by what it is known, without credentials.
pub fn cluster_info(server_url: &str, ca_pem: &str) -> String {
    let server = serde_json::Value::from(server_url);
    let ca = BASE64_STANDARD.encode(ca_pem);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: \"\"
  cluster:
    server: {server}
    certificate-authority-data: {ca}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_can_read_it() {
        let identity = Identity {
            certificate: "cert".to_owned(),
            key: "key".to_owned(),
        };
        let text = kubeconfig("https://127.0.0.1:6443", "ca", &identity);
        let config = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
        assert_eq!(config.current_context.as_deref(), Some("vetch"));
        let cluster = config.clusters[0].cluster.as_ref().expect("a cluster");
        assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Y2E="));
    }
}
