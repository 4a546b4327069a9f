//! Network namespaces, links, addresses, routes, bridges and nf_tables over netlink.
//!
//! Owns the encoding of every message that changes a network namespace; knows nothing of
//! Kubernetes. Called by the kubelet (pod wiring), the proxy (services), the runtime
//! (namespaces) and the lab (whole hosts).
//! Always true:
//! - Calls block, for microseconds: the kernel answers inside `sendmsg`. Async callers use a
//!   blocking thread. Only a [`monitor::Monitor`] is awaited.
//! - A socket belongs to the namespace of the thread that opened it, for good.
//! - An error names the message that failed and carries the kernel's own words where it has any.
//!
//! Start at [`route::Socket`] for links, at [`wireguard::Socket`] for the peers of some of them, at [`nft::Batch`] for
//! packet rules, at [`monitor::Monitor`] for what others change, and at [`host::Process`] for a host of one's own.

pub mod announce;
pub mod conntrack;
pub mod host;
mod listeners;
pub mod monitor;
pub mod namespace;
pub mod nft;
pub mod route;
mod socket;
pub mod static_routes;
pub mod sysctl;
mod wire;
pub mod wireguard;

pub use namespace::Namespace;

use std::{io, path::PathBuf};

/// Why something in a network namespace could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    #[error("{action} {path}")]
    Path {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The kernel refused a message. `hint` is its own explanation, where it gave one.
    #[error("{what}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Kernel {
        what: String,
        hint: Option<String>,
        source: io::Error,
    },
    #[error("{what}: the kernel's answer is cut short")]
    Malformed { what: String },
    #[error("the thread in the namespace panicked")]
    Panicked,
}

impl Error {
    /// The kernel's error number, if the kernel had a say.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Path { source, .. } | Self::Kernel { source, .. } => {
                source.raw_os_error()
            }
            Self::Malformed { .. } | Self::Panicked => None,
        }
    }

    /// What was to be removed or read is not there.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
        )
    }

    /// No route leads there.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
        )
    }

    /// What was to be made is there already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}
