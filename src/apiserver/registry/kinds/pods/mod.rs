//! What pods and all workloads' pod templates share: defaulting and validation of a PodSpec.
//!
//! Called by the `core::pod` row and by every row with a template. Paths in causes start with the
//! path handed in, so that the same rules serve `spec` and `spec.template.spec`.

mod affinity;
pub mod containers;
pub mod defaults;
mod dns;
pub mod probes;
pub mod qos;
pub mod references;
pub mod resources;
mod security;
pub mod template;
pub mod validate;
pub mod volumes;
pub mod whole;
