//! The core group.

pub mod config;
pub mod controller;
pub mod event;
mod gated;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod pod_status;
mod pod_table;
pub mod pod_update;
pub mod service;
mod service_validate;
pub mod small;
pub mod storage;
