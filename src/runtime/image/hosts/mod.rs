//! What the node's owner has said of registries: folders in containerd's form (`certs.d`) and in
//! Docker's, and credentials of the node.
//!
//! Called once for each pull, so that a change of a file holds from the next pull on. Always true:
//! - No file is read past its limit.
//! - A wrong file is an error that names it; nothing is pulled past it.

mod file;
mod plan;

pub use file::{ClientFiles, Scheme, Tls};
pub use plan::{Asked, Host};

use std::{
    fs, io,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::{
    Error,
    keyring::{self, Keyring},
};
use file::File;

/// The default for all registries.
const DEFAULT: &str = "_default";
const FILE: &str = "hosts.toml";
const MAX_FILE_BYTES: u64 = 256 << 10;
const MAX_PEM_BYTES: u64 = 1 << 20;
const MAX_CREDENTIALS_BYTES: u64 = 4 << 20;
/// Entries of a registry's folder.
const MOST_ENTRIES: usize = 256;

/// Where the node's registries are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Folders with a folder for each registry; the first that has one for a registry decides.
    pub dirs: Vec<PathBuf>,
    /// A `config.json` with the node's credentials; it need not exist.
    pub credentials: Option<PathBuf>,
}

impl Settings {
    /// The hosts to ask for images of `registry`, in order. Blocking.
    pub fn hosts(&self, registry: &str) -> Result<Vec<Host>, Error> {
        let file = match self.folder(registry)? {
            None => None,
            Some(folder) => Some(read(&folder)?),
        };
        Ok(plan::hosts(registry, file))
    }

    /// The node's credentials for what is in `targets` (host and path). Blocking.
    pub fn credentials(&self, targets: &[String]) -> Result<Keyring, Error> {
        let mut keyring = Keyring::default();
        let Some(path) = &self.credentials else {
            return Ok(keyring);
        };
        match contents(path, MAX_CREDENTIALS_BYTES) {
            Ok(bytes) => keyring
                .add(&bytes, keyring::Form::Config, targets)
                .map_err(|reason| wrong(path, &reason))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(path, &error.to_string())),
        }
        Ok(keyring)
    }

    /// How another host is known that a registry sends us to: if it has a folder of its own. Blocking.
    pub fn known(&self, authority: &str) -> Result<Option<Tls>, Error> {
        let Some(folder) = self.find(names(authority, None))? else {
            return Ok(None);
        };
        let File { hosts, server } = read(&folder)?;
        let same = |host: &file::Host| match &host.url {
            None => true,
            Some(url) => url.scheme == Scheme::Https && url.authority == authority,
        };
        let found = [server].into_iter().chain(hosts).find(same);
        Ok(Some(found.unwrap_or_default().tls))
    }

    /// The folder for a registry, or the default one.
    fn folder(&self, registry: &str) -> Result<Option<PathBuf>, Error> {
        self.find(names(registry, Some(DEFAULT)))
    }

    fn find(&self, names: Vec<String>) -> Result<Option<PathBuf>, Error> {
        for dir in &self.dirs {
            for name in &names {
                let folder = dir.join(name);
                match fs::metadata(&folder) {
                    Ok(found) if found.is_dir() => return Ok(Some(folder)),
                    Ok(_) => return Err(wrong(&folder, "it must be a folder")),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error)
                        if error.raw_os_error() == Some(nix::errno::Errno::ENOTDIR as i32) =>
                    {
                        return Err(wrong(dir, "it must be a folder"));
                    }
                    Err(error) => return Err(wrong(&folder, &error.to_string())),
                }
            }
        }
        Ok(None)
    }
}

/// Names of a registry's folder, the first one that is there holds: a colon can be written `_PORT_`.
fn names(registry: &str, default: Option<&str>) -> Vec<String> {
    let with_port = registry
        .rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
        .map(|(host, port)| format!("{host}_{port}_"));
    with_port
        .into_iter()
        .chain([registry.to_owned()])
        .chain(default.map(str::to_owned))
        .collect()
}

fn read(folder: &Path) -> Result<File, Error> {
    let path = folder.join(FILE);
    match contents(&path, MAX_FILE_BYTES) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| wrong(&path, "it is not UTF-8"))?;
            file::parse(&text, folder).map_err(|error| wrong(&path, &error.to_string()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => of_docker(folder),
        Err(error) => Err(wrong(&path, &error.to_string())),
    }
}

