//! Kubernetes as one small Linux program.
//!
//! `docs/architecture.md` has the code map and says what each part must not know.

// Where they cannot print, `println!` and `eprintln!` panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod accepting;
pub mod addresses;
pub mod allocator;
pub mod announcing;
mod any_certificate;
pub mod apiserver;
pub mod backoff;
pub mod bootstrap_token;
pub mod causes;
pub mod cel;
pub mod cli;
pub mod controllers;
pub mod deletion;
pub mod dns;
pub mod events;
pub mod exposition;
pub mod format;
mod hex;
pub mod informer;
pub mod joining;
pub mod kubelet;
pub mod lab;
pub mod listener;
pub mod logging;
mod loopback;
pub mod network_policy;
pub mod node_identity;
pub mod own_ports;
pub mod pki;
pub mod placement;
mod program_text;
pub mod proxy;
pub mod queue;
pub mod repair;
pub mod runtime;
pub mod scheduler;
pub mod served;
pub mod store;
pub mod supervision;
#[cfg(test)]
mod testing;
pub mod ticks;
