//! How a machine becomes a node of a cluster that runs elsewhere: it finds out with its token that the cluster
//! is the right one (`discovery.rs`), and asks it for the certificate of a node (`certificate.rs`). What it got is
//! kept (`membership.rs`), and used by a client (`client.rs`).
//!
//! Always true: nothing that a server says counts before the token's signature was checked, and the token
//! itself is sent to nobody before.

pub mod certificate;
pub mod client;
pub mod discovery;
pub mod membership;
