//! Where everything lies. `--root DIR` moves all of it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// What a folder's mode gives to those who are neither its owner nor of its group.
const OTHERS: u32 = 0o007;

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

    pub fn under(root: &Path) -> Self {
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

    /// What claims get of the node's disk.
    pub fn volumes(&self) -> PathBuf {
        self.state.join(crate::placement::local::FOLDER)
    }

    /// Live records of pods and containers.
    pub fn runtime(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// Archives of images that the user keeps here; not ours, so that a reset leaves them.
    pub fn archives(&self) -> PathBuf {
        match &self.root {
            None => "/var/lib/vetch-images".into(),
            Some(root) => root.join("images"),
        }
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

    /// Makes them, for nobody but root. Those that are there already are closed to others but for
    /// the folder of configuration, which an administrator may have opened on purpose; files in it
    /// have modes of their own.
    pub fn make(&self) -> io::Result<()> {
        for path in self.all() {
            let failed = |error| io::Error::other(format!("create {}: {error}", path.display()));
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed)?;
            let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
            if path != self.etc && mode & OTHERS != 0 {
                let closed = fs::Permissions::from_mode(mode & 0o7777 & !OTHERS);
                fs::set_permissions(path, closed).map_err(failed)?;
            }
        }
        Ok(())
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

    #[test]
    fn folders_are_closed_to_others() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(&root.path().join("deep/root"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        paths.make().unwrap();
        assert_eq!(paths.all().map(mode), [0o700; 4]);
        for path in paths.all() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        paths.make().unwrap();
        assert_eq!(paths.all().map(mode), [0o755, 0o750, 0o750, 0o750]);
    }
}
