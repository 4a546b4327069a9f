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
//! (`objects.rs`); tokens are asked for anew at 80 % of their life (`tokens.rs`). Both tell
//! [`Volumes::changes`], upon which the pod's worker calls [`Volumes::set_up`] again.

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
mod payload;
mod removal;
mod resolv;
mod subpath;
mod tokens;

pub use self::disk::{managed_files, on_node_disk};

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::broadcast;

use crate::{
    kubelet::container::{self, Environment, Facts, Referenced},
    runtime::files,
};

/// Pods whose change is not yet looked at; who lags looks at all of them.
const BACKLOG: usize = 1024;
/// As much of a termination message is kept, as upstream does.
const MESSAGE_MAX: u64 = 4096;

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
pub struct Volumes {
    config: Arc<Config>,
    objects: objects::Objects,
    tokens: tokens::Tokens,
    client: kube::Client,
    changes: broadcast::Sender<String>,
}

impl Volumes {
    /// Reads config maps, secrets and tokens with `client`, watching those in use one by one.
    pub fn new(config: Config, client: kube::Client) -> Self {
        let changes = broadcast::channel(BACKLOG).0;
        Self {
            config: Arc::new(config),
            objects: objects::Objects::new(client.clone(), changes.clone()),
            tokens: tokens::Tokens::new(client.clone(), changes.clone()),
            client,
            changes,
        }
    }

    /// Makes the pod's folder and all its volumes; again after a change of content. Doing it twice
    /// is fine. An error names the volume.
    pub async fn set_up(&self, pod: &Pod) -> Result<(), Error> {
        let (uid, folder) = self.folder_of(pod)?;
        let resolved = self.resolved(pod).await?;
        let volumes = self.collect(&resolved.pod, &uid).await?;
        let owners = make::Owners::of(pod);
        blocking(move || make::make(&folder, &volumes, owners)).await
    }

    /// UIDs of pods whose volume content changed in the API: call [`Volumes::set_up`] again.
    pub fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }

    /// What the container's environment refers to.
    pub async fn referenced(&self, pod: &Pod, container: &Container) -> Result<Referenced, Error> {
        let (uid, folder) = self.folder_of(pod)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let (config_maps, secrets) = container::referenced(container);
        let fetch = async |kind, names: Vec<String>| {
            let mut found = std::collections::BTreeMap::new();
            for name in names {
                let key = objects::Key::new(kind, namespace, &name);
                let data = self
                    .objects
                    .get(&key, &uid)
                    .await
                    .map_err(Error::Container)?;
                found.insert(name, data.map(|data| data.as_ref().clone()));
            }
            Ok::<_, Error>(found)
        };
        let wanted = mounts::referenced_files(pod, container, &folder);
        let files = match wanted.is_empty() {
            true => Default::default(),
            false => blocking(move || mounts::read_files(wanted)).await?,
        };
        Ok(Referenced {
            config_maps: fetch(objects::Kind::ConfigMap, config_maps).await?,
            secrets: fetch(objects::Kind::Secret, secrets).await?,
            files,
        })
    }

    /// The container's volume mounts and managed files (/etc/hosts, /etc/hostname, /etc/resolv.conf,
    /// termination log, /dev/shm is the runtime's), as OCI mounts. `environment` expands subPathExpr.
    pub async fn mounts(
        &self,
        pod: &Pod,
        pod_ips: &[IpAddr],
        container: &Container,
        attempt: u32,
        environment: &Environment,
    ) -> Result<Vec<oci_spec::runtime::Mount>, Error> {
        let (_, folder) = self.folder_of(pod)?;
        let resolved = self.resolved(pod).await?;
        let mut container = container.clone();
        for mount in container.volume_mounts.iter_mut().flatten() {
            if resolved.read_only.contains(&mount.name) {
                mount.read_only = Some(true);
            }
        }
        let wanted = mounts::Wanted {
            config: self.config.clone(),
            folder,
            pod: resolved.pod.into_owned(),
            pod_ips: pod_ips.to_vec(),
            container,
            attempt,
            environment: environment.clone(),
        };
        blocking(move || wanted.prepare()).await
    }

    /// The termination message of one attempt, at most 4096 bytes; empty if none was written.
    pub async fn termination_message(&self, uid: &str, container: &str, attempt: u32) -> String {
        let Ok(folder) = folder(&self.config.pods_dir, uid) else {
            return String::new();
        };
        let path = mounts::termination_log(&folder, container, attempt);
        let read = blocking(move || Ok(files::read_start(&path, MESSAGE_MAX).unwrap_or_default()));
        String::from_utf8_lossy(&read.await.unwrap_or_default()).into_owned()
    }

    /// Unmounts and removes everything of the pod.
    pub async fn tear_down(&self, uid: &str) -> Result<(), Error> {
        self.objects.release(uid);
        self.tokens.release(uid);
        let folder = folder(&self.config.pods_dir, uid)?;
        blocking(move || removal::remove(&folder)).await
    }

    /// UIDs that have a folder here, for finding orphans.
    pub async fn known(&self) -> Result<Vec<String>, Error> {
        let pods_dir = self.config.pods_dir.clone();
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

    fn folder_of(&self, pod: &Pod) -> Result<(String, PathBuf), Error> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let folder = folder(&self.config.pods_dir, &uid)?;
        Ok((uid, folder))
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
