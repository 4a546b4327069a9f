//! Labs: clusters of several machines on one, for trying things and for CI jobs.
//!
//! Owns the hosts that stand for machines: their namespaces, the links between them, and what goes wrong with them
//! on purpose. What runs on a host is this same program, started as a user would (`vetch up`, `vetch agent`).
//! Called by `cli` only. `plan.rs` says what a lab consists of and what must be done, and does nothing;
//! `record.rs` keeps it on disk; `folder.rs` has the files, `holder.rs` the hosts, `network.rs` the links, `daemons.rs`
//! what runs; `faults.rs` and `lifecycle.rs` are what users ask for.
//! Always true:
//! - What a lab has on the machine follows from its record, which is written before any of it is made. A command
//!   that is killed at any moment leaves nothing that `lab down` does not find.
//! - One command at a time changes a lab (`folder.rs`, the lock).
//! - Nothing is known of processes but what the kernel tells: a host lives as long as its first process holds the
//!   lock of its file.

mod daemons;
mod exec;
mod faults;
mod folder;
pub mod holder;
mod lifecycle;
mod network;
pub mod plan;
mod record;

use std::{io, net::IpAddr, path::PathBuf, time::Duration};

pub use self::{
    daemons::kubeconfig,
    exec::exec,
    faults::{Fault, heal, inflict},
    folder::Labs,
    lifecycle::{Row, down, list, up},
    plan::{IpFamily, Name, Size, Wanted},
};
use crate::{addresses::family::Family, format, pki};

/// Why a lab could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no lab {name}: `vetch lab up{flags}` makes it")]
    NoLab { name: Name, flags: String },
    #[error("there is a lab {name} already: `vetch lab down{flags}` removes it")]
    Exists { name: Name, flags: String },
    #[error("another command changes the lab {0} just now: wait for its end, and try again")]
    Busy(Name),
    #[error("the lab {name} is half made or half removed: `vetch lab down{flags}` removes it")]
    HalfMade { name: Name, flags: String },
    #[error("the lab has no host {host}: its hosts are {}", hosts.join(", "))]
    NoHost { host: String, hosts: Vec<String> },
    #[error("the host {host} is off: `vetch lab heal {host}{flags}` starts it")]
    Off { host: String, flags: String },
    #[error("{0} is the lab's network, and no machine that could fail so")]
    NoMachine(String),
    #[error(
        "no range of {family} addresses is free for the lab: of {} routes of this machine take every part",
        plan::pools(*family)
    )]
    NoRange { family: Family },
    #[error(
        "this machine's kernel has no IPv6, which the lab needs: boot it without `ipv6.disable=1`, or make the lab \
         with --ip-family ipv4"
    )]
    NoIpv6,
    #[error(
        "{path} is too long a name for a host's folder, by {over} bytes: sockets in it would have longer names than \
         the kernel takes; use a shorter --name or --root"
    )]
    LongPath { path: PathBuf, over: usize },
    #[error(
        "this kernel has no network emulator, which delays and loses packets: `modprobe sch_netem`, or boot a kernel \
         with CONFIG_NET_SCH_NETEM (Debian's and Fedora's have it); `vetch lab cut` works without"
    )]
    NoEmulator,
    /// A program of a host failed, and said so.
    #[error("{host}: {said}")]
    Failed { host: String, said: String },
    #[error("{what} took longer than {} s", longest.as_secs())]
    Late { what: String, longest: Duration },
    #[error("not ready after {} s: {}", longest.as_secs(), hosts.join(", "))]
    NotReady {
        hosts: Vec<String>,
        longest: Duration,
    },
    #[error("interrupted")]
    Interrupted,
    #[error("the address {0} of the lab's server leads to no cluster")]
    NoCluster(IpAddr, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("run {program}")]
    Run { program: String, source: io::Error },
    #[error("read the lab's record {path}")]
    Unreadable {
        path: PathBuf,
        source: format::Unreadable,
    },
    #[error("make the lab's record")]
    Unwritable(#[source] serde_json::Error),
    #[error(transparent)]
    Write(#[from] pki::Error),
    #[error(transparent)]
    Network(#[from] netns::Error),
    #[error(transparent)]
    Groups(#[from] cgroups::Error),
}

impl Error {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
