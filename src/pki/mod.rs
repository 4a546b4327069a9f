//! Certificates and keys of a cluster.
//!
//! Owns one folder: the cluster's authority (`ca.crt`, `ca.key`), the keys that sign service
//! account tokens (`sa.key`), the certificates issued from here (`<name>.crt`, `<name>.key`), and
//! a second authority (`front-proxy-ca`) that vouches for the API server before aggregated ones.
//! Called by `cli` at start, by `apiserver` for tokens and signing requests, and by `kubelet`.
//! Always true:
//! - Private keys are readable by their owner only and appear on disk complete or not at all.
//! - An authority is never replaced: what it has signed would be worthless.
//! - A certificate issued here is renewed after two thirds of its life, without a restart.
//!
//! `live.rs` renews, `rounds.rs` says when, `clients.rs` says whom a client's certificate names, `tokens.rs` has the keys
//! of tokens, `request.rs` reads and signs signing requests.

mod clients;
pub mod clock;
mod der;
mod files;
mod held;
mod kubeconfig;
mod leaf;
mod leisure;
mod live;
mod renewal;
mod request;
mod rounds;
mod tls;
mod tokens;
mod usages;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};

pub use self::{
    clients::{Clients, Holder, Refused},
    held::Held,
    kubeconfig::{cluster_info, kubeconfig},
    leaf::{Leaf, Usage},
    live::{Live, renew_in_time},
    request::{Former, MAX_REQUEST_BYTES, Request, SigningRequest},
    rounds::{LOOK, RETRY, Rounds},
    tls::{client_config, live_client_config, server_config, server_config_with},
    tokens::{Algorithm, TokenKey, TokenKeys},
};
pub use self::{files::write as write_private, renewal::Due};
use self::{leaf::Validity, live::Signer};

/// The name by which aggregated API servers know this one.
pub const FRONT_PROXY: &str = "front-proxy-client";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The beginning of 2026: a clock that shows less is wrong.
const PAST: Duration = Duration::from_secs(56 * 365 * 24 * 60 * 60 + 14 * 24 * 60 * 60);
/// Clocks of the cluster's machines may differ by this much.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A certificate as PEM.
pub fn pem(certificate: &[u8]) -> String {
    der::pem("CERTIFICATE", certificate)
}

/// When the first certificate of a PEM file ends.
pub fn ends(pem: &[u8]) -> Option<SystemTime> {
    leaf::Facts::read(std::str::from_utf8(pem).ok()?).map(|facts| facts.validity.to)
}

/// Why a certificate or key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {reason}")]
    Unusable { path: PathBuf, reason: String },
    #[error("{action} the certificate for {subject:?}")]
    Issue {
        action: &'static str,
        subject: String,
        source: rcgen::Error,
    },
    #[error("{0}")]
    Request(String),
    #[error("the key for service account tokens could not be made: {0}")]
    TokenKey(String),
    #[error("TLS settings")]
    Tls(#[from] rustls::Error),
    #[error("TLS client verification: {0}")]
    Verifier(String),
}

/// A certificate with its key, both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// The cluster's authority. Cheap to clone.
#[derive(Clone)]
pub struct Pki {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    cluster: Authority,
    front_proxy: Authority,
    tokens: Arc<TokenKeys>,
    /// The certificates in use.
    live: Mutex<Vec<Weak<Live>>>,
}

/// Who signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

