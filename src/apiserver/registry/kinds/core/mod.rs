//! The core group.

pub mod config;
pub mod controller;
pub mod event;
pub mod namespace;
pub mod node;
pub mod pod;
mod pod_table;
pub mod pod_update;
pub mod service;
mod service_validate;
pub mod small;
pub mod storage;
