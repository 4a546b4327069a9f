//! Containers from OCI specs, held by one supervisor process per pod.
//!
//! Owns pods' namespaces, processes, cgroups, root filesystems and logs on this node, and the
//! records under `run/` from which a restarted daemon finds them again. Knows nothing of the API:
//! the kubelet translates pods into [`PodConfig`] and [`ContainerConfig`].
//! Always true:
//! - The daemon may die at any time; containers, their logs and exit codes do not notice.
//! - A start that fails leaves nothing behind.
//! - Only what carries our own record is touched.

pub mod config;
pub mod confined;
pub mod files;
pub mod image;
pub mod seccomp;
pub mod supervisor;

mod cgroup;
mod container;
mod devices;
mod link;
mod log_writer;
mod mount;
mod node;
mod operations;
mod pod;
mod process;
mod protocol;
mod records;
mod rootfs;
mod session;
mod stalls;
mod sys;
mod teardown;
mod users;

pub use config::{ContainerConfig, Identity, Io, PodConfig, Rootfs};
pub use log_writer::{MAX_BYTES as MAX_LOG_BYTES, rotated as rotated_logs};
pub use operations::Operations;
pub use stalls::MemoryStalls;

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use serde::{Deserialize, Serialize};

use self::operations::Operation;

/// Where the runtime keeps its things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Survives a reboot: container root filesystems (`containers/<id>/{upper,work,merged}`).
    pub state_dir: PathBuf,
    /// Live records and supervisor sockets; gone after a reboot.
    pub run_dir: PathBuf,
    /// Folder under each cgroup hierarchy that all of this node's pods lie in, e.g. `vetch`;
    /// several nodes on one machine have different ones.
    pub cgroup_root: String,
}

/// Handle to the node's pods; cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    node: Arc<node::Node>,
    operations: Operations,
}

/// What the runtime knows of one pod.
#[derive(Clone, Debug)]
pub struct PodState {
    pub config: PodConfig,
    pub created: SystemTime,
    /// False when the supervisor is gone: the pod must be torn down and made anew.
    pub alive: bool,
    /// All attempts that were not removed, oldest first.
    pub containers: Vec<ContainerState>,
}

#[derive(Clone, Debug)]
pub struct ContainerState {
    /// 64 hex digits, unique on this node.
    pub id: String,
    pub name: String,
    /// Counts restarts of this container: 0, 1, 2, ...
    pub attempt: u32,
    /// What the kubelet handed over to find again after a restart (image, spec hash, ...).
    pub annotations: std::collections::BTreeMap<String, String>,
    pub phase: Phase,
    pub log_path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Created,
    Running {
        pid: i32,
        started: SystemTime,
    },
    Exited {
        exit: Exit,
        started: Option<SystemTime>,
        finished: SystemTime,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + signal when killed by one.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// Why it could not start (code 128), else empty.
    pub error: String,
}

/// Something happened to a pod; look at [`Runtime::pod`] for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub pod_uid: String,
}

/// A process to run inside a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    pub argv: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Streams of an exec or attach. Dropping it ends the session; an exec's process is killed, an
/// attached container is not.
#[derive(Debug)]
pub struct Session {
    /// Write end; drop it to signal end of input. With a tty this is the terminal itself.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Sends terminal sizes (columns, rows).
    pub resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    /// Resolves when the process has ended.
    pub exit: tokio::sync::oneshot::Receiver<Result<Exit, Error>>,
}

/// What there is of memory, read at once.
#[derive(Debug)]
pub struct MemoryReadings {
    pub machine: Result<cgroups::MachineMemory, Error>,
    /// Of all pods together, in bytes: what could not be taken from them at once.
    pub pods_working_set: Result<u64, Error>,
}

/// Current use, read from the cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub memory_working_set_bytes: u64,
    /// Memory that belongs to no file.
    pub memory_rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub swap_bytes: u64,
    pub pids: u64,
    pub oom_kills: u64,
    /// Pages of files.
    pub cache_bytes: u64,
    /// Where CPU time is limited.
    pub throttling: Option<cgroups::Throttling>,
}

/// What all pods of the node together may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Against what runs beside the pods; v1 scale.
    pub cpu_shares: u64,
}

impl Runtime {
    /// Opens the node's state and re-adopts every pod whose supervisor lives.
    pub async fn open(config: Config) -> Result<Self, Error> {
        Self::open_with_program(config, "/proc/self/exe".into()).await
    }

