//! Pods' volumes and managed files on this node.
//!
//! Owns `pods/<uid>/` below the state folder. Called by the pod worker.
//! Always true: a reader of a config map, secret or projected volume sees one whole version;
//! removal never follows a link out of the pod's folder and never enters a live mount.

use std::{net::IpAddr, path::PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::kubelet::container::{Environment, Facts, Referenced};

/// Where volumes lie and what managed files say.
#[derive(Clone, Debug)]
pub struct Config {
    pub pods_dir: PathBuf,
    pub node: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub facts: Facts,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Volumes {}

impl Volumes {
    /// Reads config maps, secrets and tokens with `client`, watching those in use one by one.
    pub fn new(_config: Config, _client: kube::Client) -> Self {
        Self {}
    }

    /// Makes the pod's folder and all its volumes; again after a change of content. Doing it twice
    /// is fine. An error names the volume.
    pub async fn set_up(&self, _pod: &Pod) -> Result<(), Error> {
        Err(Error::Unsupported("volumes".into()))
    }

    /// UIDs of pods whose volume content changed in the API: call [`Volumes::set_up`] again.
    pub fn changes(&self) -> tokio::sync::broadcast::Receiver<String> {
        tokio::sync::broadcast::channel(1).1
    }

    /// What the container's environment refers to.
    pub async fn referenced(
        &self,
        _pod: &Pod,
        _container: &Container,
    ) -> Result<Referenced, Error> {
        Err(Error::Unsupported("volumes".into()))
    }

    /// The container's volume mounts and managed files (/etc/hosts, /etc/hostname, /etc/resolv.conf,
    /// termination log, /dev/shm is the runtime's), as OCI mounts. `environment` expands subPathExpr.
    pub async fn mounts(
        &self,
        _pod: &Pod,
        _pod_ips: &[IpAddr],
        _container: &Container,
        _attempt: u32,
        _environment: &Environment,
    ) -> Result<Vec<oci_spec::runtime::Mount>, Error> {
        Err(Error::Unsupported("volumes".into()))
    }

    /// The termination message of one attempt, at most 4096 bytes; empty if none was written.
    pub async fn termination_message(&self, _uid: &str, _container: &str, _attempt: u32) -> String {
        String::new()
    }

    /// Unmounts and removes everything of the pod.
    pub async fn tear_down(&self, _uid: &str) -> Result<(), Error> {
        Ok(())
    }

    /// UIDs that have a folder here, for finding orphans.
    pub async fn known(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The text names the volume and what is missing or wrong, as `kubectl describe` shows it.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
    Volume { volume: String, message: String },
    /// What the container itself asks for is wrong: CreateContainerConfigError.
    #[error("{0}")]
    Container(String),
    #[error("{action}")]
    Io {
        action: String,
        source: std::io::Error,
    },
}
