//! One pod's volumes, from their first use to their release.
//!
//! Whoever changes or uses them holds a [`PodVolumes`]. Always true:
//! - At most one set-up is under way, from what it asks the API to what it leaves on disk; so the
//!   newest content is written last.
//! - Files change only while no container is being made of them: what its mounts name stays there.
//! - Nothing is set up once the release has begun, however long it was on its way.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use oci_spec::runtime::Mount;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

use super::{
    Error, Shared, Volumes, blocking, claims::Asking, collect, folder, make, mounts, objects,
    refresh, removal, user::User,
};
use crate::{
    backoff::Backoff,
    kubelet::container::{self, Environment, Referenced},
    runtime::files,
    supervision::steps::{Step, reached},
};

/// As much of a termination message is kept, as upstream does.
const MESSAGE_MAX: u64 = 4096;

/// What the pod's worker should know of its volumes. Only the newest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// Something that they are made of has changed, and they are not made yet.
    Changed,
    /// They were brought up to date, but for those that failed.
    Refreshed {
        failures: Vec<String>,
    },
}

/// Cheap to clone.
#[derive(Clone)]
pub struct PodVolumes {
    shared: Arc<Shared>,
    pub(super) life: Arc<Life>,
}

pub(super) struct Life {
    pub(super) user: User,
    /// `None` for a UID that cannot name a folder.
    folder: Option<PathBuf>,
    /// The pod as it is wanted now: its labels are what a volume shows.
    wanted: Mutex<Option<Arc<Pod>>>,
    /// The first set-up has succeeded.
    pub(super) made: AtomicBool,
    /// Held from what is asked for to what is on disk.
    pub(super) turn: tokio::sync::Mutex<Backoff>,
    /// Held to write the folder, and shared to make a container from what is in it.
    pub(super) files: Arc<RwLock<()>>,
    /// Held to write the files that all containers have: they start side by side.
    managed: Mutex<()>,
    pub(super) news: watch::Sender<News>,
}

/// A container's mounts. What they name stays as it is while this is held.
#[derive(Debug)]
pub struct Mounts {
    pub list: Vec<Mount>,
    /// What of the pod's resolver was left out, if it was written just now.
    pub resolver_limits: Vec<String>,
    _held: OwnedRwLockReadGuard<()>,
}

impl Volumes {
    /// The volumes of one pod; whoever asks before their release gets the same.
    pub fn of_pod(&self, uid: &str) -> PodVolumes {
        let mut lives = self.shared.lives();
        let before = lives.get(uid).cloned();
        if let Some(life) = before.as_ref().filter(|life| !life.user.is_released()) {
            return self.with(life.clone());
        }
        let life = Arc::new(Life {
            user: User::new(uid),
            folder: folder(&self.shared.config.pods_dir, uid).ok(),
            wanted: Mutex::new(None),
            made: AtomicBool::new(false),
            turn: tokio::sync::Mutex::new(refresh::backoff()),
            // Those of the same UID that are still being released come first.
            files: before.map_or_else(Arc::default, |life| life.files.clone()),
            managed: Mutex::new(()),
            news: watch::channel(News::Nothing).0,
        });
        lives.insert(uid.to_owned(), life.clone());
        self.with(life)
    }

    pub(super) fn with(&self, life: Arc<Life>) -> PodVolumes {
        PodVolumes {
            shared: self.shared.clone(),
            life,
        }
    }
}

impl PodVolumes {
    /// Takes over how the pod is wanted. What its volumes show of it follows, once they are made.
    pub fn want(&self, pod: Arc<Pod>) {
        *self.wanted_slot() = Some(pod);
        // A set-up under way may have looked before; one that begins later will see it.
        let idle = self.life.turn.try_lock().is_ok();
        if !idle || self.life.made.load(Ordering::Acquire) {
            self.look_again();
        }
    }

    /// Counts as made: an earlier daemon did it. They are brought up to date at once.
    pub fn adopt(&self) {
        self.life.made.store(true, Ordering::Release);
        self.look_again();
    }

    /// Makes the pod's folder and all its volumes, and keeps them up to date from then on. Doing it
    /// twice is fine. An error names a volume; the others are made all the same. What comes back are
    /// words about volumes whose group is another than the pod asks for.
    pub async fn set_up(&self) -> Result<Vec<String>, Error> {
        self.unless_released(async {
            let _turn = self.life.turn.lock().await;
            let pod = self.wanted();
            let first = match self.life.made.load(Ordering::Acquire) {
                true => Asking::Again,
                false => Asking::First,
            };
            let resolved = self.shared.resolved(&pod, first).await?;
            let collected = self.collect(&resolved.pod, |_| true).await;
            let failed = self.write(&pod, collected).await?;
            if let Some(error) = failed.into_iter().next() {
                return Err(error);
            }
            let shared = self.give_to_group(&pod, resolved.folders).await?;
            self.life.made.store(true, Ordering::Release);
            reached(Step::VolumesMounted);
            self.look_later();
            Ok(shared)
        })
        .await
    }

