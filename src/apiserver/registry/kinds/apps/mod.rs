//! The group apps: workloads that keep pods running.

pub mod daemonset;
pub mod deployment;
pub mod replicas;
pub mod replicaset;
pub mod revision;
pub mod statefulset;
