//! Pods' volumes and managed files on this node.
//!
//! Owns `pods/<uid>/` below the state folder. Called by the pod worker.
//! Always true: a reader of a config map, secret or projected volume sees one whole version;
//! removal never follows a link out of the pod's folder and never enters a live mount.
//!
//! Mounts are made in the daemon's own mount namespace and must be there when a container is made:
//! tmpfs for memory volumes and secrets, and one bind per `subPath`.
//!
//! What a pod uses of the API is fetched when it starts and watched one by one while it runs
//! (`objects.rs`); tokens are asked for anew at 80 % of their life (`tokens.rs`). A change adds the pod
//! to a queue, from which [`Volumes::run`] brings volumes up to date (`refresh.rs`).
//!
//! All goes through [`PodVolumes`] (`pod.rs`): at most one set-up of a pod's volumes is under way, and
//! none after its release.

mod atomic;
mod claims;
mod collect;
mod disk;
mod empty_dir;
mod host_path;
mod hosts;
mod make;
mod mountinfo;
mod mounts;
mod objects;
mod ownership;
mod payload;
mod pod;
mod refresh;
mod removal;
mod resolv;
mod subpath;
mod tokens;
mod user;

pub use self::{
    disk::{managed_files, on_node_disk},
    ownership::{KIND as LOCAL_VOLUME, local_folders},
    pod::{Mounts, News, PodVolumes},
};

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::pod::Life;
use crate::{kubelet::container::Facts, queue::Queue};

/// Where volumes lie and what managed files say.
#[derive(Clone, Debug)]
pub struct Config {
    pub pods_dir: PathBuf,
    /// Folders of volumes that this node has for claims.
    pub local_volumes: PathBuf,
    pub node: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub facts: Facts,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    objects: objects::Objects,
    tokens: tokens::Tokens,
    client: kube::Client,
    /// By UID, until released.
    lives: Mutex<HashMap<String, Arc<Life>>>,
    /// UIDs of pods whose volumes must be looked at.
    queue: Arc<Queue<String>>,
}

impl Shared {
    fn lives(&self) -> MutexGuard<'_, HashMap<String, Arc<Life>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volumes {
    /// Reads config maps, secrets and tokens with `client`, watching those in use one by one.
    pub fn new(config: Config, client: kube::Client) -> Self {
        let changes = user::Changes::default();
        Self {
            shared: Arc::new(Shared {
                config: Arc::new(config),
                queue: changes.queue.clone(),
                objects: objects::Objects::new(client.clone(), changes),
                tokens: tokens::Tokens::new(client.clone()),
                client,
                lives: Mutex::default(),
            }),
        }
    }

    /// UIDs that have a folder here, for finding orphans.
    pub async fn known(&self) -> Result<Vec<String>, Error> {
        let pods_dir = self.shared.config.pods_dir.clone();
        blocking(move || {
            let entries = match std::fs::read_dir(&pods_dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                read => read.map_err(io("list", &pods_dir))?,
            };
            let names = entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.collect())
        })
        .await
    }
}

/// A UID comes from outside and must stay one folder's name.
fn folder(pods_dir: &Path, uid: &str) -> Result<PathBuf, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !uid.is_empty() && !uid.starts_with('.') && uid.chars().all(plain) {
        true => Ok(pods_dir.join(uid)),
        false => Err(Error::Unsupported(format!("the pod UID {uid:?}"))),
    }
}

/// File work away from the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Io {
            action: "volumes' file work".into(),
            source: std::io::Error::other(error),
        }),
    }
}

fn io(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let action = format!("{action} {}", path.display());
    move |source| Error::Io { action, source }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the pod's volumes are released")]
    Released,
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
