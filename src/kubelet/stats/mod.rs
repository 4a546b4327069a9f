//! What the node, its pods and their containers use: the content of `/stats/summary`, `/metrics`,
//! `/metrics/resource` and `/metrics/cadvisor`.
//!
//! Called by the kubelet's API. Everything is read when somebody asks, nothing in between; what
//! cannot be read is left out, never made up. One slow control group delays no other.

mod cadvisor;
mod disk;
mod host;
mod node;
mod rates;
mod resource;
mod summary;
#[cfg(test)]
mod tests;

pub use disk::{Space, Taken};
pub use host::{Interface, Machine, Part, Share, Stall, Stalls};

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::future::{join, join_all};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use self::{disk::Walks, rates::Rates};
use super::{Error, Pods, pod::record::Record, volumes};
use crate::{
    exposition::Page,
    placement::volumes::ephemeral_name,
    runtime::{ContainerState, Identity, Phase, PodState, Runtime, Usage},
};

/// A control group that does not answer by then is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// CPU and memory.
    Compute,
    /// Disks and networks too.
    All,
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: SystemTime,
    pub machine: Machine,
    pub parts: Vec<(&'static str, Gauge)>,
    pub cpu_rate: Option<u64>,
    pub pods: Vec<PodFigures>,
    /// The disk of pods, logs and images.
    pub disk: Option<Space>,
    pub images: Option<Taken>,
    /// Something that should have been readable was not.
    pub incomplete: bool,
}

/// Figures with the cores in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    pub part: Part,
    pub rate: Option<u64>,
    pub processes: u64,
    /// Where there is a control group.
    pub group: Option<OfGroup>,
}

/// What only control groups tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfGroup {
    pub oom_kills: u64,
    /// Where CPU time is limited.
    pub throttling: Option<cgroups::Throttling>,
}

#[derive(Clone, Debug)]
pub struct PodFigures {
    pub identity: Identity,
    pub created: SystemTime,
    pub usage: Option<Gauge>,
    pub containers: Vec<ContainerFigures>,
    /// Empty with the host's network.
    pub interfaces: Vec<Interface>,
    pub volumes: Vec<Volume>,
    /// Files that the node makes for the pod and its containers may write.
    pub managed: Taken,
}

#[derive(Clone, Debug)]
pub struct ContainerFigures {
    pub id: String,
    pub name: String,
    pub image: String,
    pub started: SystemTime,
    pub usage: Option<Gauge>,
    pub layer: Option<Taken>,
    pub logs: Option<Taken>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// The claim's name, if it is one.
    pub claim: Option<String>,
    pub taken: Taken,
    pub space: Space,
    /// In memory, hence not on the pod's disk.
    pub in_memory: bool,
}

/// Reads figures; cheap to clone.
#[derive(Clone)]
pub struct Stats {
    runtime: Runtime,
    pods: Arc<dyn Pods>,
    node: String,
    state_dir: Option<PathBuf>,
    rates: Arc<Mutex<Rates>>,
    walks: Arc<Walks>,
}

impl Stats {
    /// Disks are left out without `state_dir`, in which `pods/<uid>/volumes` lie.
    pub fn new(
        runtime: Runtime,
        pods: Arc<dyn Pods>,
        node: String,
        state_dir: Option<PathBuf>,
    ) -> Self {
        Self {
            runtime,
            pods,
            node,
            state_dir,
            rates: Arc::default(),
            walks: Arc::default(),
        }
    }

    /// `/stats/summary`.
    pub async fn summary(&self, depth: Depth) -> Result<Value, Error> {
        let snapshot = self.snapshot(depth).await?;
        Ok(summary::summary(&snapshot, &self.node, depth))
    }

    /// `/metrics/resource`.
    pub async fn resource(&self) -> Result<String, Error> {
        let snapshot = self.snapshot(Depth::Compute).await?;
        Ok(resource::resource(&snapshot))
    }

    /// `/metrics/cadvisor`.
    pub async fn cadvisor(&self) -> Result<String, Error> {
        let snapshot = self.snapshot(Depth::All).await?;
        Ok(cadvisor::cadvisor(&snapshot))
    }

    /// `/metrics`, but for the probes and the process.
    pub async fn node(&self, page: &mut Page) -> Result<(), Error> {
        let snapshot = self.snapshot(Depth::All).await?;
        let pods = self.runtime.pods().await;
        node::node(page, &self.node, &snapshot, &pods);
        self.runtime.operations().write(page);
        Ok(())
    }

