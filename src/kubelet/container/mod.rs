//! From a pod and an image to what the runtime is told: pure, apart from what is passed in.
//!
//! Owns the translation of security context, resources, environment, command and devices into the
//! OCI spec. Called by the pod worker; does no I/O.

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::runtime::{ContainerConfig, PodConfig, image::Image};

/// What the node has, as far as containers may be told (`resourceFieldRef`, out-of-memory scores).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
}

/// One container about to start. Init and ephemeral containers come as [`Container`] too.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub image: &'a Image,
    /// Resolved by [`environment`], in order.
    pub env: Vec<(String, String)>,
    /// Volumes and managed files (`/etc/hosts`, resolv.conf, termination log...).
    pub mounts: Vec<oci_spec::runtime::Mount>,
    pub log_path: PathBuf,
    pub facts: &'a Facts,
    /// Folder of `Localhost` seccomp profiles.
    pub seccomp_dir: PathBuf,
}

/// Objects that `envFrom` and `valueFrom` name, fetched before; `None`: does not exist.
#[derive(Clone, Debug, Default)]
pub struct Referenced {
    pub config_maps: BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
    pub secrets: BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
}

/// Configuration that cannot be run, with the upstream reason (`CreateContainerConfigError`, ...).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub reason: &'static str,
    pub message: String,
}

/// Environment in order, and names that were skipped because they are invalid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    pub variables: Vec<(String, String)>,
    pub skipped: Vec<String>,
}

/// Names of config maps and secrets that the container's environment needs.
pub fn referenced(_container: &Container) -> (Vec<String>, Vec<String>) {
    (Vec::new(), Vec::new())
}

/// Service variables < `envFrom` < `env`, with `$(VAR)` expanded. The image's own environment is
/// put below these by [`container_config`]. `pod_ips` and `host_ips` answer `status.podIP` and so on.
pub fn environment(
    _pod: &Pod,
    _container: &Container,
    _services: &BTreeMap<String, String>,
    _referenced: &Referenced,
    _facts: &Facts,
) -> Result<Environment, Refused> {
    Ok(Environment::default())
}

/// The pod's shared part.
pub fn pod_config(_pod: &Pod, _facts: &Facts) -> Result<PodConfig, Refused> {
    Err(Refused {
        reason: "CreatePodSandboxError",
        message: "not supported".into(),
    })
}

pub fn container_config(_inputs: Inputs<'_>) -> Result<ContainerConfig, Refused> {
    Err(Refused {
        reason: "CreateContainerError",
        message: "not supported".into(),
    })
}
