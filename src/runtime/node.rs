//! The daemon's side of the runtime: all pods of this node and what can be done to them.
//!
//! Work that has begun goes on when its caller gives up: it runs as a task of its own, so that
//! nothing is left half made.

mod adoption;
mod aside;
mod containers;
mod program;
mod usage;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::sync::broadcast;

use self::program::Program;
use super::{
    Config, Error, Event, ExecConfig, PodConfig, Session,
    cgroup::{self, Owner},
    link::{Link, lock},
    pod::{Loaded, Pod},
    protocol::{self, Call},
    records::{self, PodDir, PodRecord},
    session::{self, Target},
    supervisor::Zygote,
    teardown::{self, io_error},
};
use crate::{
    format::{self, Unreadable},
    supervision::{
        hooks,
        steps::{Step, reached},
    },
};

/// Changes a slow listener may miss before it must look at everything.
const EVENTS: usize = 1024;
/// How long a killed container may take to end, and a supervisor to kill all it has.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Node {
    config: Config,
    hierarchy: cgroups::Hierarchy,
    /// What supervisors run.
    _program: Program,
    zygote: Zygote,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// UIDs of pods that are being made or removed: one such change of a pod at a time.
    changing: Mutex<HashSet<String>>,
    /// Pods whose records this program does not understand, and why. They are left alone.
    set_aside: Mutex<BTreeMap<String, String>>,
    events: broadcast::Sender<Event>,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io_error("blocking work")(std::io::Error::other(error))),
    }
}

/// Carries work through to its end, even if the caller does not wait for it.
async fn carried<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let delayed = async {
        hooks::delay().await;
        work.await
    };
    match tokio::spawn(delayed).await {
        Ok(result) => result,
        Err(error) => Err(io_error("work")(std::io::Error::other(error))),
    }
}