    pub async fn snapshot(&self, depth: Depth) -> Result<Snapshot, Error> {
        let (pods, together) = join(self.runtime.pods(), within(self.runtime.node_usage())).await;
        let pods = pods.into_iter().filter(|pod| pod.alive);
        let pods = join_all(pods.map(|pod| self.pod(pod, depth))).await;
        let (machine, own) = blocking(|| (host::machine(), host::own())).await?;
        let machine = machine.map_err(|source| Error::Io {
            action: "measure the machine".into(),
            source,
        })?;
        let mut parts = Vec::new();
        if let Ok(part) = own {
            let rate = self.rate("/kubelet", part.cpu_ns);
            let gauge = Gauge {
                part,
                rate,
                processes: 1,
                group: None,
            };
            parts.push(("kubelet", gauge));
        }
        if let Some(usage) = together {
            parts.push(("pods", self.gauge("/pods", usage)));
        }
        let (disk, images) = match (&self.state_dir, depth) {
            (Some(dir), Depth::All) => {
                let (dir, walks) = (dir.clone(), self.walks.clone());
                blocking(move || {
                    let images = walks.taken(&dir.join("images"));
                    (Space::of(&dir).ok(), Some(images))
                })
                .await?
            }
            _ => (None, None),
        };
        let incomplete = pods.iter().any(|pod| {
            let containers = &pod.containers;
            pod.usage.is_none() || containers.iter().any(|one| one.usage.is_none())
        });
        self.rates().prune(Instant::now());
        Ok(Snapshot {
            at: SystemTime::now(),
            cpu_rate: self.rate("/", machine.all.cpu_ns),
            machine,
            parts,
            pods,
            disk,
            images,
            incomplete,
        })
    }

    async fn pod(&self, state: PodState, depth: Depth) -> PodFigures {
        let identity = state.config.identity.clone();
        let running = state.containers.iter().filter_map(|container| {
            let Phase::Running { pid, started } = container.phase else {
                return None;
            };
            Some((container, pid, started))
        });
        let running: Vec<_> = running.collect();
        let pid = running.first().map(|(_, pid, _)| *pid);
        let containers = running
            .iter()
            .map(|(container, _, started)| self.container(container, *started, depth));
        let usage = within(self.runtime.pod_usage(&identity.uid));
        let (usage, containers) = join(usage, join_all(containers)).await;
        let (interfaces, volumes, managed) = match depth {
            Depth::Compute => (Vec::new(), Vec::new(), Taken::default()),
            Depth::All => {
                let own_network = !state.config.host_network;
                let interfaces = pid.filter(|_| own_network).map(host::interfaces_of);
                let interfaces = interfaces.and_then(Result::ok).unwrap_or_default();
                let managed = self.managed(&identity.uid).await;
                (interfaces, self.volumes(&identity).await, managed)
            }
        };
        PodFigures {
            usage: usage.map(|usage| self.gauge(&identity.uid, usage)),
            created: state.created,
            containers,
            interfaces,
            volumes,
            managed,
            identity,
        }
    }

    /// What containers may write though the node makes it.
    async fn managed(&self, uid: &str) -> Taken {
        let Some(state_dir) = &self.state_dir else {
            return Taken::default();
        };
        let (dir, walks) = (state_dir.join("pods").join(uid), self.walks.clone());
        let measured = blocking(move || {
            let files = volumes::managed_files(&dir);
            files.iter().fold(Taken::default(), |sum, file| {
                let one = walks.taken(file);
                Taken {
                    bytes: sum.bytes + one.bytes,
                    inodes: sum.inodes + one.inodes,
                }
            })
        });
        measured.await.unwrap_or_default()
    }

    async fn container(
        &self,
        state: &ContainerState,
        started: SystemTime,
        depth: Depth,
    ) -> ContainerFigures {
        let usage = within(self.runtime.container_usage(&state.id)).await;
        let (mut layer, mut logs) = (None, None);
        if depth == Depth::All {
            let upper = self.runtime.writable_layer(&state.id);
            let folder = state.log_path.parent().map(Path::to_owned);
            let walks = self.walks.clone();
            let walked = blocking(move || {
                let logs = folder.map(|folder| walks.taken(&folder));
                (Some(walks.taken(&upper)), logs)
            });
            (layer, logs) = walked.await.unwrap_or_default();
        }
        ContainerFigures {
            usage: usage.map(|usage| self.gauge(&state.id, usage)),
            image: Record::here(state.clone(), true).image_name,
            id: state.id.clone(),
            name: state.name.clone(),
            started,
            layer,
            logs,
        }
    }

