//! The API server: every kind is a row, every verb is written once.
//!
//! Owns the objects (through [`crate::store`]), authentication, authorization and admission.
//! Called over HTTP: by remote clients through TLS, by the components of this process through
//! [`Handle::client`], which skips the socket and nothing else.
//! Always true:
//! - Every write passes authorization, admission, defaulting and validation.
//! - An object is encoded once; GET, LIST and all watchers share those bytes.

pub mod admission;
pub mod authn;
pub mod authz;
pub mod objects;
pub mod registry;
pub mod request;
pub mod special;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
