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

    pub fn all(&self) -> [&Path; 4] {
        [&self.etc, &self.state, &self.run, &self.log]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_moves_everything() {
        let paths = Paths::under(Path::new("/r"));
        assert!(paths.all().iter().all(|path| path.starts_with("/r")));
        assert!(
            Paths::system()
                .all()
                .iter()
                .all(|path| path.ends_with("vetch"))
        );
    }
}
