//! What the ConfigMap `cluster-info` of `kube-public` holds: a kubeconfig without credentials, and a
//! signature of it by each token. Pure.
//!
//! A signature is a JWS with a detached payload (RFC 7515, appendix F), made with HMAC-SHA256 and the
//! token's secret: whoever holds the token can tell that the kubeconfig, and with it the certificate
//! authority, is from somebody who holds it too.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto, errors::Error};
use serde::Deserialize;

use super::{BootstrapToken, KeptToken};

const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

/// The data of `cluster-info`, from what it holds now. What others have added stays.
pub fn signed(
    held: &BTreeMap<String, String>,
    kubeconfig: &str,
    tokens: &[KeptToken],
) -> Result<BTreeMap<String, String>, Error> {
    let mut data = held.clone();
    data.retain(|key, _| !key.starts_with(SIGNATURE));
    data.insert(KUBECONFIG.to_owned(), kubeconfig.to_owned());
    for kept in tokens.iter().filter(|kept| kept.signing) {
        let signature = sign(kubeconfig, &kept.token)?;
        data.insert(format!("{SIGNATURE}{}", kept.token.id()), signature);
    }
    Ok(data)
}

/// Why what a server shows as `cluster-info` is not to be believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    #[error("it tells nothing of the cluster")]
    Empty,
    #[error("it knows no token {0}: the token may have expired, or be another cluster's")]
    UnknownToken(String),
    #[error(
        "it is not signed by token {0}: the second half of the token is wrong, or somebody else answers"
    )]
    Signature(String),
}

/// The kubeconfig in the data of a `cluster-info`, if `token` has signed it.
pub fn verified<'a>(
    data: &'a BTreeMap<String, String>,
    token: &BootstrapToken,
) -> Result<&'a str, Unverified> {
    let kubeconfig = data.get(KUBECONFIG).ok_or(Unverified::Empty)?;
    let id = || token.id().to_owned();
    let signature = data
        .get(&format!("{SIGNATURE}{}", token.id()))
        .ok_or_else(|| Unverified::UnknownToken(id()))?;
    match is_signed(kubeconfig, signature, token) {
        true => Ok(kubeconfig),
        false => Err(Unverified::Signature(id())),
    }
}

/// `HEADER..SIGNATURE`.
fn sign(payload: &str, token: &BootstrapToken) -> Result<String, Error> {
    let header = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, token.id());
    let header = BASE64.encode(header);
    let key = EncodingKey::from_secret(token.secret().as_bytes());
    let signature = crypto::sign(message(&header, payload).as_bytes(), &key, Algorithm::HS256)?;
    Ok(format!("{header}..{signature}"))
}

fn message(header: &str, payload: &str) -> String {
    format!("{header}.{}", BASE64.encode(payload))
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

fn is_signed(payload: &str, signature: &str, token: &BootstrapToken) -> bool {
    let Some((header, signature)) = signature.split_once("..") else {
        return false;
    };
    let read = BASE64.decode(header).ok();
    let read = read.and_then(|json| serde_json::from_slice::<Header>(&json).ok());
    let key = DecodingKey::from_secret(token.secret().as_bytes());
    let message = message(header, payload);
    read.is_some_and(|header| header.alg == "HS256" && header.kid == token.id())
        && crypto::verify(signature, message.as_bytes(), &key, Algorithm::HS256).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap_token::Expiration;

    fn token(text: &str) -> BootstrapToken {
        text.parse().expect("a token")
    }

    fn kept(text: &str, signing: bool) -> KeptToken {
        KeptToken {
            token: token(text),
            expiration: Expiration::Never,
            signing,
            authentication: true,
            groups: Vec::new(),
            description: String::new(),
        }
    }

    #[test]
    fn a_signature_as_others_make_it() {
        // By Python's hmac, of the same header and payload.
        let token = token("joshua.0123456789abcdef");
        let want =
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..wBscoNuRn3xFI0VItw-c1-5hiFJlx2WD76L5QTNipKk";
        assert_eq!(sign("Hello, world", &token).expect("signed"), want);
        assert!(is_signed("Hello, world", want, &token));
    }

    #[test]
    fn who_signs() {
        let tokens = [
            kept("signer.0123456789abcdef", true),
            kept("others.0123456789abcdef", false),
        ];
        let held = BTreeMap::from([
            ("jws-kubeconfig-gone00".to_owned(), "x".to_owned()),
            ("kubeconfig".to_owned(), "old".to_owned()),
            ("note".to_owned(), "mine".to_owned()),
        ]);
        let data = signed(&held, "new", &tokens).expect("signed");
        let keys: Vec<&str> = data.keys().map(String::as_str).collect();
        assert_eq!(keys, ["jws-kubeconfig-signer", "kubeconfig", "note"]);
        assert_eq!(data[KUBECONFIG], "new");
        // It is the same every time: nothing is written where nothing changed.
        assert_eq!(signed(&data, "new", &tokens).expect("signed"), data);
    }

    #[test]
    fn what_is_believed() {
        let signer = kept("signer.0123456789abcdef", true);
        let data = signed(&BTreeMap::new(), "new", std::slice::from_ref(&signer)).expect("signed");
        assert_eq!(verified(&data, &signer.token), Ok("new"));

        let changed = |key: &str, value: &str| {
            let mut data = data.clone();
            data.insert(key.to_owned(), value.to_owned());
            data
        };
        let key = "jws-kubeconfig-signer";
        let other = token("signer.fedcba9876543210");
        assert_eq!(
            verified(&data, &other),
            Err(Unverified::Signature("signer".to_owned()))
        );
        for data in [
            changed(KUBECONFIG, "else"),
            changed(key, ""),
            changed(key, ".."),
            changed(key, &data[key].replace("..", ".")),
            // Signed by nobody: an algorithm that needs no secret.
            changed(
                key,
                &format!("{}..", BASE64.encode(r#"{"alg":"none","kid":"signer"}"#)),
            ),
            changed(key, &data[key].replacen('J', "K", 1)),
        ] {
            assert_eq!(
                verified(&data, &signer.token),
                Err(Unverified::Signature("signer".to_owned())),
                "{data:?}"
            );
        }
        let unknown = verified(&data, &token("nobody.0123456789abcdef"));
        assert_eq!(unknown, Err(Unverified::UnknownToken("nobody".to_owned())));
        assert_eq!(
            verified(&BTreeMap::new(), &signer.token),
            Err(Unverified::Empty)
        );
    }
}