impl Pki {
    /// Loads the authority from `dir`, or makes one there.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        files::folder(dir)?;
        // First: a new key is made on a thread of its own, beside all that follows.
        let tokens = Arc::new(TokenKeys::open(dir)?);
        Ok(Self {
            inner: Arc::new(Inner {
                live: Mutex::default(),
                cluster: Authority::open(dir, "ca", "kubernetes")?,
                front_proxy: Authority::open(dir, "front-proxy-ca", "front-proxy-ca")?,
                dir: dir.to_owned(),
                tokens,
            }),
        })
    }

    /// The authority's certificate, for clients (`kube-root-ca.crt`, kubeconfig).
    pub fn ca_pem(&self) -> &str {
        &self.inner.cluster.pem
    }

    /// The certificate of the authority behind [`Pki::front_proxy`].
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.inner.front_proxy.pem
    }

    /// What the API server shows to aggregated ones: who holds it may say who asks.
    pub fn front_proxy(&self) -> Result<Arc<Live>, Error> {
        let leaf = Leaf::client(FRONT_PROXY, &[]);
        Live::new(self, Signer::FrontProxy, Some(FRONT_PROXY), leaf)
    }

    pub fn token_keys(&self) -> &Arc<TokenKeys> {
        &self.inner.tokens
    }

    /// Whom the cluster's authority vouches for.
    pub fn clients(&self) -> Result<Arc<Clients>, Error> {
        Clients::new(self.ca_pem()).map(Arc::new)
    }

    /// The certificate kept as `<name>.crt`, issued if there is none that fits `leaf` with a third
    /// of its life left. `name` is a file name: `admin`, `apiserver`.
    pub fn identity(&self, name: &str, leaf: &Leaf) -> Result<Identity, Error> {
        self.kept(&self.inner.cluster, name, leaf)
    }

    /// The same, renewed for as long as it is used.
    pub fn live(&self, name: &str, leaf: Leaf) -> Result<Arc<Live>, Error> {
        Live::new(self, Signer::Cluster, Some(name), leaf)
    }

    /// A new certificate, kept nowhere, renewed for as long as it is used.
    pub fn live_in_memory(&self, leaf: Leaf) -> Result<Arc<Live>, Error> {
        Live::new(self, Signer::Cluster, None, leaf)
    }

    fn authority(&self, signer: Signer) -> &Authority {
        match signer {
            Signer::Cluster => &self.inner.cluster,
            Signer::FrontProxy => &self.inner.front_proxy,
        }
    }

    fn kept(&self, authority: &Authority, name: &str, leaf: &Leaf) -> Result<Identity, Error> {
        let (certificate, key) = self.files(name);
        if let (Some(certificate), Some(key)) = (files::read(&certificate)?, files::read(&key)?)
            && authority.serves(&certificate, &key, leaf)
        {
            return Ok(Identity { certificate, key });
        }
        self.reissued(authority, name, leaf)
    }

    fn reissued(&self, authority: &Authority, name: &str, leaf: &Leaf) -> Result<Identity, Error> {
        let (certificate, key) = self.files(name);
        let identity = authority.issue(leaf)?;
        files::write(&key, &identity.key)?;
        files::write(&certificate, &identity.certificate)?;
        Ok(identity)
    }

    fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        let file = |kind: &str| self.inner.dir.join(format!("{name}.{kind}"));
        (file("crt"), file("key"))
    }

    /// Whom a certificate of `request`'s key names that this authority has signed for a client, also one that has
    /// expired: whoever made the request holds the key.
    pub fn former(&self, certificate: &str, request: &Request) -> Option<Former> {
        request.former(certificate, self.ca_pem())
    }

    /// A new key with a certificate for it, kept nowhere. Valid for a year.
    pub fn issue(&self, leaf: &Leaf) -> Result<Identity, Error> {
        self.inner.cluster.issue(leaf)
    }
}

impl Authority {
    /// Loads it from `<name>.crt` and `<name>.key`, or makes it.
    fn open(dir: &Path, name: &str, subject: &str) -> Result<Self, Error> {
        let key = key(&dir.join(format!("{name}.key")))?;
        let path = dir.join(format!("{name}.crt"));
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = make_authority(&key, subject)?;
                files::write(&path, &pem)?;
                pem
            }
        };
        let validity = check_pair(&path, &pem, &key)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|source| Error::Unusable {
            path,
            reason: source.to_string(),
        })?;
        Ok(Self {
            pem,
            issuer,
            validity,
        })
    }

    fn issue(&self, leaf: &Leaf) -> Result<Identity, Error> {
        let failed = |action| {
            let subject = leaf.user.clone();
            move |source| Error::Issue {
                action,
                subject,
                source,
            }
        };
        let key = KeyPair::generate().map_err(failed("make a key for"))?;
        let now = SystemTime::now();
        let validity = Validity {
            from: now - BACKDATE,
            to: (now + LEAF_LIFE).min(self.validity.to),
        };
        let der = leaf
            .sign(&key, &self.issuer, validity)
            .map_err(failed("sign"))?;
        Ok(Identity {
            certificate: der::pem("CERTIFICATE", &der),
            key: key.serialize_pem(),
        })
    }

    /// Whether a kept certificate can go on being used.
    fn serves(&self, certificate: &str, key: &str, leaf: &Leaf) -> bool {
        let Ok(key) = KeyPair::from_pem(key) else {
            return false;
        };
        leaf::Facts::read(certificate).is_some_and(|facts| {
            let due = renewal::due(facts.validity, self.validity.to, 0, SystemTime::now());
            facts.public_key == key.subject_public_key_info()
                && due != Due::Now
                && facts.fits(leaf)
                && leaf::signed_by(certificate, &self.pem)
        })
    }
}

