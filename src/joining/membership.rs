//! What a machine keeps of the cluster that it has joined.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::addresses::family::PerFamily;
use crate::{format, pki};

/// The format of the record, and the oldest that is still read.
const RECORD: u32 = 1;
const OLDEST: u32 = 1;

/// The cluster, this node of it, and by what it is known there. Holds keys: the file is its owner's alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    #[serde(default)]
    version: u32,
    pub node: String,
    /// `https://host:port` each.
    pub servers: Vec<String>,
    pub ca: String,
    pub client: KeyPair,
    /// `None` as long as nobody has signed one.
    pub serving: Option<KeyPair>,
    /// As kube-proxy; the same.
    pub proxy: Option<KeyPair>,
    /// The ranges of this node's pods and of services, once they are known.
    pub ranges: Option<Ranges>,
    /// What the cluster has said since it has removed this node for good.
    #[serde(default)]
    pub removed: Option<String>,
}

/// A certificate with its key, both as PEM.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeyPair {
    pub certificate: String,
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    pub pods: PerFamily<ipnet::IpNet>,
    pub services: PerFamily<ipnet::IpNet>,
}

impl From<pki::Identity> for KeyPair {
    fn from(pki::Identity { certificate, key }: pki::Identity) -> Self {
        Self { certificate, key }
    }
}

impl From<KeyPair> for pki::Identity {
    fn from(KeyPair { certificate, key }: KeyPair) -> Self {
        Self { certificate, key }
    }
}

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Unreadable {
        path: PathBuf,
        source: format::Unreadable,
    },
    #[error("make {path}")]
    Unwritable {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Write(#[from] pki::Error),
}

impl Membership {
    pub fn new(node: &str, servers: Vec<String>, ca: &str, client: pki::Identity) -> Self {
        Self {
            version: RECORD,
            node: node.to_owned(),
            servers,
            ca: ca.to_owned(),
            client: client.into(),
            serving: None,
            proxy: None,
            ranges: None,
            removed: None,
        }
    }

    /// `None` where this machine has joined nothing.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        match fs::read(path) {
            Ok(bytes) => format::parse(&bytes, OLDEST..=RECORD)
                .map(Some)
                .map_err(|source| Error::Unreadable {
                    path: path.to_owned(),
                    source,
                }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// All of it or nothing, also when the machine loses its power.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string(self).map_err(|source| Error::Unwritable {
            path: path.to_owned(),
            source,
        })?;
        pki::write_private(path, &text)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_found_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("membership.json");
        assert!(Membership::load(&path).expect("nothing").is_none());
        let identity = pki::Identity {
            certificate: "c".to_owned(),
            key: "k".to_owned(),
        };
        let servers = vec!["https://192.0.2.1:6443".to_owned()];
        let mut kept = Membership::new("n", servers, "ca", identity.clone());
        kept.save(&path).expect("kept");
        kept.ranges = Some(Ranges {
            pods: "10.42.1.0/24".parse().expect("a range"),
            services: "10.96.0.0/12".parse().expect("a range"),
        });
        kept.removed = Some("why".to_owned());
        kept.save(&path).expect("kept");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let found = Membership::load(&path).expect("readable").expect("there");
        assert_eq!(found.node, "n");
        assert_eq!(found.ranges, kept.ranges);
        assert_eq!(found.removed, kept.removed);
        assert!(pki::Identity::from(found.client) == identity);
        fs::write(&path, r#"{"version": 99}"#).expect("written");
        let error = Membership::load(&path).err().expect("too new");
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    }
}
