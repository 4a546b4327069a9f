//! What one pod takes of the node's disk, measured. Blocks; call it away from the async threads.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use super::local::LocalUsage;
use crate::{
    kubelet::{logs, volumes},
    runtime::{PodState, Runtime, files},
};

/// Where a pod's things lie.
#[derive(Clone, Debug)]
pub struct Places {
    layers: Vec<(String, PathBuf)>,
    logs: PathBuf,
    /// With the name of the volume, if that has a limit of its own.
    volumes: Vec<(Option<String>, PathBuf)>,
    /// Files that the node keeps for the pod and the pod may write to.
    managed: Vec<PathBuf>,
}

impl Places {
    pub fn of(pod: &Pod, state: &PodState, runtime: &Runtime, dirs: &Dirs) -> Self {
        let layers = state.containers.iter();
        let layers = layers.map(|one| (one.name.clone(), runtime.writable_layer(&one.id)));
        let identity = &state.config.identity;
        let folder = dirs.pods.join(&identity.uid);
        Self {
            layers: layers.collect(),
            logs: logs::pod_folder(&dirs.logs, identity),
            volumes: volumes::on_node_disk(pod, &folder),
            managed: volumes::managed_files(&folder),
        }
    }

    pub fn measure(&self) -> LocalUsage {
        let mut usage = LocalUsage::default();
        for (name, upper) in &self.layers {
            let taken = self.add(&mut usage, upper);
            *usage.containers.entry(name.clone()).or_default() += taken;
        }
        let folders = std::fs::read_dir(&self.logs)
            .into_iter()
            .flatten()
            .flatten();
        for folder in folders {
            let taken = self.add(&mut usage, &folder.path());
            let name = folder.file_name().to_string_lossy().into_owned();
            *usage.containers.entry(name).or_default() += taken;
        }
        for (name, folder) in &self.volumes {
            let taken = self.add(&mut usage, folder);
            if let Some(name) = name {
                usage.empty_dirs.insert(name.clone(), taken);
            }
        }
        for path in &self.managed {
            self.add(&mut usage, path);
        }
        usage
    }

    fn add(&self, usage: &mut LocalUsage, path: &Path) -> u64 {
        let taken = files::measure_tree(path);
        usage.total += taken.bytes;
        usage.inodes += taken.inodes;
        taken.bytes
    }
}

/// The node's folders.
#[derive(Clone, Debug)]
pub struct Dirs {
    pub state: PathBuf,
    /// `<uid>/...` lies below.
    pub pods: PathBuf,
    pub logs: PathBuf,
    pub images: PathBuf,
}

impl Dirs {
    /// Whether images lie on the same filesystem as all else.
    pub fn is_one_disk(&self) -> bool {
        let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
        device(&self.state) == device(&self.images)
    }
}
