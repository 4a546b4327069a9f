//! From a pod and an image to what the runtime is told: pure, apart from what is passed in.
//!
//! Owns the translation of security context, resources, environment, command and devices into the
//! OCI spec. Called by the pod worker. Two things are read from the host, because only the host has
//! them: a `Localhost` seccomp profile and, for privileged containers, the device nodes of `/dev`.
//!
//! Where this differs from upstream's defaults:
//! - Seccomp is `RuntimeDefault` unless the pod says `Unconfined` or the container is privileged.
//! - Swap: a container may have an exact swap limit by the pod's annotation
//!   `vetch.dev/swap-limit.<container>: 64Mi`. It needs a memory limit, and then uses at most that
//!   much swap on top of it, whatever [`SwapBehavior`] the node has.
//!
//! Start at [`container_config`].

mod command;
mod devices;
mod env;
mod expand;
mod fields;
mod mounts;
mod pod;
mod resources;
mod seccomp;
mod security;
mod signal;
mod sysctls;

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::{
    Linux, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec as OciSpec,
    get_default_readonly_paths,
};

pub use self::{
    env::{environment, referenced},
    expand::{Unresolved, expand_strict},
    fields::{field, resource_field},
    pod::{find_container, fqdn, hostname, pod_config},
    resources::{QosClass, bytes, container_resources, pod_memory_limit, qos_class},
    security::effective_user,
    signal::stop_signal,
};
use crate::runtime::{ContainerConfig, Io, Rootfs, image::Image};

/// By this name a RuntimeClass may ask for what the node does anyway.
pub const NATIVE_HANDLER: &str = "vetch";

/// What the node has, as far as containers may be told (`resourceFieldRef`, out-of-memory scores).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    pub swap: SwapBehavior,
    /// How many processes and threads a pod may have.
    pub pod_pids_limit: Option<std::num::NonZeroU32>,
    /// `cluster.local`, for `setHostnameAsFQDN`; without it such names end at `svc`.
    pub cluster_domain: String,
}

/// How much swap containers may use that do not say so themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapBehavior {
    #[default]
    NoSwap,
    /// Burstable containers get of the node's swap what their request is of its memory.
    LimitedSwap,
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
    /// Content of `fileKeyRef` files by volume and path.
    pub files: BTreeMap<(String, String), Option<Vec<u8>>>,
}

/// Configuration that cannot be run, with the upstream reason (`CreateContainerConfigError`, ...).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub reason: &'static str,
    pub message: String,
}

impl Refused {
    /// What the pod asks for is wrong or missing.
    fn config(message: impl Into<String>) -> Self {
        Self {
            reason: "CreateContainerConfigError",
            message: message.into(),
        }
    }

    /// It is asked for rightly, but cannot be made.
    fn create(message: impl Into<String>) -> Self {
        Self {
            reason: "CreateContainerError",
            message: message.into(),
        }
    }
}

/// Environment in order, and names that were skipped because they are invalid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    pub variables: Vec<(String, String)>,
    pub skipped: Vec<String>,
}

/// All that the runtime needs to make and start one container.
pub fn container_config(inputs: Inputs<'_>) -> Result<ContainerConfig, Refused> {
    let Inputs {
        pod,
        container,
        image,
        ..
    } = inputs;
    refuse_unsupported(container)?;
    let identity = security::identity(pod, container, image)?;
    let privileged = security::privileged(container);

    let mut process = Process::default();
    let tty = container.tty.unwrap_or(false);
    process
        .set_terminal(Some(tty))
        .set_user(identity.oci)
        .set_args(Some(command::argv(container, image, &inputs.env)?))
        .set_env(Some(env::process_environment(
            pod,
            container,
            image,
            &inputs.env,
        )))
        .set_cwd(command::working_dir(container, image))
        .set_capabilities(Some(security::capabilities(container)?))
        .set_rlimits(Some(vec![open_files()]))
        .set_no_new_privileges(Some(security::no_new_privileges(container)))
        .set_oom_score_adj(Some(resources::oom_score_adj(pod, container, inputs.facts)));

    let mut limits = resources::container_resources(pod, container, inputs.facts)?;
    limits.set_devices(Some(devices::rules(privileged)));
    let mut linux = Linux::default();
    linux
        .set_namespaces(None)
        .set_resources(Some(limits))
        .set_devices(privileged.then(devices::of_the_host))
        .set_seccomp(seccomp::profile(pod, container, &inputs.seccomp_dir)?)
        .set_rootfs_propagation(Some(mounts::propagation(&inputs.mounts).into()))
        .set_masked_paths(Some(Vec::new()))
        .set_readonly_paths(Some(Vec::new()));
    if !privileged && !security::unmasked_proc(container) {
        linux
            .set_masked_paths(Some(security::masked_paths(inputs.facts.cpu_milli)))
            .set_readonly_paths(Some(get_default_readonly_paths()));
    }

    let mut root = Root::default();
    root.set_readonly(Some(security::read_only_root(container)));
    let mut oci = OciSpec::default();
    oci.set_process(Some(process))
        .set_root(Some(root))
        .set_hostname(None)
        .set_mounts(Some(mounts::all(pod, privileged, inputs.mounts)))
        .set_linux(Some(linux));

    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: inputs.attempt,
        annotations: BTreeMap::new(),
        rootfs: Rootfs::Layers(image.layers.clone()),
        oci,
        io: Io {
            tty,
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            log_path: inputs.log_path,
        },
        user: identity.lookup,
        must_not_be_root: identity.must_not_be_root,
    })
}

/// A program that counts on something we do not give must not start without it.
fn refuse_unsupported(container: &Container) -> Result<(), Refused> {
    let claims = container
        .resources
        .as_ref()
        .and_then(|all| all.claims.as_ref());
    if claims.is_some_and(|claims| !claims.is_empty()) {
        return Err(Refused::create("resource claims are not supported"));
    }
    if container
        .volume_devices
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return Err(Refused::create("block volumes are not supported"));
    }
    Ok(())
}

fn open_files() -> PosixRlimit {
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(1024_u64)
        .hard(524_288_u64)
        .build()
        .expect("no field of it is required")
}

#[cfg(test)]
mod tests;