    /// The pod's volumes that are folders or filesystems of its own.
    async fn volumes(&self, identity: &Identity) -> Vec<Volume> {
        let Some(state_dir) = &self.state_dir else {
            return Vec::new();
        };
        let dir = state_dir.join("pods").join(&identity.uid);
        let walks = self.walks.clone();
        let pod = self.pods.pod(&identity.namespace, &identity.name);
        let found = blocking(move || {
            let mut volumes = volumes_in(&dir.join("volumes"), &walks);
            let claimed = |name: &str| claim(pod.as_deref()?, name);
            volumes.extend(local_volumes(&dir, &claimed));
            volumes
        });
        found.await.unwrap_or_default()
    }

    fn gauge(&self, name: &str, usage: Usage) -> Gauge {
        Gauge {
            rate: self.rate(name, usage.cpu_ns),
            processes: usage.pids,
            group: Some(OfGroup {
                oom_kills: usage.oom_kills,
                throttling: usage.throttling,
            }),
            part: Part {
                cpu_ns: usage.cpu_ns,
                memory_bytes: usage.memory_bytes,
                working_set_bytes: usage.memory_working_set_bytes,
                rss_bytes: usage.memory_rss_bytes,
                page_faults: usage.page_faults,
                major_page_faults: usage.major_page_faults,
                swap_bytes: usage.swap_bytes,
                cache_bytes: usage.cache_bytes,
            },
        }
    }

    fn rate(&self, name: &str, cpu_ns: u64) -> Option<u64> {
        self.rates().rate(name, cpu_ns, Instant::now())
    }

    fn rates(&self) -> std::sync::MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The claim behind a pod's volume.
fn claim(pod: &Pod, volume: &str) -> Option<String> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let found = volumes.iter().find(|one| one.name == volume)?;
    match &found.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => found
            .ephemeral
            .as_ref()
            .map(|_| ephemeral_name(pod, volume)),
    }
}

/// Folders of the node that the pod has by claims. As upstream tells them, by the filesystem that they
/// lie on: what is in them is not counted.
fn local_volumes(dir: &Path, claim: &dyn Fn(&str) -> Option<String>) -> Vec<Volume> {
    let measured = |(name, path): (String, PathBuf)| {
        let (claim, space) = (claim(&name)?, Space::of(&path).ok()?);
        Some(Volume {
            name,
            claim: Some(claim),
            taken: Taken {
                bytes: space.used_bytes,
                inodes: space.inodes.saturating_sub(space.inodes_free),
            },
            space,
            in_memory: false,
        })
    };
    let folders = volumes::local_folders(dir);
    folders.into_iter().filter_map(measured).collect()
}

/// `volumes/<plugin>/<name>`, but for the folders of the node.
fn volumes_in(dir: &Path, walks: &Walks) -> Vec<Volume> {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut volumes = Vec::new();
    let mut plugins = list(dir);
    plugins.retain(|plugin| !plugin.ends_with(volumes::LOCAL_VOLUME));
    for path in plugins.iter().flat_map(|plugin| list(plugin)) {
        let (Some(name), Ok(space)) = (path.file_name(), Space::of(&path)) else {
            continue;
        };
        let in_memory = nix::sys::statfs::statfs(&path)
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
        volumes.push(Volume {
            name: name.to_string_lossy().into_owned(),
            claim: None,
            taken: walks.taken(&path),
            space,
            in_memory,
        });
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    volumes
}

async fn within(
    usage: impl Future<Output = Result<Usage, crate::runtime::Error>>,
) -> Option<Usage> {
    match tokio::time::timeout(PATIENCE, usage).await {
        Ok(Ok(usage)) => Some(usage),
        Ok(Err(error)) => {
            // It has just ended, say.
            tracing::debug!(%error, "a control group was not read");
            None
        }
        Err(_) => {
            tracing::warn!("a control group was not read in time");
            None
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Io {
            action: "measure".into(),
            source: error.into(),
        })
}
