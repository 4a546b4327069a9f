//! A word from the kernel when processes wait for memory, so that a node that runs short between two
//! looks is looked at at once.
//!
//! Source: kernel, Documentation/accounting/psi.rst, "Monitoring for pressure thresholds".

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

use tokio::io::{Interest, unix::AsyncFd};

use super::sys;

const FILE: &str = "/proc/pressure/memory";
/// Microseconds that processes have waited, within one second.
const TRIGGER: &[u8] = b"some 150000 1000000\0";

/// Rings at most once a second. Without it, on kernels that cannot, the regular looks remain.
#[derive(Debug)]
pub struct MemoryStalls {
    file: Option<AsyncFd<OwnedFd>>,
}

impl MemoryStalls {
    pub fn watch() -> Self {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let mut file = File::options().read(true).write(true).open(FILE)?;
            file.write_all(TRIGGER)?;
            sys::watch_priority(file.into())
        };
        let file = open().inspect_err(
            |error| tracing::debug!(%error, "the kernel does not say when memory runs short"),
        );
        Self { file: file.ok() }
    }

    /// Resolves when processes wait for memory; never where the kernel does not tell.
    pub async fn next(&mut self) {
        let Some(file) = &self.file else {
            return std::future::pending().await;
        };
        match file.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::debug!(%error, "the kernel no longer says when memory runs short");
                self.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[ignore = "needs root"]
    async fn a_machine_at_rest_does_not_ring() {
        let mut stalls = MemoryStalls::watch();
        let rang = tokio::time::timeout(std::time::Duration::from_millis(50), stalls.next());
        assert!(rang.await.is_err());
    }
}
