//! The keys of service account tokens.
//!
//! `sa.key` signs. A cluster made before RS256 was the default has an ES256 key there: its tokens
//! go on being good, and `sa-rsa.key` beside it signs new ones.
//! Always true: every key that has signed a token is among those that verify.
//!
//! An RSA key takes a tenth of a second or more to find, so a new one is made on a thread of its
//! own and waited for by the first who needs it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PublicKeyData};
use rsa::pkcs8::EncodePrivateKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::public_key::PublicKey;

use super::{Error, files, leisure::Leisure};
use crate::supervision::caught_here;

/// Of a new RSA key.
const BITS: usize = 2048;

/// How tokens are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    Es256,
    Rs256,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// A key pair for tokens.
pub struct TokenKey {
    pub algorithm: Algorithm,
    /// PKCS#8.
    pub private_pem: String,
    pub public_pem: String,
    /// `kid`: the SHA-256 of the public key's DER.
    pub id: String,
    /// The public key as a JSON Web Key.
    pub jwk: Value,
}

/// The keys of a cluster's tokens.
pub struct TokenKeys {
    /// Filled by a thread if the key has to be made.
    signing: Arc<OnceLock<Result<Arc<TokenKey>, String>>>,
    /// Of that thread: the daemon starts meanwhile, and its first pods are far off.
    leisure: Arc<Leisure>,
    maker: Option<JoinHandle<()>>,
    older: Vec<Arc<TokenKey>>,
}

impl TokenKeys {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let usual = dir.join("sa.key");
        let mut path = usual.clone();
        let mut older = Vec::new();
        let mut signing = load(&usual)?;
        if let Some(key) = signing.take_if(|key| key.algorithm == Algorithm::Es256) {
            older.push(Arc::new(key));
            path = dir.join("sa-rsa.key");
            signing = load(&path)?;
        }
        let cell = Arc::new(OnceLock::new());
        let leisure = Arc::new(Leisure::new());
        let maker = match signing {
            Some(key) => {
                let _ = cell.set(Ok(Arc::new(key)));
                None
            }
            None => Some(make(path, cell.clone(), leisure.clone())?),
        };
        Ok(Self {
            signing: cell,
            leisure,
            maker,
            older,
        })
    }

    /// The key that signs. Waits while it is being made: not on a thread that others need.
    pub fn signing(&self) -> Result<Arc<TokenKey>, Error> {
        if self.signing.get().is_none() {
            self.leisure.hurry();
        }
        self.signing.wait().clone().map_err(Error::TokenKey)
    }

    /// The keys that may have signed a token. One that is still being made has not.
    pub fn verifying(&self) -> Vec<Arc<TokenKey>> {
        let signing = self.signing.get().and_then(|made| made.as_ref().ok());
        signing.into_iter().chain(&self.older).cloned().collect()
    }
}

/// Nothing is written any more once the keys are gone: whoever drops them may remove their folder.
impl Drop for TokenKeys {
    fn drop(&mut self) {
        if let Some(maker) = self.maker.take() {
            self.leisure.hurry();
            let _ = maker.join(); // its panic was told already
        }
    }
}

fn load(path: &Path) -> Result<Option<TokenKey>, Error> {
    let Some(pem) = files::read(path)? else {
        return Ok(None);
    };
    TokenKey::parse(path, &pem).map(Some)
}

/// Fills `cell` from a thread, with a new key that is in its file by then.
fn make(
    path: PathBuf,
    cell: Arc<OnceLock<Result<Arc<TokenKey>, String>>>,
    leisure: Arc<Leisure>,
) -> Result<JoinHandle<()>, Error> {
    let making = path.clone();
    let made = std::thread::Builder::new()
        .name("token-key".to_owned())
        .spawn(move || {
            leisure.begin();
            // Whoever waits for the cell must not wait for ever.
            let made = caught_here(|| new(&making));
            let made = made.map_err(|panic| panic.to_string()).and_then(|made| {
                made.map_err(|error| {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "the key for service account tokens was not made");
                    error.to_string()
                })
            });
            let _ = cell.set(made.map(Arc::new));
            leisure.end();
        });
    made.map_err(|source| Error::Io {
        action: "start a thread that makes",
        path,
        source,
    })
}

