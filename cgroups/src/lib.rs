//! Control groups v1, hybrid and v2.
//!
//! Owns the files of the kernel's cgroup trees; knows nothing of Kubernetes. Called by the runtime
//! and the kubelet.
//! Always true:
//! - What a limit becomes is decided by the pure [`limits::plan`]; [`Group`] only writes it.
//! - An error names the operation, the path and, for writes, the value.
//!
//! Start at [`Hierarchy::detect`].

mod bpf;
mod controllers;
pub mod devices;
mod freezer;
pub mod group;
pub mod layout;
pub mod limits;
mod root;
mod stats;
mod wait;

pub use group::Group;
pub use layout::{Hierarchy, Layout};
pub use limits::{Current, Limits, Write, plan};
pub use root::MachineMemory;
pub use stats::{Stats, Throttling};

use std::{io, path::PathBuf, time::Duration};

/// Why a control group could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("write {value:?} to {path}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("read {path}: unexpected {text:?}")]
    Parse { path: PathBuf, text: String },
    #[error("{path} still holds {pids} processes after {waited:?}")]
    Busy {
        path: PathBuf,
        pids: usize,
        waited: Duration,
    },
    #[error("{path} is not frozen after {waited:?}")]
    NotFrozen { path: PathBuf, waited: Duration },
    #[error("controller {0} is not mounted")]
    NoController(String),
    #[error("cgroup name {0:?} is not a relative path of plain names")]
    Name(String),
    #[error("memory and swap together ({swap}) are below memory alone ({memory})")]
    Swap { memory: i64, swap: i64 },
    #[error("a swap limit on v2 needs a memory limit beside it")]
    SwapAlone,
}
