//! Where everything lies. `--root DIR` moves all of it.

use std::path::{Path, PathBuf};

/// Shared by every subcommand that touches a cluster.
#[derive(Clone, Debug, clap::Args)]
pub struct RootArg {
    /// Keep all state below this folder, instead of in /etc/vetch, /var/lib/vetch and /run/vetch
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl RootArg {
    pub fn paths(&self) -> std::io::Result<Paths> {
        match &self.root {
            Some(root) => Ok(Paths::under(&std::path::absolute(root)?)),
            None => Ok(Paths::system()),
        }
    }

    /// The flag as the user would have to type it again.
    pub fn flag(&self) -> String {
        match &self.root {
            Some(root) => format!(" --root {}", root.display()),
            None => String::new(),
        }
    }
}

/// The folders of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Configuration and the admin kubeconfig.
    pub etc: PathBuf,
    /// What survives a reboot.
    pub state: PathBuf,
    /// Sockets and live records.
    pub run: PathBuf,
    /// Container logs, and the daemon's.
    pub log: PathBuf,
    /// The folder that `--root` named.
    pub root: Option<PathBuf>,
}

impl Paths {
    fn system() -> Self {
        Self {
            etc: "/etc/vetch".into(),
            state: "/var/lib/vetch".into(),
            run: "/run/vetch".into(),
            log: "/var/log/vetch".into(),
            root: None,
        }
    }

    fn under(root: &Path) -> Self {
        Self {
            etc: root.join("etc"),
            state: root.join("lib"),
            run: root.join("run"),
            log: root.join("log"),
            root: Some(root.to_owned()),
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.etc.join("admin.kubeconfig")
    }

    /// Pods that run without the API server having been asked.
    pub fn static_pods(&self) -> PathBuf {
        self.etc.join("manifests")
    }

    /// The daemon's own socket, for `down` and `image`.
    pub fn control_socket(&self) -> PathBuf {
        self.run.join("vetch.sock")
    }

    /// Locked while a daemon runs; holds its process id.
    pub fn lock(&self) -> PathBuf {
        self.run.join("vetch.lock")
    }

    pub fn daemon_log(&self) -> PathBuf {
        self.log.join("vetch.log")
    }

    /// Tells installations on one machine apart in names that the kernel shares: links, tables,
    /// cgroups. Empty for the system's own.
    pub fn tag(&self) -> String {
        let Some(root) = &self.root else {
            return String::new();
        };
        // FNV-1a: stable over releases, unlike the standard library's hasher.
        let hash = root.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        format!("{hash:08x}")
    }

    pub fn all(&self) -> [&Path; 4] {
        [&self.etc, &self.state, &self.run, &self.log]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_kernel_differ_by_root() {
        assert_eq!(Paths::system().tag(), "");
        let (a, b) = (Paths::under(Path::new("/a")), Paths::under(Path::new("/b")));
        assert_ne!(a.tag(), b.tag());
        assert_eq!(a.tag(), Paths::under(Path::new("/a")).tag());
        assert_eq!(a.tag().len(), 8);
    }
}