fn new(path: &Path) -> Result<TokenKey, Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let key =
        rsa::PrivateKey::new(&mut getrandom::SysRng, BITS).map_err(|error| unusable(&error))?;
    let pem = key
        .to_pkcs8_pem(rsa::pkcs8::LineEnding::LF)
        .map_err(|error| unusable(&error))?;
    let key = TokenKey::parse(path, &pem)?;
    files::write(path, &pem)?;
    Ok(key)
}

impl TokenKey {
    fn parse(path: &Path, pem: &str) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Unusable {
            path: path.to_owned(),
            reason,
        };
        let key = KeyPair::from_pem(pem).map_err(|error| unusable(error.to_string()))?;
        let der = key.subject_public_key_info();
        let id = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&der));
        let (_, parsed) = <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<_>>::from_der(&der)
            .map_err(|error| unusable(error.to_string()))?;
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let (algorithm, mut jwk) = match parsed.parsed() {
            Ok(PublicKey::RSA(key)) => (
                Algorithm::Rs256,
                json!({ "kty": "RSA", "n": encode(trim(key.modulus)), "e": encode(trim(key.exponent)) }),
            ),
            // An uncompressed point: 04, x, y.
            Ok(PublicKey::EC(point)) if point.data().len() == 65 => (
                Algorithm::Es256,
                json!({ "kty": "EC", "crv": "P-256", "x": encode(&point.data()[1..33]), "y": encode(&point.data()[33..]) }),
            ),
            _ => return Err(unusable("neither an RSA nor a P-256 key".to_owned())),
        };
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(id);
        jwk["alg"] = json!(algorithm.name());
        Ok(Self {
            algorithm,
            private_pem: pem.to_owned(),
            public_pem: key.public_key_pem(),
            id,
            jwk,
        })
    }
}

/// Without the zeros that only say that a number is positive.
fn trim(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_cluster_keeps_its_key_and_gets_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let old = KeyPair::generate().expect("a key");
        files::write(&dir.path().join("sa.key"), &old.serialize_pem()).expect("written");
        let keys = TokenKeys::open(dir.path()).expect("opened");
        assert_eq!(keys.signing().expect("made").algorithm, Algorithm::Rs256);
        let algorithms = |keys: &TokenKeys| {
            let all = keys.verifying();
            all.iter().map(|key| key.algorithm).collect::<Vec<_>>()
        };
        assert_eq!(algorithms(&keys), [Algorithm::Rs256, Algorithm::Es256]);
        let again = TokenKeys::open(dir.path()).expect("opened");
        assert_eq!(algorithms(&again), algorithms(&keys));
        let id = |keys: &TokenKeys| keys.signing().expect("a key").id.clone();
        assert_eq!(id(&again), id(&keys));
    }

    #[test]
    fn nothing_is_written_once_the_keys_are_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(TokenKeys::open(dir.path()).expect("opened"));
        assert!(dir.path().join("sa.key").exists());
    }

    #[test]
    fn a_new_cluster_has_one_key_that_others_can_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = TokenKeys::open(dir.path()).expect("opened");
        let key = keys.signing().expect("made");
        assert_eq!(keys.verifying().len(), 1);
        assert!(dir.path().join("sa.key").exists());
        assert_eq!(
            (&key.jwk["kty"], &key.jwk["alg"]),
            (&json!("RSA"), &json!("RS256"))
        );
        assert_eq!(key.jwk["e"], "AQAB");
        let modulus = BASE64_URL_SAFE_NO_PAD.decode(key.jwk["n"].as_str().expect("text"));
        assert_eq!(modulus.expect("base64").len(), 256);
        std::fs::write(dir.path().join("sa.key"), "nonsense").expect("written");
        assert!(TokenKeys::open(dir.path()).is_err());
    }
}