impl Node {
    pub async fn open(config: Config, program: PathBuf) -> Result<Arc<Self>, Error> {
        let made = config.clone();
        let (hierarchy, program, uids) = blocking(move || {
            let hierarchy =
                cgroups::Hierarchy::detect().map_err(|error| cgroup::failed("this host", error))?;
            for dir in [records::pods(&made), made.state_dir.join("containers")] {
                records::private_dir(&dir).map_err(io_error(format!("make {}", dir.display())))?;
            }
            let list = || Ok(records::names(&records::pods(&made))?);
            let uids = format::patiently(list).map_err(unread("list the pods"))?;
            adoption::remove_strays(&made, &uids)?;
            Ok((hierarchy, Program::new(&program), uids))
        })
        .await?;
        let node = Arc::new(Self {
            config,
            hierarchy,
            zygote: Zygote::new(program.path()),
            _program: program,
            pods: Mutex::default(),
            changing: Mutex::default(),
            set_aside: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
        });
        let adoptions = uids.iter().map(|uid| node.adopt(uid));
        for result in futures::future::join_all(adoptions).await {
            result?;
        }
        Ok(node)
    }

    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        lock(&self.pods).values().cloned().collect()
    }

    pub fn find(&self, uid: &str) -> Option<Arc<Pod>> {
        lock(&self.pods).get(uid).cloned()
    }

    fn pod(&self, uid: &str) -> Result<Arc<Pod>, Error> {
        self.find(uid).ok_or_else(|| Error::NoPod(uid.into()))
    }

    fn pod_of(&self, id: &str) -> Result<Arc<Pod>, Error> {
        self.all()
            .into_iter()
            .find(|pod| pod.phase(id).is_some())
            .ok_or_else(|| Error::NoContainer(id.into()))
    }

    pub async fn create_pod(self: &Arc<Self>, config: PodConfig) -> Result<(), Error> {
        let node = self.clone();
        carried(async move { node.create(config).await }).await
    }

    async fn create(self: Arc<Self>, config: PodConfig) -> Result<(), Error> {
        let uid = config.identity.uid.clone();
        if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
            return Err(io_error("pod name")(
                std::io::ErrorKind::InvalidInput.into(),
            ));
        }
        let _alone = self.change(&uid)?;
        let dir = PodDir::new(&self.config, &uid);
        let record = PodRecord {
            version: records::VERSION,
            config,
            created: SystemTime::now(),
            state_dir: self.config.state_dir.clone(),
            cgroup_root: self.config.cgroup_root.clone(),
        };
        if self.find(&uid).is_some() || self.set_aside().contains_key(&uid) {
            return Err(io_error(format!("make pod {uid}"))(
                std::io::ErrorKind::AlreadyExists.into(),
            ));
        }
        // Whoever makes the folder owns the pod; it is also what a crash from here on leaves. One that
        // is there without a pod is left of an earlier try that was not taken back whole.
        let (left, config, hierarchy) = (dir.clone(), self.config.clone(), self.hierarchy.clone());
        blocking(move || {
            if left.0.exists() {
                teardown::remove_pod(&config, &hierarchy, &left)?;
            }
            let mut builder = fs::DirBuilder::new();
            let made = builder.mode(0o700).create(&left.0);
            made.map_err(io_error(format!("make {}", left.0.display())))?;
            reached(Step::FolderMade);
            Ok(())
        })
        .await?;
        let started = self.start_supervisor(&dir, &record).await;
        let watched = started.and_then(|link| {
            let loaded = Loaded::fresh(record);
            let pod = Pod::new(loaded, dir.clone(), Some(link), self.events.clone());
            pod.map_err(io_error("watch the supervisor"))
        });
        match watched {
            Ok(pod) => {
                lock(&self.pods).insert(uid, pod);
                reached(Step::SandboxMade);
                Ok(())
            }
            Err(error) => {
                let (config, hierarchy) = (self.config.clone(), self.hierarchy.clone());
                let undone =
                    blocking(move || teardown::remove_pod(&config, &hierarchy, &dir)).await;
                if let Err(undo) = undone {
                    tracing::warn!(pod = uid, error = %undo, "a failed pod was not removed whole");
                }
                Err(error)
            }
        }
    }

    async fn start_supervisor(
        self: &Arc<Self>,
        dir: &PodDir,
        record: &PodRecord,
    ) -> Result<(Link, i32), Error> {
        let (node, dir, record) = (self.clone(), dir.clone(), record.clone());
        let uid = record.config.identity.uid.clone();
        let socket = blocking(move || node.spawn_supervisor(&dir, &record)).await?;
        let link = Link::new(socket).map_err(io_error("supervisor's socket"))?;
        match link.greeting().await {
            Ok(pid) => Ok((link, pid)),
            Err(error) => Err(session::gone(&uid, &error.into())),
        }
    }

    /// Blocking part of making a pod: record, groups, process. Returns our end of its socket.
    fn spawn_supervisor(&self, dir: &PodDir, record: &PodRecord) -> Result<OwnedFd, Error> {
        records::write(&dir.pod(), record).map_err(io_error("write the pod's record"))?;
        reached(Step::PodRecorded);
        let config = &record.config;
        let own = cgroup::supervisor_name(&self.config.cgroup_root, &config.cgroup);
        cgroup::create_supervisor(&self.hierarchy, &own)
            .map_err(|error| cgroup::failed(&own, error))?;
        let (ours, theirs) = protocol::pair().map_err(io_error("supervisor's socket"))?;
        supervisor_nonblocking(&ours).map_err(io_error("supervisor's socket"))?;
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(dir.log())
            .map_err(io_error("open the supervisor's log"))?;
        self.zygote
            .fork(&dir.0, &own, &theirs, &log)
            .map_err(io_error("start the supervisor"))?;
        reached(Step::SupervisorForked);
        // While it starts: no container is there yet.
        self.make_pod_group(record)?;
        reached(Step::PodGroupsMade);
        Ok(ours)
    }

    /// The group around the pod's containers, with the pod's limits; one that is there is fine.
    fn make_pod_group(&self, record: &PodRecord) -> Result<(), Error> {
        let config = &record.config;
        let name = cgroup::pod_name(&self.config.cgroup_root, &config.cgroup);
        let resources = config.resources.as_ref().map(|one| (one, Owner::Pod));
        let made = cgroup::create(&self.hierarchy, &name, resources, None);
        made.map(drop).map_err(|error| cgroup::failed(&name, error))
    }

    pub async fn remove_pod(self: &Arc<Self>, uid: &str) -> Result<(), Error> {
        let (node, uid) = (self.clone(), uid.to_owned());
        carried(async move { node.remove(&uid).await }).await
    }

    /// Marks the pod as being made or removed, while the result is held.
    fn change(&self, uid: &str) -> Result<Change<'_>, Error> {
        match lock(&self.changing).insert(uid.to_owned()) {
            true => Ok(Change {
                changing: &self.changing,
                uid: uid.to_owned(),
            }),
            false => Err(io_error(format!("pod {uid} is being made or removed"))(
                std::io::ErrorKind::ResourceBusy.into(),
            )),
        }
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if uid.is_empty() || uid.starts_with('.') || !uid.chars().all(plain) {
            return Ok(()); // no pod is named so
        }
        if self.set_aside().contains_key(uid) {
            return Ok(()); // nothing of it is touched
        }
        let _alone = self.change(uid)?;
        let pod = self.find(uid);
        let link = pod.as_ref().and_then(|pod| Some((pod, pod.link.as_ref()?)));
        if let Some((pod, link)) = link {
            // If it cannot, all of its group is killed below.
            let _ = tokio::time::timeout(PATIENCE, async {
                if link.call(Call::Shutdown).await.is_ok() {
                    pod.supervisor_ended().await;
                }
            })
            .await;
        }
        reached(Step::SupervisorEnded);
        let (config, hierarchy) = (self.config.clone(), self.hierarchy.clone());
        let dir = PodDir::new(&self.config, uid);
        // Without a pod too: a try to make it may have left something.
        blocking(move || match dir.0.exists() {
            true => teardown::remove_pod(&config, &hierarchy, &dir),
            false => Ok(()),
        })
        .await?;
        lock(&self.pods).remove(uid);
        reached(Step::FolderRemoved);
        Ok(())
    }

    pub async fn netns(&self, uid: &str) -> Result<Option<OwnedFd>, Error> {
        let pod = self.pod(uid)?;
        if pod.record.config.host_network {
            return Ok(None);
        }
        pod.namespace("net")
            .map(Some)
            .map_err(io_error(format!("network namespace of pod {uid}")))
    }

    pub async fn exec(&self, id: &str, config: ExecConfig) -> Result<Session, Error> {
        let pod = self.pod_of(id)?;
        let call = Call::Exec {
            id: id.into(),
            argv: config.argv,
            tty: config.tty,
            stdin: config.stdin,
            stdout: config.stdout,
            stderr: config.stderr,
        };
        let target = Target {
            pod: pod.uid(),
            container: id,
            dir: &pod.dir,
        };
        session::open(target, call, true, (config.stdin, config.stdout)).await
    }

    pub async fn attach(
        &self,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Session, Error> {
        let pod = self.pod_of(id)?;
        let call = Call::Attach {
            id: id.into(),
            stdin,
            stdout,
            stderr,
        };
        let target = Target {
            pod: pod.uid(),
            container: id,
            dir: &pod.dir,
        };
        session::open(target, call, false, (stdin, stdout)).await
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let pod = self.pod_of(id)?;
        self.ask(&pod, id, Call::ReopenLog { id: id.into() }).await
    }

    pub fn writable_layer(&self, id: &str) -> PathBuf {
        records::root_dir(&self.config.state_dir, id).join("upper")
    }
}

/// A pod that is being made or removed.
struct Change<'a> {
    changing: &'a Mutex<HashSet<String>>,
    uid: String,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        lock(self.changing).remove(&self.uid);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for pod in lock(&self.pods).values() {
            pod.let_go();
        }
    }
}

fn supervisor_nonblocking(socket: &OwnedFd) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn unread(action: impl Into<String>) -> impl FnOnce(Unreadable) -> Error {
    let action = action.into();
    move |error| match error {
        Unreadable::Busy(source) => io_error(action)(source),
        other => io_error(action)(std::io::Error::other(other)),
    }
}
