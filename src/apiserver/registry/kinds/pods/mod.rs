//! What pods and all workloads' pod templates share: defaulting and validation of a PodSpec.
//!
//! Called by the `core::pod` row and by every row with a template. Paths in causes start with the
//! path handed in, so that the same rules serve `spec` and `spec.template.spec`.

mod affinity;
pub mod annotations;
mod claims;
pub mod containers;
pub mod defaults;
mod dns;
mod env;
mod fields;
mod mounts;
mod paths;
pub mod probes;
pub mod qos;
pub mod references;
pub mod resources;
mod restarts;
mod security;
pub mod template;
mod tolerations;
pub mod validate;
pub mod volumes;
pub mod warnings;
pub mod whole;
mod windows;

#[cfg(test)]
mod tests;