/// Docker's form: `*.crt` are authorities, `X.cert` and `X.key` a client's certificate.
fn of_docker(folder: &Path) -> Result<File, Error> {
    let failed = |error: io::Error| wrong(folder, &error.to_string());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.path());
        if names.len() > MOST_ENTRIES {
            return Err(wrong(
                folder,
                &format!("it has more than {MOST_ENTRIES} entries"),
            ));
        }
    }
    names.sort();
    let mut server = file::Host::default();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => server.tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    return Err(wrong(
                        &path,
                        &format!("its key {} is missing", key.display()),
                    ));
                }
                server.tls.client.push(ClientFiles {
                    certificate: path,
                    key: Some(key),
                });
            }
            Some("key") if !path.with_extension("cert").exists() => {
                return Err(wrong(
                    &path,
                    "its certificate is missing: a file of the same name with .cert (.crt files are \
                     authorities)",
                ));
            }
            _ => {}
        }
    }
    Ok(File {
        hosts: Vec::new(),
        server,
    })
}

/// Certificates and keys of a host. Blocking.
pub fn pem(path: &Path) -> Result<Vec<u8>, Error> {
    contents(path, MAX_PEM_BYTES).map_err(|error| wrong(path, &error.to_string()))
}

pub fn wrong(path: &Path, reason: &str) -> Error {
    Error::Configuration {
        path: path.to_owned(),
        reason: super::excerpt(reason, 500),
    }
}

/// A file of at most so many bytes. A pipe in its place is not waited for.
fn contents(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = fs::File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::other(format!("it has more than {limit} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(files: &[(&str, &str)]) -> (tempfile::TempDir, Settings) {
        let top = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = top.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let settings = Settings {
            dirs: vec![top.path().join("one"), top.path().join("two")],
            credentials: Some(top.path().join("config.json")),
        };
        (top, settings)
    }

    fn first(settings: &Settings, registry: &str) -> String {
        settings
            .hosts(registry)
            .map_or_else(|error| error.to_string(), |hosts| hosts[0].base())
    }

    #[test]
    fn which_folder_holds() {
        let (_top, settings) = lab(&[
            ("one/a.b/hosts.toml", "server = 'https://of-a'"),
            ("one/a.b_5000_/hosts.toml", "server = 'https://underscored'"),
            ("one/a.b:5000/hosts.toml", "server = 'https://colon'"),
            ("one/a.b:80/hosts.toml", "server = 'https://colon'"),
            ("two/a.b/hosts.toml", "server = 'https://second'"),
            ("two/c.d/hosts.toml", "server = 'https://of-c'"),
            ("two/_default/hosts.toml", "server = 'https://default'"),
        ]);
        for (registry, want) in [
            ("a.b", "https://of-a"),
            ("a.b:5000", "https://underscored"),
            ("a.b:80", "https://colon"),
            ("c.d", "https://of-c"),
            ("docker.io", "https://default"),
        ] {
            assert_eq!(first(&settings, registry), want, "{registry}");
        }
        assert_eq!(first(&Settings::default(), "a.b"), "https://a.b");
    }

    #[test]
    fn other_hosts_are_known_by_a_folder_of_their_own() {
        let (top, settings) = lab(&[
            ("one/tokens.corp/ca.crt", ""),
            ("one/_default/hosts.toml", ""),
            ("one/other.corp/hosts.toml", "server = 'http://plain'"),
        ]);
        let known = settings.known("tokens.corp").unwrap().unwrap();
        assert_eq!(known.ca, [top.path().join("one/tokens.corp/ca.crt")]);
        assert_eq!(settings.known("other.corp").unwrap(), Some(Tls::default()));
        assert_eq!(settings.known("a.b").unwrap(), None);
    }

    #[test]
    fn certificates_in_dockers_form() {
        let (top, settings) = lab(&[
            ("one/a.b/ca.crt", ""),
            ("one/a.b/x.cert", ""),
            ("one/a.b/x.key", ""),
            ("one/lone.cert/x.cert", ""),
            ("one/lone.key/x.key", ""),
        ]);
        let hosts = settings.hosts("a.b").unwrap();
        let folder = top.path().join("one/a.b");
        assert_eq!(hosts[0].tls.ca, [folder.join("ca.crt")]);
        assert_eq!(hosts[0].tls.client[0].key, Some(folder.join("x.key")));
        for (registry, want) in [
            ("lone.cert", "x.key is missing"),
            ("lone.key", "its certificate is missing"),
        ] {
            let error = first(&settings, registry);
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn wrong_files_are_named() {
        let (top, settings) = lab(&[
            ("one/typo/hosts.toml", "skip_verfy = true"),
            ("one/large/hosts.toml", &"#".repeat(300 << 10)),
            ("one/file", ""),
            ("one/folder/hosts.toml/x", ""),
        ]);
        let dir = top.path().join("one");
        nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (registry, want) in [
            ("typo", "typo/hosts.toml: skip_verfy: unknown key"),
            ("large", "large/hosts.toml: it has more than 262144 bytes"),
            ("file", "file: it must be a folder"),
            ("pipe", "pipe: it must be a folder"),
            ("folder", "folder/hosts.toml: it is not a file"),
        ] {
            let error = first(&settings, registry);
            assert!(error.contains(want), "{registry}: {error}");
            assert!(error.contains(dir.to_str().unwrap()), "{error}");
        }
    }
}
