//! Who a request comes from.

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{
    request::{Attributes, User},
    status::Status,
};

pub struct Authenticator {}

impl Authenticator {
    pub async fn authenticate(
        &self,
        _parts: &http::request::Parts,
        _certificates: Option<&[CertificateDer<'static>]>,
    ) -> Result<User, Status> {
        Ok(User {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..User::default()
        })
    }

    pub fn openid_configuration(&self) -> Value {
        json!({})
    }

    pub fn jwks(&self) -> Value {
        json!({})
    }
}

/// Whom a request wants to act as.
pub struct Impersonation {}

impl Impersonation {
    pub fn attributes(&self) -> Vec<Attributes> {
        Vec::new()
    }

    pub fn user(self) -> User {
        User::default()
    }
}

pub fn impersonation(_parts: &http::request::Parts) -> Result<Option<Impersonation>, Status> {
    Ok(None)
}
