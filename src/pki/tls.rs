//! TLS settings from certificates. The cryptography is named here, never taken from a
//! process-wide default.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::ResolvesServerCert,
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{Error, Identity, Leaf, Pki, clients::Asked};

/// For a server that shows a certificate for `leaf`, renewed in time. Clients may show any
/// certificate: what it is worth, [`super::Clients`] says. HTTP/2 and HTTP/1.1 are offered.
pub fn server_config(pki: &Pki, leaf: Leaf) -> Result<ServerConfig, Error> {
    with_resolver(pki.ca_pem(), pki.live_in_memory(leaf)?)
}

/// The same with a certificate that somebody else renews: a kubelet's, signed on request.
pub fn server_config_with(
    ca_pem: &str,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, Error> {
    with_resolver(ca_pem, resolver)
}

fn with_resolver(
    ca_pem: &str,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Asked::new(ca_pem)?))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For a client that trusts the authority `ca_pem` only and may show a certificate. HTTP/2 and
/// HTTP/1.1 are offered.
pub fn client_config(ca_pem: &str, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    let shown = identity.map(|identity| {
        let key = certified(identity)?;
        Ok::<_, Error>(Arc::new(SingleCertAndKey::from(key)) as Arc<dyn ResolvesClientCert>)
    });
    client_with(ca_pem, shown.transpose()?)
}

/// The same with a certificate that is renewed in time. Every handshake is a whole one: whoever takes up
/// an earlier session is known by the certificate of that time, which may be worth nothing by now.
pub fn live_client_config(
    ca_pem: &str,
    identity: Arc<dyn ResolvesClientCert>,
) -> Result<ClientConfig, Error> {
    let mut config = client_with(ca_pem, Some(identity))?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn client_with(
    ca_pem: &str,
    identity: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn unusable(error: impl fmt::Display) -> Error {
    Error::Tls(rustls::Error::General(error.to_string()))
}

pub(super) fn roots(ca_pem: &str) -> Result<RootCertStore, Error> {
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

pub(super) fn certified(identity: &Identity) -> Result<CertifiedKey, Error> {
    let (chain, key) = parts(identity)?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}