/// The P-256 key in `path`, made if the file is missing.
fn key(path: &Path) -> Result<KeyPair, Error> {
    let unusable = |source: rcgen::Error| Error::Unusable {
        path: path.to_owned(),
        reason: source.to_string(),
    };
    match files::read(path)? {
        Some(pem) => {
            KeyPair::from_pem_and_sign_algo(&pem, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)
        }
        None => {
            let key = KeyPair::generate().map_err(unusable)?;
            files::write(path, &key.serialize_pem())?;
            Ok(key)
        }
    }
}

/// An authority cannot be made anew when the clock is corrected, since everybody knows it: it is valid
/// from ever, and as long as from a time that no right clock is before.
fn authority_validity(now: SystemTime) -> Validity {
    Validity {
        from: SystemTime::UNIX_EPOCH,
        to: now.max(SystemTime::UNIX_EPOCH + PAST) + CA_LIFE,
    }
}

fn make_authority(key: &KeyPair, subject: &str) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let validity = authority_validity(SystemTime::now());
    params.not_before = validity.from.into();
    params.not_after = validity.to.into();
    let certificate = params.self_signed(key).map_err(|source| Error::Issue {
        action: "sign",
        subject: subject.to_owned(),
        source,
    })?;
    Ok(certificate.pem())
}

