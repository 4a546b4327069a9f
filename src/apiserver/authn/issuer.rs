//! Makes service account tokens, and says what their claims are.
//!
//! A signature takes about a millisecond, and the first of a new cluster waits for its key: callers
//! sign on threads for blocking work.

use std::{
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pki::{self, TokenKeys};

/// The issuer of every cluster that does not choose another.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A pod's token asked for with this lifetime lives a year, so that clients that never read it
/// again go on; from this age on it is noted as stale.
const WARN_AFTER: u64 = 3607;
const YEAR: u64 = 365 * 24 * 60 * 60;

/// What a service account token says, in the wire's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    pub aud: Audiences,
    pub exp: u64,
    pub iat: u64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    #[serde(default)]
    pub nbf: u64,
    pub sub: String,
}

/// One name or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Audiences {
    Many(Vec<String>),
    One(String),
}

impl Audiences {
    pub fn contains(&self, audience: &str) -> bool {
        match self {
            Self::Many(all) => all.iter().any(|one| one == audience),
            Self::One(one) => one == audience,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Private {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<u64>,
}

/// One incarnation of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub namespace: String,
    pub account: Reference,
}

/// What the token dies with, besides its account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    Nothing,
    Pod {
        pod: Reference,
        node: Option<Reference>,
    },
    Secret(Reference),
    Node(Reference),
}

/// A token made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issued {
    pub token: String,
    /// Unix seconds; when the client should have replaced it.
    pub expires: u64,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("sign a service account token")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error(transparent)]
    Key(#[from] pki::Error),
}

/// Signs tokens in the cluster's name.
pub struct TokenIssuer {
    issuer: String,
    audiences: Vec<String>,
    keys: Arc<TokenKeys>,
    /// Read when it is first needed: it may still be being made.
    signing: OnceLock<Signing>,
}

struct Signing {
    header: Header,
    key: EncodingKey,
}

impl Signing {
    fn new(key: &pki::TokenKey) -> Result<Self, Error> {
        let pem = key.private_pem.as_bytes();
        let (algorithm, encoding) = match key.algorithm {
            pki::Algorithm::Rs256 => (Algorithm::RS256, EncodingKey::from_rsa_pem(pem)?),
            pki::Algorithm::Es256 => (Algorithm::ES256, EncodingKey::from_ec_pem(pem)?),
        };
        let mut header = Header::new(algorithm);
        header.typ = None;
        header.kid = Some(key.id.clone());
        Ok(Self {
            header,
            key: encoding,
        })
    }
}

impl TokenIssuer {
    /// `issuer` is usually [`DEFAULT_ISSUER`]; it is also the audience of the API itself.
    pub fn new(keys: &Arc<TokenKeys>, issuer: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            audiences: vec![issuer.to_owned()],
            keys: keys.clone(),
            signing: OnceLock::new(),
        }
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences of the API server.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub(super) fn keys(&self) -> &Arc<TokenKeys> {
        &self.keys
    }

    /// The keys that verify tokens, as JSON Web Keys. Waits for a key that is being made.
    pub fn jwks(&self) -> Result<Vec<Value>, Error> {
        self.keys.signing()?;
        let keys = self.keys.verifying();
        Ok(keys.iter().map(|key| key.jwk.clone()).collect())
    }

    /// A token for `seconds` from now.
    pub fn issue(
        &self,
        subject: &Subject,
        audiences: &[String],
        seconds: u64,
        bound: Bound,
    ) -> Result<String, Error> {
        let issued = self.issue_at(subject, audiences, seconds, bound, now())?;
        Ok(issued.token)
    }

    pub(super) fn issue_at(
        &self,
        subject: &Subject,
        audiences: &[String],
        seconds: u64,
        bound: Bound,
        now: u64,
    ) -> Result<Issued, Error> {
        let for_pod = matches!(bound, Bound::Pod { .. });
        let extended = for_pod && seconds == WARN_AFTER && *audiences == self.audiences;
        let (pod, node, secret) = match bound {
            Bound::Nothing => (None, None, None),
            Bound::Pod { pod, node } => (Some(pod), node, None),
            Bound::Secret(secret) => (None, None, Some(secret)),
            Bound::Node(node) => (None, Some(node), None),
        };
        let Subject { namespace, account } = subject;
        let claims = Claims {
            aud: Audiences::Many(audiences.to_vec()),
            exp: now + if extended { YEAR } else { seconds },
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: Private {
                namespace: namespace.clone(),
                node,
                pod,
                secret,
                serviceaccount: account.clone(),
                warnafter: extended.then_some(now + seconds),
            },
            nbf: now,
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
        };
        Ok(Issued {
            token: self.sign(&claims)?,
            expires: now + seconds,
        })
    }

    /// The token of a Secret of type `kubernetes.io/service-account-token`: it never expires, but
    /// dies with the Secret.
    pub fn issue_for_secret(&self, subject: &Subject, secret: &str) -> Result<String, Error> {
        let Subject { namespace, account } = subject;
        self.sign(&json!({
            "iss": super::service_account::LEGACY_ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account.name,
            "kubernetes.io/serviceaccount/service-account.uid": account.uid,
            "sub": format!("system:serviceaccount:{namespace}:{}", account.name),
        }))
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, Error> {
        let signing = match self.signing.get() {
            Some(signing) => signing,
            None => {
                let key = self.keys.signing()?;
                let read = Signing::new(&key)?;
                self.signing.get_or_init(|| read)
            }
        };
        Ok(jsonwebtoken::encode(&signing.header, claims, &signing.key)?)
    }
}

/// Unix seconds.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
