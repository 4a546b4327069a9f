//! Images on this node: pull, import, list, remove, and their unpacked layers.
//!
//! Owns `images/` in the node's state folder. Called by the kubelet and the command line.
//! Always true:
//! - A layer is downloaded, checked against its digest and unpacked once, streamed, never held in
//!   memory.
//! - An image is listed only when all of it is there; a cut pull leaves only finished layers.

use std::{path::PathBuf, sync::Arc};

/// The node's images; cheap to clone.
#[derive(Clone, Debug)]
pub struct Images {}

/// One image that is wholly here.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:...` of its configuration.
    pub id: String,
    /// Full names with tag: `docker.io/library/nginx:1.27`.
    pub names: Vec<String>,
    /// Full names with digest: `docker.io/library/nginx@sha256:...`.
    pub digests: Vec<String>,
    pub size_bytes: u64,
    pub config: oci_spec::image::ImageConfiguration,
    /// Unpacked layer folders, lowest first.
    pub layers: Vec<PathBuf>,
}

/// User name and password, or a token, for one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    Anonymous,
    Basic { username: String, password: String },
    Bearer(String),
}

/// Bytes so far, of how many (0: not known yet).
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

impl Images {
    pub async fn open(_state_dir: PathBuf) -> Result<Self, Error> {
        Err(Error::Unsupported {
            what: "images".to_owned(),
        })
    }

    /// By name as a pod writes it (`nginx`, `nginx:1.27`, `host:5000/a/b@sha256:...`) or image id.
    pub async fn get(&self, _reference: &str) -> Result<Option<Image>, Error> {
        Err(Error::Unsupported {
            what: "images".to_owned(),
        })
    }

    pub async fn pull(
        &self,
        _reference: &str,
        _credentials: &Credentials,
        _progress: Option<Progress>,
    ) -> Result<Image, Error> {
        Err(Error::Unsupported {
            what: "images".to_owned(),
        })
    }

    /// A docker-archive or OCI layout (folder or tar), names as in the archive.
    pub async fn import(
        &self,
        _path: &std::path::Path,
        _progress: Option<Progress>,
    ) -> Result<Vec<Image>, Error> {
        Err(Error::Unsupported {
            what: "images".to_owned(),
        })
    }

    pub async fn list(&self) -> Result<Vec<Image>, Error> {
        Err(Error::Unsupported {
            what: "images".to_owned(),
        })
    }

    /// Removes a name; the last one takes the image and its unused layers with it.
    pub async fn remove(&self, _reference: &str) -> Result<(), Error> {
        Err(Error::Unsupported {
            what: "images".to_owned(),
        })
    }
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("invalid image name {name:?}: {reason}")]
    InvalidName { name: String, reason: String },
    /// The registry has no such image or tag.
    #[error("{reference}: not found")]
    NotFound { reference: String },
    #[error("{reference}: access denied: {reason}")]
    Denied { reference: String, reason: String },
    #[error("{reference}: no image for {wanted}; it has {available}")]
    NoPlatform {
        reference: String,
        wanted: String,
        available: String,
    },
    #[error("{reference}: {message}")]
    Registry { reference: String, message: String },
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: String },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}
