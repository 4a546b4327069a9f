//! Client certificates: asked for in the handshake, judged when a request is authenticated.
//!
//! A handshake fails only if the client does not hold the key of the certificate that it shows.
//! What that is worth, [`Clients`] says with each request, so that a certificate of a stranger is
//! an answer in words (401), and one that expires ends with its time, not with its connection.
//! Always true: no name of a certificate is used that [`Clients`] has not checked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use sha2::{Digest, Sha256};

use super::{
    BACKDATE, Error,
    leaf::{Validity, common_name, organizations},
    tls::{provider, roots},
};

/// Certificates judged and remembered; a full memory is emptied.
const REMEMBERED: usize = 1024;
/// A judgement is good for so long: intermediate authorities end too.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// Who holds a certificate of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The common name.
    pub user: String,
    /// The organizations.
    pub groups: Vec<String>,
    /// The certificate's SHA-256.
    pub fingerprint: [u8; 32],
    /// When it was issued, by the authority's clock.
    pub issued: SystemTime,
}

/// Why a certificate says nothing about its holder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("client certificate: {0}")]
pub struct Refused(String);

/// Judges client certificates by the cluster's authority.
pub struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    /// By the certificate's SHA-256.
    remembered: Mutex<HashMap<[u8; 32], Known>>,
}

#[derive(Clone)]
struct Known {
    holder: Option<Holder>,
    validity: Validity,
    judged: SystemTime,
}

impl Known {
    fn holds(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.judged);
        age.is_ok_and(|age| age < GOOD_FOR) && self.validity.from <= now && now < self.validity.to
    }
}

impl Clients {
    pub fn new(ca_pem: &str) -> Result<Self, Error> {
        let roots = Arc::new(roots(ca_pem)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| Error::Verifier(error.to_string()))?;
        Ok(Self {
            verifier,
            remembered: Mutex::default(),
        })
    }

    /// Who holds the first certificate of `chain`, as a client showed it. `None` if it names
    /// nobody.
    pub fn holder(&self, chain: &[CertificateDer<'_>]) -> Result<Option<Holder>, Refused> {
        self.holder_at(chain, SystemTime::now())
    }

    fn holder_at(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<Option<Holder>, Refused> {
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or_else(|| Refused("none was shown".to_owned()))?;
        let fingerprint: [u8; 32] = Sha256::digest(leaf).into();
        let remembered = || {
            self.remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = remembered().get(&fingerprint)
            && known.holds(now)
        {
            return Ok(known.holder.clone());
        }
        let known = self.judge(leaf, intermediates, fingerprint, now)?;
        let holder = known.holder.clone();
        let mut remembered = remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(fingerprint, known);
        Ok(holder)
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        fingerprint: [u8; 32],
        now: SystemTime,
    ) -> Result<Known, Refused> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.verifier
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since))
            .map_err(|error| Refused(error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| Refused(error.to_string()))?;
        let subject = parsed.subject();
        let time = |seconds: i64| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let validity = Validity {
            from: time(parsed.validity().not_before.timestamp()),
            to: time(parsed.validity().not_after.timestamp()),
        };
        Ok(Known {
            holder: common_name(subject)
                .filter(|name| !name.is_empty())
                .map(|user| Holder {
                    user,
                    groups: organizations(subject),
                    fingerprint,
                    issued: validity.from + BACKDATE,
                }),
            validity,
            judged: now,
        })
    }
}

/// Asks clients for a certificate and takes any whose key they hold, or none.
#[derive(Debug)]
pub(super) struct Asked {
    /// Whose certificates are worth showing.
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Asked {
    pub fn new(ca_pem: &str) -> Result<Self, Error> {
        let provider: Arc<CryptoProvider> = provider();
        Ok(Self {
            hints: roots(ca_pem)?.subjects(),
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ClientCertVerifier for Asked {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    /// By the bare key, since certificates of old versions have one too.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let encoding = rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| encoding)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        crypto::verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::pki::{Leaf, Pki};

    fn der(certificate: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")
    }

    #[test]
    fn whose_certificate_counts_and_when() {
        let dir = tempfile::tempdir().expect("a folder");
        let ours = Pki::open(&dir.path().join("ours")).expect("made");
        let strangers = Pki::open(&dir.path().join("theirs")).expect("made");
        let clients = ours.clients().expect("an authority");
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let masters = Leaf::client("root", &["system:masters"]);
        let serving = Leaf::kubelet_serving("n", &[]);
        for (pki, leaf, at, good) in [
            (&ours, &masters, now, true),
            (&ours, &masters, now, true), // the second time from memory
            (&ours, &masters, now + 366 * day, false),
            (&ours, &masters, now - day, false),
            (&ours, &serving, now, false), // made for servers
            (&strangers, &masters, now, false),
        ] {
            let identity = pki.issue(leaf).expect("issued");
            let chain = [der(&identity.certificate)];
            assert_eq!(clients.holder_at(&chain, at).is_ok(), good, "{leaf:?}");
        }
        let identity = ours.issue(&masters).expect("issued");
        let chain = [der(&identity.certificate)];
        let holder = clients
            .holder_at(&chain, now)
            .expect("good")
            .expect("named");
        assert_eq!(
            (&*holder.user, &*holder.groups),
            ("root", &["system:masters".to_owned()][..])
        );
        // Good before, and its end has come.
        assert!(clients.holder_at(&chain, now + 366 * day).is_err());
        assert!(clients.holder_at(&[], now).is_err());
        // The authority itself is nobody.
        assert!(clients.holder_at(&[der(ours.ca_pem())], now).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(dir.path()).expect("made");
        let clients = pki.clients().expect("an authority");
        let known = Known {
            holder: None,
            validity: Validity {
                from: UNIX_EPOCH,
                to: UNIX_EPOCH,
            },
            judged: UNIX_EPOCH,
        };
        for number in 0..REMEMBERED {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            clients
                .remembered
                .lock()
                .expect("free")
                .insert(key, known.clone());
        }
        let identity = pki.issue(&Leaf::client("a", &[])).expect("issued");
        clients.holder(&[der(&identity.certificate)]).expect("good");
        assert_eq!(clients.remembered.lock().expect("free").len(), 1);
    }
}
