//! TLS towards workloads, whose certificates this cluster did not issue.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use crate::{any_certificate::AnyCertificate, pki};

/// Encrypts, but takes any certificate: as with `kubectl proxy` everywhere, a pod behind
/// `https:name:port` proves nothing but that it holds its own key.
pub fn trusting_anyone() -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the ring provider has the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    trust_anyone(&mut config);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Takes any certificate from now on.
pub fn trust_anyone(config: &mut ClientConfig) {
    let verifier = Arc::new(AnyCertificate::new(&ring::default_provider()));
    config.dangerous().set_certificate_verifier(verifier);
}

/// The organization of every kubelet's certificate.
const NODES: &str = "system:nodes";

/// Takes, of the certificates of the authority, only those of kubelets from now on. The API server's
/// own is of the same authority: a node that claims to be where the API server is must not lead
/// requests back here, with the rights of the certificate that we show.
pub fn trust_only_kubelets(config: &mut ClientConfig, ca_pem: &str) -> Result<(), pki::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| Error::General(error.to_string()))?;
        roots.add(certificate)?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let verifier = Arc::new(Kubelets(verifier));
    config.dangerous().set_certificate_verifier(verifier);
    Ok(())
}

#[derive(Debug)]
struct Kubelets(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Kubelets {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let known = self
            .0
            .verify_server_cert(certificate, between, name, ocsp, now)?;
        match is_kubelet(certificate) {
            true => Ok(known),
            false => Err(Error::General(
                "the certificate is not a kubelet's".to_owned(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn is_kubelet(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let mut organizations = parsed.subject().iter_organization();
    organizations.any(|organization| organization.as_str() == Ok(NODES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Leaf, Pki};

    #[test]
    fn who_is_a_kubelet() {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(dir.path()).expect("certificates");
        for (leaf, want) in [
            (Leaf::kubelet_serving("n", &[]), true),
            (Leaf::api_server("n", &[], &[]), false),
            (Leaf::client("system:nodes", &["x"]), false),
        ] {
            let pem = pki.issue(&leaf).expect("issued").certificate;
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
            assert_eq!(is_kubelet(&certificate), want, "{leaf:?}");
        }
    }
}
