//! The small groups: a file each, most kinds a dozen lines.

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod auth;
pub mod autoscaling;
pub mod certificates;
pub mod coordination;
pub mod discovery;
pub mod networking;
pub mod policy;
pub mod rbac;
pub mod scheduling;
pub mod storage;
