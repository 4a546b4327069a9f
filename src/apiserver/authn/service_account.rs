//! Checks service account tokens: first the signature, then that what they are bound to lives.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    AUTHENTICATED, CREDENTIAL_ID, Rejected, Verified,
    issuer::{Claims, Reference, TokenIssuer, now},
};
use crate::{
    apiserver::{objects::Lookup, request::User},
    hex::hex,
    pki::{self, TokenKeys},
};

/// The issuer that tokens kept in Secrets name.
pub(super) const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Signatures remembered; a full memory is emptied.
const REMEMBERED: usize = 4096;
/// Larger tokens are checked each time.
const REMEMBERED_BYTES: usize = 4 << 10;
/// Larger tokens are not looked at.
pub(super) const MAX_TOKEN_BYTES: usize = 64 << 10;
/// An object being deleted still counts for this long, so that a pod can say good-bye.
const GRACE_SECONDS: i64 = 60;
/// How far clocks may be apart.
const LEEWAY_SECONDS: u64 = 10;

/// A token whose signature is ours.
#[derive(Clone, Debug)]
enum Token {
    Current(Box<Claims>),
    Legacy(Legacy),
}

/// The claims of a token kept in a Secret.
#[derive(Clone, Debug, Deserialize)]
struct Legacy {
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
}

/// Tokens whose signature was checked, by their SHA-256.
#[derive(Default)]
struct Remembered(HashMap<[u8; 32], Arc<Token>>);

impl Remembered {
    /// `bytes`: of the token.
    fn keep(&mut self, hash: [u8; 32], bytes: usize, token: Arc<Token>) {
        if bytes > REMEMBERED_BYTES {
            return;
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(hash, token);
    }
}

pub(super) struct Verifier {
    issuer: String,
    audiences: Vec<String>,
    keys: Arc<TokenKeys>,
    remembered: Mutex<Remembered>,
}

fn rejected<T>(why: impl Into<String>) -> Result<T, Rejected> {
    Err(Rejected(why.into()))
}

/// What a token signed by `algorithm` must be, whatever its header says.
fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear(); // tokens in Secrets have no end
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.validate_aud = false; // which audiences count is for the caller to say
    validation
}

/// Checks the signature with a key, by that key's own algorithm alone.
fn decode(token: &str, key: &pki::TokenKey) -> Result<Value, jsonwebtoken::errors::Error> {
    let pem = key.public_pem.as_bytes();
    let (algorithm, decoding) = match key.algorithm {
        pki::Algorithm::Rs256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)?),
        pki::Algorithm::Es256 => (Algorithm::ES256, DecodingKey::from_ec_pem(pem)?),
    };
    Ok(jsonwebtoken::decode(token, &decoding, &validation(algorithm))?.claims)
}

impl Verifier {
    pub fn new(issuer: &TokenIssuer) -> Self {
        Self {
            issuer: issuer.issuer().to_owned(),
            audiences: issuer.audiences().to_vec(),
            keys: issuer.keys().clone(),
            remembered: Mutex::default(),
        }
    }

    pub async fn verify(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn Lookup,
    ) -> Result<Verified, Rejected> {
        match &*self.signed(token)? {
            Token::Current(claims) => {
                let audiences: Vec<String> = audiences
                    .iter()
                    .filter(|audience| claims.aud.contains(audience))
                    .cloned()
                    .collect();
                if audiences.is_empty() {
                    return rejected("token audiences do not match");
                }
                if claims.exp + LEEWAY_SECONDS < now() {
                    return rejected("service account token has expired");
                }
                let user = current_user(claims, lookup).await?;
                Ok(Verified { user, audiences })
            }
            Token::Legacy(claims) => {
                // They were made for the API only.
                let audiences: Vec<String> = audiences
                    .iter()
                    .filter(|audience| self.audiences.contains(audience))
                    .cloned()
                    .collect();
                if audiences.is_empty() {
                    return rejected("token audiences do not match");
                }
                let user = legacy_user(claims, token, lookup).await?;
                Ok(Verified { user, audiences })
            }
        }
    }

