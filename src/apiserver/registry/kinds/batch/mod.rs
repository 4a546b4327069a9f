//! The group batch.

pub mod cronjob;
pub mod job;
