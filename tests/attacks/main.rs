//! Attacks on a running cluster, by a tenant, from inside a pod, by a node, a registry or a network
//! client: each is carried out, fails, and leaves the cluster healthy.
//!
//! A file for each kind of attack. `harness.rs` has what they share: tenants with few rights, and
//! the check that the cluster stayed healthy throughout.

mod harness;
#[path = "../lab/mod.rs"]
mod lab;

mod admission;
mod authorization;
mod certificates;
mod dns;
mod escapes;
mod eviction;
mod files;
mod held;
mod images;
mod limits;
mod logs;
mod network;
mod patches;
mod pod;
mod registry;
mod store;
mod streaming;
