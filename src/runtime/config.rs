//! What the kubelet tells the runtime to make. Recorded as JSON, so that a restart finds it again.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A pod by its three names. The UID alone is the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// The pod's shared part: namespaces and the cgroup around all its containers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodConfig {
    pub identity: Identity,
    pub annotations: BTreeMap<String, String>,
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_processes: bool,
    /// Name (dots) and value, set in the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Under the node's cgroup root: `besteffort/pod<uid>`, `burstable/pod<uid>`, `pod<uid>`.
    pub cgroup: String,
    /// Limits of the whole pod; `None` for none.
    pub resources: Option<oci_spec::runtime::LinuxResources>,
}

/// One container. Mounts, user, capabilities, seccomp, limits, environment and command are in the
/// OCI spec; its namespaces and root are filled in by the runtime. Only one namespace counts: a pid
/// namespace whose path is the id of another container of the pod is that container's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub name: String,
    pub attempt: u32,
    pub annotations: BTreeMap<String, String>,
    pub rootfs: Rootfs,
    pub oci: oci_spec::runtime::Spec,
    pub io: Io,
    /// Users and groups by name or number as the pod or image gives them (`nginx`, `1000:1000`);
    /// looked up in the image's /etc/passwd and /etc/group inside the root. `None`: as in `oci`.
    pub user: Option<String>,
    /// Refuse to start as user 0 (runAsNonRoot).
    pub must_not_be_root: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// Unpacked layers, lowest first; the runtime adds a writable one on top.
    Layers(Vec<PathBuf>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    pub tty: bool,
    pub stdin: bool,
    /// Close stdin when the first attached client leaves.
    pub stdin_once: bool,
    /// CRI-format log file; its folder exists.
    pub log_path: PathBuf,
}
