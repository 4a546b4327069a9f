//! How the hosts of a registry prove who they are, and how we do.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

use super::super::{
    Error,
    hosts::{self, Tls},
};
use crate::any_certificate::AnyCertificate;

/// The configurations for one host.
#[derive(Clone)]
pub struct Configs {
    /// For the host itself.
    pub home: ClientConfig,
    /// For where it sends us: the same authorities, checked always, and nothing of ours is shown.
    pub elsewhere: ClientConfig,
}

/// The authorities that the host's system trusts. Blocking.
pub fn system_authorities() -> RootCertStore {
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    authorities
}

/// Reads what the settings name. Blocking.
pub fn configs(tls: &Tls, mut authorities: RootCertStore) -> Result<Configs, Error> {
    for path in &tls.ca {
        add_authorities(&mut authorities, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let begin = || {
        let builder = ClientConfig::builder_with_provider(provider.clone());
        builder
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Malformed {
                what: "TLS".to_owned(),
                reason: error.to_string(),
            })
    };
    let elsewhere = begin()?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let mut home = elsewhere.clone();
    if tls.skip_verify {
        home = begin()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(&provider)))
            .with_no_client_auth();
    }
    if !tls.client.is_empty() {
        let read = |files: &hosts::ClientFiles| {
            let key = files.key.as_ref().unwrap_or(&files.certificate);
            certified(&files.certificate, key, &provider)
        };
        let keys = tls.client.iter().map(read).collect::<Result<_, _>>()?;
        home.client_auth_cert_resolver = Arc::new(Ours(keys));
    }
    Ok(Configs { home, elsewhere })
}

fn add_authorities(authorities: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    let bytes = hosts::pem(path)?;
    let mut number = 0;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| bad_pem(path, &error))?;
        authorities
            .add(certificate)
            .map_err(|error| hosts::wrong(path, &format!("no certificate authority: {error}")))?;
        number += 1;
    }
    match number {
        0 => Err(hosts::wrong(
            path,
            "it holds no certificate; it must be PEM, -----BEGIN CERTIFICATE-----",
        )),
        _ => Ok(()),
    }
}

fn certified(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, Error> {
    let bytes = hosts::pem(certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad_pem(certificate, &error))?;
    if chain.is_empty() {
        return Err(hosts::wrong(
            certificate,
            "it holds no certificate; it must be PEM, -----BEGIN CERTIFICATE-----",
        ));
    }
    let private =
        PrivateKeyDer::from_pem_slice(&hosts::pem(key)?).map_err(|error| bad_pem(key, &error))?;
    let certified = CertifiedKey::from_der(chain, private, provider).map_err(|error| {
        let certificate = certificate.display();
        hosts::wrong(key, &format!("not the key of {certificate}: {error}"))
    })?;
    Ok(Arc::new(certified))
}

fn bad_pem(path: &Path, error: &pem::Error) -> Error {
    match error {
        pem::Error::NoItemsFound => hosts::wrong(
            path,
            "it holds no private key; it must be PEM, -----BEGIN PRIVATE KEY-----",
        ),
        error => hosts::wrong(path, &format!("not PEM: {error}")),
    }
}

/// Certificates of ours; a server that names authorities gets one of theirs.
#[derive(Debug)]
struct Ours(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Ours {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let named = |key: &&Arc<CertifiedKey>| {
            key.cert.iter().any(|certificate| {
                x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, read)| {
                    authorities.contains(&read.tbs_certificate.issuer.as_raw())
                })
            })
        };
        let fitting = self.0.iter().filter(usable).find(named);
        fitting.or(self.0.iter().find(usable)).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Whether the other side did not speak TLS at all.
pub fn is_no_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(one) = error {
        if let Some(mut io) = one.downcast_ref::<std::io::Error>() {
            // The source of one within another is not the other, but what that comes from.
            while let Some(inner) = io.get_ref().and_then(|inner| inner.downcast_ref()) {
                io = inner;
            }
            match io
                .get_ref()
                .and_then(|cause| cause.downcast_ref::<rustls::Error>())
            {
                // Plain HTTP looks like a record that cannot be.
                Some(rustls::Error::InvalidMessage(_)) => return true,
                Some(_) => return false,
                None => {}
            }
            use std::io::ErrorKind::{ConnectionReset, TimedOut, UnexpectedEof};
            if matches!(io.kind(), UnexpectedEof | ConnectionReset | TimedOut) {
                return true;
            }
        }
        error = one.source();
    }
    false
}

/// What helps against an error of TLS, for messages.
pub fn remedy(said: &str) -> &'static str {
    if said.contains("UnknownIssuer") || said.contains("CaUsedAsEndEntity") {
        "; its authority is not known here: name it with `ca` in hosts.toml"
    } else if said.contains("CertificateRequired") || said.contains("alert: BadCertificate") {
        // What a server of TLS 1.2 says without any.
        "; it wants a certificate of ours: name one that it takes with `client` in hosts.toml"
    } else if said.contains("InvalidContentType") {
        "; it does not speak TLS: a host of plain HTTP is written http://... in hosts.toml"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn wrong_files_are_named_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["a.b".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        for (name, text) in [
            ("good.pem", made.cert.pem()),
            ("good.key", made.signing_key.serialize_pem()),
            ("other.key", other.serialize_pem()),
            ("text", "hello".to_owned()),
            (
                "broken.pem",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            ),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let client = |certificate: &str, key: &str| Tls {
            client: vec![hosts::ClientFiles {
                certificate: dir.path().join(certificate),
                key: Some(dir.path().join(key)),
            }],
            ..Tls::default()
        };
        let ca = |name: &str| Tls {
            ca: vec![dir.path().join(name)],
            ..Tls::default()
        };
        for (tls, want) in [
            (ca("missing"), "missing: No such file"),
            (ca("text"), "text: it holds no certificate"),
            (ca("broken.pem"), "broken.pem: no certificate authority"),
            (client("good.pem", "text"), "text: it holds no private key"),
            (client("text", "good.key"), "text: it holds no certificate"),
            (client("good.pem", "other.key"), "other.key: not the key of"),
        ] {
            let error = configs(&tls, RootCertStore::empty()).err().unwrap();
            assert!(error.to_string().contains(want), "{want}: {error}");
        }
        for tls in [ca("good.pem"), client("good.pem", "good.key")] {
            assert!(configs(&tls, RootCertStore::empty()).is_ok(), "{tls:?}");
        }
    }
}
