//! The API server: every kind is a row, every verb is written once.
//!
//! Owns the objects (through [`crate::store`]), authentication, authorization and admission.
//! Called over HTTP: by remote clients through TLS, by the components of this process through
//! [`http::client`], which skips the socket and nothing else.
//! Always true:
//! - Every write passes authorization, admission, defaulting and validation.
//! - An object is encoded once; GET, LIST and all watchers share those bytes.
//!
//! A 409 on create is in `verbs/create.rs`, a path's meaning in `http/path.rs`, a kind's default in
//! `registry/kinds/`.

pub mod admission;
mod aggregation;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
mod callout;
mod commit;
mod definitions;
pub mod discovery;
pub mod encode;
mod events;
mod expressions;
pub mod http;
mod kept;
mod metadata;
pub mod negotiate;
pub mod objects;
pub mod openapi;
pub mod patch;
pub mod query;
#[cfg(test)]
mod races;
pub mod registry;
pub mod request;
mod residence;
pub mod response;
pub mod selector;
pub mod server;
pub mod special;
pub mod start;
pub mod status;
pub mod streaming;
#[cfg(test)]
pub(crate) mod testing;
pub mod verbs;
pub mod write;
mod yaml;
