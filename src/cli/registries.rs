//! Where the node's registries and images are configured, as typed.

use std::path::PathBuf;

use super::paths::Paths;
use crate::runtime::image::Settings;

/// Read after the node's own folder, where containerd and Docker have them.
const OTHERS: [&str; 2] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Registries and images")]
pub struct Registries {
    /// Folder with HOST[:PORT]/hosts.toml or certificates for each registry; may be repeated, the first that has one for a registry decides [default: /etc/vetch/certs.d, /etc/containerd/certs.d, /etc/docker/certs.d]
    #[arg(long, value_name = "DIR")]
    registry_config_dir: Vec<PathBuf>,
    /// Docker config.json with credentials that all pods' pulls may use [default: /etc/vetch/config.json, if it exists]
    #[arg(long, value_name = "FILE")]
    registry_credentials: Option<PathBuf>,
    /// Folder whose image archives are imported at start [default: /var/lib/vetch-images, if it exists]
    #[arg(long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
}

/// Archives to import at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagesFolder {
    pub path: PathBuf,
    /// Whether somebody named it, and so expects it to be there.
    pub named: bool,
}

impl Registries {
    pub fn settings(&self, paths: &Paths) -> std::io::Result<Settings> {
        let dirs = match self.registry_config_dir.as_slice() {
            [] => default_dirs(paths),
            dirs => dirs
                .iter()
                .map(std::path::absolute)
                .collect::<Result<_, _>>()?,
        };
        let credentials = match &self.registry_credentials {
            None => paths.etc.join("config.json"),
            Some(path) => std::path::absolute(path)?,
        };
        Ok(Settings {
            dirs,
            credentials: Some(credentials),
        })
    }

    pub fn images(&self, paths: &Paths) -> std::io::Result<ImagesFolder> {
        Ok(match &self.images_dir {
            None => ImagesFolder {
                path: paths.archives(),
                named: false,
            },
            Some(path) => ImagesFolder {
                path: std::path::absolute(path)?,
                named: true,
            },
        })
    }
}

fn default_dirs(paths: &Paths) -> Vec<PathBuf> {
    let own = paths.etc.join("certs.d");
    [own].into_iter().chain(OTHERS.map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::cli::paths::RootArg;

    #[derive(clap::Parser)]
    struct Typed {
        #[command(flatten)]
        root: RootArg,
        #[command(flatten)]
        registries: Registries,
    }

    #[test]
    fn folders_as_typed() {
        let typed = |arguments: &[&str]| {
            let typed = Typed::parse_from([&["x"], arguments].concat());
            let paths = typed.root.paths().unwrap();
            let settings = typed.registries.settings(&paths).unwrap();
            (settings, typed.registries.images(&paths).unwrap())
        };
        let (settings, images) = typed(&["--root", "/r"]);
        assert_eq!(settings.dirs[0], Path::new("/r/etc/certs.d"));
        assert_eq!(settings.dirs.len(), 3);
        let credentials = settings.credentials.unwrap();
        assert_eq!(credentials, Path::new("/r/etc/config.json"));
        assert_eq!(images.path, Path::new("/r/images"));
        assert!(!images.named);
        let (settings, images) = typed(&[
            "--registry-config-dir=/a",
            "--registry-config-dir=/b",
            "--registry-credentials=/c",
            "--images-dir=/d",
        ]);
        assert_eq!(settings.dirs, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(settings.credentials.unwrap(), Path::new("/c"));
        assert!(images.named && images.path == Path::new("/d"));
        assert_eq!(typed(&[]).1.path, Path::new("/var/lib/vetch-images"));
    }
}