/// Someone may have replaced one file and not the other.
fn check_pair(path: &Path, certificate: &str, key: &KeyPair) -> Result<Validity, Error> {
    let unusable = |reason: &str| Error::Unusable {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let facts = leaf::Facts::read(certificate).ok_or_else(|| unusable("not a certificate"))?;
    if facts.public_key != key.subject_public_key_info() {
        return Err(unusable("the certificate is not of the key beside it"));
    }
    if facts.validity.to < SystemTime::now() + DAY {
        return Err(unusable("the authority's certificate has expired"));
    }
    Ok(facts.validity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::IpAddr, os::unix::fs::PermissionsExt};

    #[test]
    fn an_authority_outlives_a_wrong_clock() {
        let year = 365 * DAY;
        let now = SystemTime::now();
        for wrong in [SystemTime::UNIX_EPOCH, now + Duration::from_secs(36_000)] {
            let validity = authority_validity(wrong);
            assert!(validity.from < now - 50 * year, "{wrong:?}");
            assert!(validity.to > SystemTime::UNIX_EPOCH + PAST + 9 * year);
        }
        assert!(authority_validity(now).to > now + 9 * year);
    }

    fn open() -> (tempfile::TempDir, Pki) {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(&dir.path().join("pki")).expect("made");
        (dir, pki)
    }

    #[test]
    fn is_the_same_when_opened_again() {
        let (dir, first) = open();
        let key_id = |pki: &Pki| pki.token_keys().signing().expect("a key").id.clone();
        // Waits: the key is in its file from then on.
        let made = key_id(&first);
        let second = Pki::open(&dir.path().join("pki")).expect("loaded");
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(made, key_id(&second));
        let leaf = Leaf::client("admin", &["system:masters"]);
        let kept = first.identity("admin", &leaf).expect("issued");
        assert!(kept == second.identity("admin", &leaf).expect("kept"));
        let other = Leaf::client("admin", &["system:masters", "more"]);
        assert!(kept != second.identity("admin", &other).expect("issued anew"));
        for name in ["ca.key", "sa.key", "admin.key", "ca.crt"] {
            let path = dir.path().join("pki").join(name);
            let mode = std::fs::metadata(path).expect(name).permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_certificate_says_what_was_asked() {
        let (_dir, pki) = open();
        let address: IpAddr = "10.96.0.1".parse().expect("an address");
        for leaf in [
            Leaf::client("jane", &[]),
            Leaf::client("jane", &["a", "b", "c"]),
            Leaf::api_server("node-1", &[address], &["api.example.com".to_owned()]),
            Leaf::kubelet_serving("node-1", &[address]),
        ] {
            let identity = pki.issue(&leaf).expect("issued");
            let facts = leaf::Facts::read(&identity.certificate).expect("readable");
            assert!(facts.fits(&leaf), "{leaf:?}: {facts:?}");
            assert!(facts.validity.to > SystemTime::now() + 364 * DAY);
            assert!(leaf::signed_by(&identity.certificate, pki.ca_pem()));
        }
        let (_dir, stranger) = open();
        let identity = stranger.issue(&Leaf::client("jane", &[])).expect("issued");
        assert!(!leaf::signed_by(&identity.certificate, pki.ca_pem()));
    }

    #[test]
    fn a_request_keeps_its_subject_and_gets_only_what_is_granted() {
        let (_dir, pki) = open();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["node-1".to_owned()]).expect("params");
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:node-1");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        // Asked for, and not granted.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.serialize_request(&key).expect("a request");
        let pem = pem.pem().expect("pem");
        let request = Request::parse(pem.as_bytes()).expect("read");
        assert_eq!(request.common_name, "system:node:node-1");
        assert_eq!(request.organizations, ["system:nodes"]);
        assert_eq!(request.names, ["node-1"]);
        let now = SystemTime::now();
        let usages = ["server auth", "digital signature"];
        let signed = pki.sign(&request, &usages, DAY, now).expect("signed");
        let facts = leaf::Facts::read(&signed).expect("readable");
        assert_eq!(facts.public_key, key.subject_public_key_info());
        assert!(facts.validity.to <= now + DAY && facts.validity.from < now);
        assert_eq!(facts.usages, vec![Usage::Server]);
        assert!(leaf::signed_by(&signed, pki.ca_pem()));
        let (_, block) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).expect("PEM");
        assert!(!block.parse_x509().expect("readable").is_ca());
        // The same key signed again is another certificate.
        let again = pki.sign(&request, &usages, DAY, now).expect("signed");
        assert_ne!(signed, again);
        assert!(pki.sign(&request, &["everything"], DAY, now).is_err());
        assert!(pki.sign(&request, &usages, DAY, now + 2 * CA_LIFE).is_err());

        let tampered = {
            let mut der = block.contents.clone();
            der.truncate(der.len() - 1);
            der::pem("CERTIFICATE REQUEST", &der)
        };
        let large = "x".repeat(MAX_REQUEST_BYTES + 1);
        for bad in [&*tampered, &signed, "", "nonsense", &large] {
            assert!(Request::parse(bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }

    #[tokio::test]
    async fn client_and_server_shake_hands() {
        let (_dir, pki) = open();
        let leaf = Leaf::api_server("node-1", &[], &[]);
        let server = server_config(&pki, leaf).expect("server settings");
        let clients = pki.clients().expect("an authority");
        let user = pki.issue(&Leaf::client("jane", &["devs"])).expect("issued");
        for identity in [Some(&user), None] {
            let client = client_config(pki.ca_pem(), identity).expect("client settings");
            let (near, far) = tokio::io::duplex(1 << 16);
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server.clone()));
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
            let name = "kubernetes.default".try_into().expect("a name");
            let (accepted, connected) =
                tokio::join!(acceptor.accept(far), connector.connect(name, near));
            connected.expect("the client trusts the server");
            let accepted = accepted.expect("the server trusts the client");
            let peer = accepted.get_ref().1.peer_certificates();
            assert_eq!(peer.is_some(), identity.is_some());
            if let Some(chain) = peer {
                let holder = clients.holder(chain).expect("of this cluster");
                assert_eq!(holder.map(|holder| holder.user).as_deref(), Some("jane"));
            }
            assert_eq!(accepted.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        }
    }

    #[test]
    fn mixed_up_files_are_refused() {
        let (dir, _) = open();
        let (other, _) = open();
        let pki = dir.path().join("pki");
        std::fs::copy(other.path().join("pki/ca.key"), pki.join("ca.key")).expect("copied");
        assert!(matches!(Pki::open(&pki), Err(Error::Unusable { .. })));
    }
}