    fn signed(&self, token: &str) -> Result<Arc<Token>, Rejected> {
        if token.len() > MAX_TOKEN_BYTES {
            return rejected(format!("token is larger than {MAX_TOKEN_BYTES} bytes"));
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let remembered = || {
            self.remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = remembered().0.get(&hash) {
            return Ok(known.clone());
        }
        let known = Arc::new(self.check_signature(token)?);
        remembered().keep(hash, token.len(), known.clone());
        Ok(known)
    }

    fn check_signature(&self, token: &str) -> Result<Token, Rejected> {
        let header = jsonwebtoken::decode_header(token);
        let wanted = header.map_err(|error| Rejected(error.to_string()))?.kid;
        let mut keys = self.keys.verifying();
        if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
            keys.retain(|key| key.id == wanted);
        }
        let mut why = "invalid signature, no keys found".to_owned();
        let claims = keys.iter().find_map(|key| {
            let decoded = decode(token, key).map_err(|error| why = error.to_string());
            decoded.ok()
        });
        let Some(claims) = claims else {
            return rejected(why);
        };
        let text = |error: serde_json::Error| Rejected(error.to_string());
        match claims["iss"].as_str() {
            Some(issuer) if issuer == self.issuer => {
                let claims: Claims = serde_json::from_value(claims).map_err(text)?;
                Ok(Token::Current(Box::new(claims)))
            }
            Some(LEGACY_ISSUER) => Ok(Token::Legacy(serde_json::from_value(claims).map_err(text)?)),
            _ => rejected("token of an unknown issuer"),
        }
    }
}

async fn current_user(claims: &Claims, lookup: &dyn Lookup) -> Result<User, Rejected> {
    let private = &claims.kubernetes;
    let namespace = &private.namespace;
    alive(
        lookup,
        "serviceaccounts",
        namespace,
        &private.serviceaccount,
    )
    .await?;
    let mut user = account_user(namespace, &private.serviceaccount);
    let mut extra = |key: &str, value: &str| {
        let key = format!("authentication.kubernetes.io/{key}");
        user.extra.insert(key, vec![value.to_owned()]);
    };
    if let Some(secret) = &private.secret {
        alive(lookup, "secrets", namespace, secret).await?;
    }
    if let Some(pod) = &private.pod {
        alive(lookup, "pods", namespace, pod).await?;
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        // A pod's token outlives its node's object; a node's own does not.
        if private.pod.is_none() {
            alive(lookup, "nodes", "", node).await?;
        }
        extra("node-name", &node.name);
        if !node.uid.is_empty() {
            extra("node-uid", &node.uid);
        }
    }
    if !claims.jti.is_empty() {
        extra("credential-id", &format!("JTI={}", claims.jti));
    }
    Ok(user)
}

async fn legacy_user(claims: &Legacy, token: &str, lookup: &dyn Lookup) -> Result<User, Rejected> {
    let account = Reference {
        name: claims.account.clone(),
        uid: claims.uid.clone(),
    };
    alive(lookup, "serviceaccounts", &claims.namespace, &account).await?;
    let secret = lookup
        .get("secrets", &claims.namespace, &claims.secret)
        .await;
    let kept = secret
        .as_ref()
        .and_then(|secret| secret["data"]["token"].as_str());
    if kept.and_then(|kept| BASE64_STANDARD.decode(kept).ok()) != Some(token.as_bytes().to_vec()) {
        return rejected("service account token has been invalidated");
    }
    let mut user = account_user(&claims.namespace, &account);
    let fingerprint = hex(&Sha256::digest(token));
    let credential = vec![format!("SHA256={fingerprint}")];
    user.extra.insert(CREDENTIAL_ID.to_owned(), credential);
    Ok(user)
}

/// The user that a service account is.
fn account_user(namespace: &str, account: &Reference) -> User {
    User {
        name: format!("system:serviceaccount:{namespace}:{}", account.name),
        uid: Some(account.uid.clone()),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            AUTHENTICATED.to_owned(),
        ],
        extra: BTreeMap::new(),
    }
}

/// Whether exactly this incarnation exists and was not deleted a while ago.
async fn alive(
    lookup: &dyn Lookup,
    plural: &str,
    namespace: &str,
    reference: &Reference,
) -> Result<(), Rejected> {
    let Reference { name, uid } = reference;
    let Some(object) = lookup.get(plural, namespace, name).await else {
        return rejected(format!("{plural} {name:?} of the token does not exist"));
    };
    let metadata = &object["metadata"];
    if metadata["uid"].as_str() != Some(uid) {
        return rejected(format!("{plural} {name:?} is not the one of the token"));
    }
    let deleted = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|at| at.parse::<jiff::Timestamp>().ok());
    if let Some(deleted) = deleted
        && jiff::Timestamp::now().as_second() - deleted.as_second() > GRACE_SECONDS
    {
        return rejected(format!("{plural} {name:?} of the token was deleted"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let token = Arc::new(Token::Legacy(Legacy {
            namespace: String::new(),
            secret: String::new(),
            account: String::new(),
            uid: String::new(),
        }));
        let mut remembered = Remembered::default();
        for number in 0..2 * REMEMBERED + 1 {
            let hash: [u8; 32] = Sha256::digest(number.to_be_bytes()).into();
            remembered.keep(hash, REMEMBERED_BYTES + 1, token.clone());
            assert!(!remembered.0.contains_key(&hash));
            remembered.keep(hash, REMEMBERED_BYTES, token.clone());
            assert!(remembered.0.contains_key(&hash));
            assert!(remembered.0.len() <= REMEMBERED);
        }
    }
}
