//! Who asks: from a request's certificate or token to a [`User`].
//!
//! Called by the HTTP layer once per request, before authorization. Reads objects through
//! [`Lookup`] only.
//! Always true:
//! - A credential that is present but wrong is an error, never an anonymous user.
//! - The certificates of a node that was removed for good say nothing any more.
//! - A service account's token dies with the account, pod, node or secret it is bound to: only its
//!   signature is remembered, what it is bound to is looked up each time.

mod bearer;
mod bootstrap_token;
mod impersonate;
mod issuer;
mod removed;
mod reviews;
mod service_account;
#[cfg(test)]
mod tests;
mod token_request;

use std::{collections::BTreeMap, sync::Arc};

use http::request::Parts;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use self::{bearer::bearer_token, service_account::Verifier};
pub use self::{
    impersonate::{Impersonation, impersonation},
    issuer::{Bound, DEFAULT_ISSUER, Reference, Subject, TokenIssuer},
    reviews::{SelfSubjectReviews, TokenReviews},
    token_request::TokenRequests,
};
use super::{
    objects::Lookup,
    request::User,
    status::{Reason, Status},
};
use crate::{
    bootstrap_token::BootstrapToken,
    hex::hex,
    pki::{Clients, Holder},
};

pub const ANONYMOUS: &str = "system:anonymous";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// A user that a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub user: User,
    /// Those asked for that the token is meant for.
    pub audiences: Vec<String>,
}

/// Why a token was not accepted; for TokenReview and the log, never for the requester.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub(crate) String);

/// Turns credentials into users.
pub struct Authenticator {
    issuer: Arc<TokenIssuer>,
    verifier: Verifier,
    clients: Arc<Clients>,
    lookup: Arc<dyn Lookup>,
}

impl Authenticator {
    pub fn new(issuer: Arc<TokenIssuer>, clients: Arc<Clients>, lookup: Arc<dyn Lookup>) -> Self {
        Self {
            verifier: Verifier::new(&issuer),
            issuer,
            clients,
            lookup,
        }
    }

    /// Who signs the service accounts' tokens.
    pub fn issuer(&self) -> &TokenIssuer {
        &self.issuer
    }

    /// The user behind a request. `shown`: the client's certificates, judged here. A good
    /// certificate counts more than a token, a good token more than a bad certificate. Without any
    /// credential the user is anonymous.
    pub async fn authenticate(
        &self,
        parts: &Parts,
        shown: Option<&[CertificateDer<'static>]>,
    ) -> Result<User, Status> {
        let refused = match shown.map_or(Ok(None), |chain| self.clients.holder(chain)) {
            Ok(Some(holder)) => match removed::refusal(&holder, &*self.lookup).await {
                None => return Ok(certificate_user(holder)),
                Some(why) => {
                    tracing::debug!(user = holder.user, "certificate of a removed node rejected");
                    Some(why)
                }
            },
            Ok(None) => None,
            Err(why) => {
                tracing::debug!(%why, "certificate rejected");
                Some(unauthorized())
            }
        };
        let Some(token) = bearer_token(parts) else {
            return refused.map_or_else(|| Ok(anonymous()), Err);
        };
        match self.token(&token, self.issuer.audiences()).await {
            Ok(verified) => Ok(verified.user),
            Err(why) => {
                tracing::debug!(%why, "token rejected");
                Err(unauthorized())
            }
        }
    }

    /// The user a token stands for, if it is meant for one of `audiences`.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<Verified, Rejected> {
        if let Ok(token) = token.parse::<BootstrapToken>() {
            let user = bootstrap_token::user(&token, &*self.lookup).await?;
            return Ok(Verified {
                user,
                audiences: audiences.to_vec(),
            });
        }
        self.verifier.verify(token, audiences, &*self.lookup).await
    }
}

/// `/.well-known/openid-configuration`: where to find the keys of the issuer.
pub fn openid_configuration(issuer: &TokenIssuer) -> Result<Value, issuer::Error> {
    let keys = issuer.jwks()?;
    let mut algorithms: Vec<&Value> = Vec::new();
    for key in &keys {
        if !algorithms.contains(&&key["alg"]) {
            algorithms.push(&key["alg"]);
        }
    }
    Ok(json!({
        "issuer": issuer.issuer(),
        "jwks_uri": format!("{}/openid/v1/jwks", issuer.issuer()),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    }))
}

/// `/openid/v1/jwks`: the keys that verify service account tokens.
pub fn jwks(issuer: &TokenIssuer) -> Result<Value, issuer::Error> {
    Ok(json!({ "keys": issuer.jwks()? }))
}

pub fn anonymous() -> User {
    User {
        name: ANONYMOUS.to_owned(),
        groups: vec![UNAUTHENTICATED.to_owned()],
        ..User::default()
    }
}

fn unauthorized() -> Status {
    Status::new(Reason::Unauthorized, "Unauthorized")
}

/// The holder of a certificate, each of its organizations a group.
fn certificate_user(holder: Holder) -> User {
    let mut groups = holder.groups;
    groups.push(AUTHENTICATED.to_owned());
    User {
        name: holder.user,
        uid: None,
        groups,
        extra: BTreeMap::from([(
            CREDENTIAL_ID.to_owned(),
            vec![format!("X509SHA256={}", hex(&holder.fingerprint))],
        )]),
    }
}

/// A user as reviews show it.
fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if let Some(uid) = &user.uid {
        info["uid"] = json!(uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