    /// Brings what the API says up to date on disk; the errors of volumes for which that failed.
    /// The caller has the turn.
    pub(super) async fn refresh(&self) -> Vec<Error> {
        let pod = self.wanted();
        let refreshed = self.unless_released(async {
            let collected = self.collect(&pod, collect::is_api_data).await;
            self.write(&pod, collected).await
        });
        match refreshed.await {
            Ok(failed) => failed,
            Err(Error::Released) => Vec::new(),
            Err(error) => vec![error],
        }
    }

    async fn write(
        &self,
        pod: &Pod,
        volumes: Vec<collect::Collected>,
    ) -> Result<Vec<Error>, Error> {
        let folder = self.folder()?.to_owned();
        let owners = make::Owners::of(pod);
        let held = self.life.files.clone().write_owned().await;
        if self.life.user.is_released() {
            return Err(Error::Released);
        }
        blocking(move || {
            let made = make::make(&folder, volumes, owners);
            drop(held); // also where nobody waits any more
            made
        })
        .await
    }

    /// The newest that the pod's worker should know.
    pub fn news(&self) -> watch::Receiver<News> {
        self.life.news.subscribe()
    }

    /// What the container's environment refers to.
    pub async fn referenced(&self, pod: &Pod, container: &Container) -> Result<Referenced, Error> {
        let folder = self.folder()?.to_owned();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let (config_maps, secrets) = container::referenced(container);
        let fetch = async |kind, names: Vec<String>| {
            let mut found = BTreeMap::new();
            for name in names {
                let key = objects::Key::new(kind, namespace, &name);
                let data = self.shared.objects.get(&key, &self.life.user).await;
                let data = data.map_err(Error::Container)?;
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
    /// termination log, /dev/shm is the runtime's), as OCI mounts, to be held until the container has
    /// them. `environment` expands subPathExpr.
    pub async fn mounts(
        &self,
        pod: &Pod,
        pod_ips: &[IpAddr],
        container: &Container,
        attempt: u32,
        environment: &Environment,
    ) -> Result<Mounts, Error> {
        let folder = self.folder()?.to_owned();
        let resolved = self.shared.resolved(pod, Asking::Again).await?;
        let mut container = container.clone();
        for mount in container.volume_mounts.iter_mut().flatten() {
            if resolved.read_only.contains(&mount.name) {
                mount.read_only = Some(true);
            }
        }
        let wanted = mounts::Wanted {
            config: self.shared.config.clone(),
            folder,
            pod: resolved.pod.into_owned(),
            pod_ips: pod_ips.to_vec(),
            container,
            attempt,
            environment: environment.clone(),
        };
        let held = self.life.files.clone().read_owned().await;
        if self.life.user.is_released() {
            return Err(Error::Released);
        }
        let life = self.life.clone();
        blocking(move || {
            let managed = life.managed.lock();
            let managed = managed.unwrap_or_else(PoisonError::into_inner);
            let prepared = wanted.prepare()?;
            drop(managed);
            Ok(Mounts {
                list: prepared.mounts,
                resolver_limits: prepared.resolver_limits,
                _held: held,
            })
        })
        .await
    }

    /// The termination message of one attempt, at most 4096 bytes; empty if none was written.
    pub async fn termination_message(&self, container: &str, attempt: u32) -> String {
        let Ok(folder) = self.folder() else {
            return String::new();
        };
        let path = mounts::termination_log(folder, container, attempt);
        let read = blocking(move || Ok(files::read_start(&path, MESSAGE_MAX).unwrap_or_default()));
        String::from_utf8_lossy(&read.await.unwrap_or_default()).into_owned()
    }

    /// Unmounts and removes everything of the pod. Nothing is set up from now on, also if this fails
    /// and must be tried again.
    pub async fn release(&self) -> Result<(), Error> {
        let user = &self.life.user;
        user.mark_released();
        self.shared.objects.release(user);
        self.shared.tokens.release(user);
        let folder = self.folder()?.to_owned();
        let held = self.life.files.clone().write_owned().await;
        blocking(move || {
            let removed = removal::remove(&folder);
            drop(held);
            removed
        })
        .await?;
        let mut lives = self.shared.lives();
        if lives
            .get(user.uid())
            .is_some_and(|life| Arc::ptr_eq(life, &self.life))
        {
            lives.remove(user.uid());
        }
        Ok(())
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn user(&self) -> &User {
        &self.life.user
    }

    pub(super) fn folder(&self) -> Result<&Path, Error> {
        let uid = self.life.user.uid();
        let wrong = || Error::Unsupported(format!("the pod UID {uid:?}"));
        self.life.folder.as_deref().ok_or_else(wrong)
    }

    fn wanted_slot(&self) -> MutexGuard<'_, Option<Arc<Pod>>> {
        let slot = self.life.wanted.lock();
        slot.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wanted(&self) -> Arc<Pod> {
        self.wanted_slot().clone().unwrap_or_default()
    }

    /// Gives up once the release has begun: nobody waits for an answer of the API then.
    async fn unless_released<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.life.user.released() => Err(Error::Released),
            done = work => done,
        }
    }
}

/// Whether the pod has volumes that follow the API.
pub(super) fn follows_api(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let volumes = volumes.into_iter().flatten();
    volumes
        .into_iter()
        .any(|volume: &Volume| collect::is_api_data(volume))
}