    /// As [`Runtime::open`], with supervisors that run `program`: for callers that are not vetch
    /// themselves.
    pub async fn open_with_program(config: Config, program: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            node: node::Node::open(config, program).await?,
            operations: Operations::default(),
        })
    }

    /// How often it did what, for `/metrics`.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Changes from now on. A receiver that lags must look at all of [`Runtime::pods`].
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<Event> {
        self.node.events()
    }

    pub async fn pods(&self) -> Vec<PodState> {
        self.node.all().iter().map(|pod| pod.snapshot()).collect()
    }

    /// Pods that may well run, but whose records or supervisor this program does not understand, and
    /// why. They are left alone: not among [`Runtime::pods`], and removed only by
    /// [`Runtime::end_set_aside`].
    pub fn set_aside(&self) -> std::collections::BTreeMap<String, String> {
        self.node.set_aside()
    }

    pub async fn pod(&self, uid: &str) -> Option<PodState> {
        self.node.find(uid).map(|pod| pod.snapshot())
    }

    pub fn is_running(&self, pod_uid: &str, id: &str) -> bool {
        let phase = self.node.find(pod_uid).and_then(|pod| pod.phase(id));
        matches!(phase, Some(Phase::Running { .. }))
    }

    /// Makes the pod's namespaces, cgroup and supervisor. The network namespace has only `lo`;
    /// the caller wires it (see [`Runtime::netns`]) before it starts containers.
    pub async fn create_pod(&self, config: PodConfig) -> Result<(), Error> {
        let work = self.node.create_pod(config);
        self.operations.count(Operation::RunPod, work).await
    }

    /// The pod's network namespace; `None` with host network.
    pub async fn netns(&self, pod_uid: &str) -> Result<Option<OwnedFd>, Error> {
        self.node.netns(pod_uid).await
    }

    /// Makes and starts a container in its pod, and returns its id once the program was executed.
    /// A program that cannot be executed is [`Error::Start`], with an exited container recorded;
    /// only a refused user, [`Error::User`], leaves no record.
    pub async fn run_container(
        &self,
        pod_uid: &str,
        config: ContainerConfig,
    ) -> Result<String, Error> {
        let work = self.node.run_container(pod_uid, config);
        self.operations.count(Operation::StartContainer, work).await
    }

    /// `signal` to PID 1, and after `grace` SIGKILL to every process of the container's cgroup.
    /// Returns when the container has exited.
    pub async fn stop_container(
        &self,
        id: &str,
        signal: i32,
        grace: Duration,
    ) -> Result<(), Error> {
        let work = self.node.stop_container(id, signal, grace);
        self.operations.count(Operation::StopContainer, work).await
    }

    /// Removes an exited container: root filesystem, cgroup, record. Its log stays.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let work = self.node.remove_container(id);
        self.operations
            .count(Operation::RemoveContainer, work)
            .await
    }

    /// Ends one of [`Runtime::set_aside`] that nobody wants any more, by what is known of it, and removes
    /// all of it.
    pub async fn end_set_aside(&self, uid: &str, grace: Duration) -> Result<(), Error> {
        self.node.end_set_aside(uid, grace).await
    }

    /// Removes what is left of pods that are not understood, once nothing of them runs (for `reset`).
    pub async fn remove_set_aside(&self) -> Result<(), Error> {
        self.node.remove_set_aside().await
    }

    /// Kills what still runs and removes everything of the pod (namespaces, cgroup, supervisor).
    /// A pod that is gone is fine.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        let work = self.node.remove_pod(uid);
        self.operations.count(Operation::RemovePod, work).await
    }

    /// With a tty, `stdin` and `stdout` are the terminal; reading it after its last user has gone
    /// is an I/O error, which means the end.
    pub async fn exec(&self, id: &str, config: ExecConfig) -> Result<Session, Error> {
        let work = self.node.exec(id, config);
        self.operations.count(Operation::Exec, work).await
    }

    pub async fn attach(
        &self,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Session, Error> {
        let work = self.node.attach(id, stdin, stdout, stderr);
        self.operations.count(Operation::Attach, work).await
    }

    /// Makes the supervisor open a new log file at the container's log path (after a rename).
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.node.reopen_log(id).await
    }

    pub async fn container_usage(&self, id: &str) -> Result<Usage, Error> {
        self.node.container_usage(id).await
    }

    pub async fn pod_usage(&self, uid: &str) -> Result<Usage, Error> {
        self.node.pod_usage(uid).await
    }

    /// What all pods of this node use together.
    pub async fn node_usage(&self) -> Result<Usage, Error> {
        self.node.node_usage().await
    }

    /// What the machine has of memory and uses, and what all pods use together, without their supervisors.
    pub async fn memory(&self) -> Result<MemoryReadings, Error> {
        self.node.memory().await
    }

    /// Limits what all pods together may use. An error names the first limit that the kernel
    /// refused; the others hold.
    pub async fn set_ceilings(&self, ceilings: Ceilings) -> Result<(), Error> {
        self.node.set_ceilings(ceilings).await
    }

    /// The folder of what a container has written over its image.
    pub fn writable_layer(&self, id: &str) -> PathBuf {
        self.node.writable_layer(id)
    }

    /// Changes a running container's limits in place.
    pub async fn update_resources(
        &self,
        id: &str,
        resources: oci_spec::runtime::LinuxResources,
    ) -> Result<(), Error> {
        let work = self.node.update_resources(id, resources);
        self.operations
            .count(Operation::UpdateContainer, work)
            .await
    }
}

/// Kills and removes every pod that `config`'s folders know of, for when no daemon runs. Blocks.
pub fn remove_all(config: &Config) -> Result<(), Error> {
    teardown::remove_all(config)
}

/// Why the runtime could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not supported on this host")]
    Unsupported(&'static str),
    #[error("no pod {0}")]
    NoPod(String),
    #[error("no container {0}")]
    NoContainer(String),
    #[error("container {id} is {phase}")]
    WrongPhase { id: String, phase: &'static str },
    /// The program could not be executed: missing, not executable, bad working directory...
    #[error("{stage}: {message}")]
    Start { stage: String, message: String },
    /// The container may not run as this user, or there is none such; nothing was made for it.
    #[error("{0}")]
    User(String),
    #[error("{action}")]
    Io {
        action: String,
        source: std::io::Error,
    },
    #[error("cgroup of {what}")]
    Cgroup {
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("supervisor of pod {pod}: {message}")]
    Supervisor { pod: String, message: String },
}
