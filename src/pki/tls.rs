//! TLS settings from certificates. The cryptography is named here, never taken from a
//! process-wide default.

use std::{
    fmt,
    sync::{Arc, RwLock},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

use super::{Error, Identity, Leaf, Pki, RENEW_BEFORE, leaf::Facts};

/// For a server that shows a certificate for `leaf` and renews it by itself. Clients may show a
/// certificate of the cluster's authority; HTTP/2 and HTTP/1.1 are offered.
pub fn server_config(pki: &Pki, leaf: Leaf) -> Result<ServerConfig, Error> {
    let shown = Shown::new(pki.clone(), leaf)?;
    with_resolver(pki.ca_pem(), Arc::new(shown))
}

/// The same with a certificate that somebody else renews: a kubelet's, signed on request.
pub fn server_config_with(ca_pem: &str, identity: &Identity) -> Result<ServerConfig, Error> {
    let resolver = rustls::sign::SingleCertAndKey::from(certified(identity)?);
    with_resolver(ca_pem, Arc::new(resolver))
}

fn with_resolver(
    ca_pem: &str,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, Error> {
    let roots = Arc::new(roots(ca_pem)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Verifier(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For a client that trusts the authority `ca_pem` only and may show a certificate. HTTP/2 and
/// HTTP/1.1 are offered.
pub fn client_config(ca_pem: &str, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        Some(identity) => {
            let (chain, key) = parts(identity)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn unusable(error: impl fmt::Display) -> Error {
    Error::Tls(rustls::Error::General(error.to_string()))
}

fn roots(ca_pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(unusable)?)?;
    }
    Ok(roots)
}

type Parts = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn parts(identity: &Identity) -> Result<Parts, Error> {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(unusable)?;
    Ok((chain, key))
}

fn certified(identity: &Identity) -> Result<CertifiedKey, Error> {
    let (chain, key) = parts(identity)?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}

/// The certificate a server shows, issued anew at the first handshake of its last month: no
/// timer and no restart.
struct Shown {
    pki: Pki,
    leaf: Leaf,
    current: RwLock<Current>,
}

struct Current {
    facts: Option<Facts>,
    key: Arc<CertifiedKey>,
}

impl Shown {
    fn new(pki: Pki, leaf: Leaf) -> Result<Self, Error> {
        let current = RwLock::new(Self::issue(&pki, &leaf)?);
        Ok(Self { pki, leaf, current })
    }

    fn issue(pki: &Pki, leaf: &Leaf) -> Result<Current, Error> {
        let identity = pki.issue(leaf)?;
        Ok(Current {
            facts: Facts::read(&identity.certificate),
            key: Arc::new(certified(&identity)?),
        })
    }

    fn renewed(&self) -> Arc<CertifiedKey> {
        let mut current = self
            .current
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match Self::issue(&self.pki, &self.leaf) {
            Ok(issued) => *current = issued,
            Err(error) => tracing::warn!(%error, "serving certificate not renewed"),
        }
        current.key.clone()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Shown").field("leaf", &self.leaf).finish()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self
            .current
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let fresh = current
            .facts
            .as_ref()
            .is_some_and(|facts| facts.left() > RENEW_BEFORE);
        if fresh {
            return Some(current.key.clone());
        }
        drop(current);
        Some(self.renewed())
    }
}
