//! Files from which a restarted daemon finds its pods again, and where they lie.
//!
//! `run/pods/<uid>/` holds `pod.json` (written by the daemon before the supervisor starts), the
//! socket, the supervisor's log, the pod's `/dev/shm`, and for every container
//! `containers/<id>/{config,state}.json`: the configuration is the daemon's, the state is the
//! supervisor's. Files are replaced as a whole; a missing state means the container never started.
//! They are read by whichever version of the program runs next, newer or older: see [`crate::format`].

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Config, ContainerConfig, Phase, PodConfig, files};
use crate::format::{self, Unreadable};

/// Raised with every change that an older reader would misunderstand; see [`crate::format`].
pub const VERSION: u32 = 1;
/// The oldest that is still read.
const OLDEST: u32 = 1;
/// A pod is at most 3 MiB, and a record holds no more than it says.
const LONGEST: u64 = 64 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    pub version: u32,
    pub config: PodConfig,
    pub created: SystemTime,
    /// Where the runtime that made the pod keeps things: the supervisor has no other source.
    pub state_dir: PathBuf,
    pub cgroup_root: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub version: u32,
    pub id: String,
    pub created: SystemTime,
    pub config: ContainerConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StateRecord {
    pub version: u32,
    pub phase: Phase,
    /// Whom the container runs as, for later execs; unknown before it has started.
    pub user: Option<super::users::Resolved>,
}

/// Folder of one pod's live records.
#[derive(Clone, Debug)]
pub struct PodDir(pub PathBuf);

impl PodDir {
    pub fn new(config: &Config, uid: &str) -> Self {
        Self(pods(config).join(uid))
    }

    pub fn pod(&self) -> PathBuf {
        self.0.join("pod.json")
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// Mount point of the pod's shared memory.
    pub fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub fn container_config(&self, id: &str) -> PathBuf {
        self.container(id).join("config.json")
    }

    pub fn container_state(&self, id: &str) -> PathBuf {
        self.container(id).join("state.json")
    }

    /// Ids of all recorded containers.
    pub fn container_ids(&self) -> io::Result<Vec<String>> {
        names(&self.containers())
    }

    /// Something has been made for the pod already, whether its record is there or not.
    pub fn has_begun(&self) -> bool {
        let there = |path: &Path| path.symlink_metadata().is_ok();
        there(&format::aside(&self.pod()))
            || there(&self.containers())
            || there(&self.0.join(super::protocol::SOCKET))
    }
}

pub fn pods(config: &Config) -> PathBuf {
    config.run_dir.join("pods")
}

/// Plain names in a folder; none when it is absent. What cannot be read is an error: a pod that is not
/// seen would be started a second time.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect()
}

/// Root filesystem of one container: writable layer and mount point.
pub fn root_dir(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join("containers").join(id)
}

/// A folder only root may enter, and its parents.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Replaces a record. Not synced: records live as long as the kernel does.
pub fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    drop(file);
    fs::rename(temporary, path)
}

pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Unreadable> {
    format::parse(&files::read_at_most(path, LONGEST)?, OLDEST..=VERSION)
}

/// Removes a folder and all in it; an absent one is fine.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    files::remove_tree(path)
}
