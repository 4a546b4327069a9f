//! The node's private key, in a file that only root reads.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use netns::{Error, wireguard::PrivateKey};

const NAME: &str = "wireguard-private-key";

fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// The one that the node has, or a new one. What is no key is replaced: peers follow what the Node tells.
pub fn load_or_make(folder: &Path) -> Result<PrivateKey, Error> {
    let path = path(folder);
    match fs::read(&path) {
        Ok(bytes) => {
            if let Some(key) = parsed(&String::from_utf8_lossy(&bytes)) {
                return Ok(key);
            }
            tracing::warn!(path = %path.display(), "this is no key, the node gets a new one");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", &path)(error)),
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| failed("make a key for", &path)(io::Error::other(error)))?;
    let key = PrivateKey::clamped(bytes);
    write(&path, &key).map_err(failed("write", &path))?;
    Ok(key)
}

pub fn forget(folder: &Path) -> Result<(), Error> {
    let path = path(folder);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

/// As `wg genkey` writes one.
fn parsed(text: &str) -> Option<PrivateKey> {
    let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
    bytes.try_into().ok().map(PrivateKey::clamped)
}

/// Whole or not at all, and nobody else's from the first byte on.
fn write(path: &Path, key: &PrivateKey) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let aside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&aside)?;
    // One that a crash has left could be readable.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{}", BASE64_STANDARD.encode(key.bytes()))?;
    file.sync_all()?;
    fs::rename(aside, path)
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Path {
        action,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("network");
        let first = load_or_make(&inside).unwrap();
        assert_eq!(load_or_make(&inside).unwrap(), first);
        let file = path(&inside);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Damaged, it is replaced.
        fs::write(&file, "what is this?").unwrap();
        let second = load_or_make(&inside).unwrap();
        assert_ne!(second, first);
        forget(&inside).unwrap();
        forget(&inside).unwrap();
        assert!(!file.exists());
    }
}
