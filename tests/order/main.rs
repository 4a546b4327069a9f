//! Things that happen at nearly the same moment, parts that fail and host state that others undo, on a
//! running cluster: the newest wish wins, nothing is lost, and the cluster heals by itself.
//!
//! A file for each part of the program.

#[path = "../lab/mod.rs"]
mod lab;

mod edges;
mod plane;
mod pods;
mod records;
mod repair;
mod steps;
mod supervision;
mod upgrade;
