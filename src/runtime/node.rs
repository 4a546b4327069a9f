//! The daemon's side of the runtime: all pods of this node and what can be done to them.
//!
//! Work that has begun goes on when its caller gives up: it runs as a task of its own, so that
//! nothing is left half made.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use oci_spec::runtime::LinuxResources;
use tokio::sync::broadcast;

use super::{
    Ceilings, Config, ContainerConfig, Error, Event, ExecConfig, Phase, PodConfig, Session, Usage,
    cgroup::{self, Owner},
    link::{Link, NoLink, lock},
    pod::{self, Loaded, Pod, container_state},
    protocol::{self, Call, Failure},
    records::{self, ContainerRecord, PodDir, PodRecord},
    rootfs,
    session::{self, Target},
    supervisor::Zygote,
    sys,
    teardown::{self, io_error},
};
use crate::{
    backoff::Backoff,
    format::{self, Unreadable},
    supervision::hooks,
};

/// Changes a slow listener may miss before it must look at everything.
const EVENTS: usize = 1024;
/// How long a killed container may take to end, and a supervisor to kill all it has.
const PATIENCE: Duration = Duration::from_secs(10);
/// A start that an earlier daemon has ordered is asked about so often: of one that left no record
/// nothing is told.
const LAUNCH_LOOK: Duration = Duration::from_secs(1);
/// Between two tries to take a pod over.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAIT: Duration = Duration::from_secs(1);

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

/// The program as supervisors see it: through a read-only mount of its own, so that a container
/// that gets hold of `/proc/<pid>/exe` cannot write to it.
#[derive(Debug)]
enum Program {
    Mounted(OwnedFd),
    /// On kernels that cannot.
    Plain(PathBuf),
}

impl Program {
    fn new(path: &Path) -> Self {
        let mounted = || -> std::io::Result<OwnedFd> {
            let mount = sys::open_tree(None, &rootfs::text(path)?, libc::OPEN_TREE_CLONE)?;
            let read_only = libc::MOUNT_ATTR_RDONLY;
            sys::mount_setattr(mount.as_fd(), false, read_only, 0, libc::MS_PRIVATE)?;
            Ok(mount)
        };
        match mounted() {
            Ok(mount) => Self::Mounted(mount),
            Err(error) => {
                tracing::warn!(%error, "supervisors run from the program's own file");
                Self::Plain(path.into())
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Mounted(mount) => format!("/proc/self/fd/{}", mount.as_raw_fd()).into(),
            Self::Plain(path) => path.clone(),
        }
    }
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
            remove_strays(&made, &uids)?;
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

    /// Takes over a pod that an earlier daemon made. What is not understood is left alone; a shortage
    /// that does not end is an error, since a pod that is not seen would be started a second time.
    async fn adopt(self: &Arc<Self>, uid: &str) -> Result<(), Error> {
        let dir = PodDir::new(&self.config, uid);
        let found = dir.clone();
        let loaded = match blocking(move || Ok(pod::load(&found))).await? {
            Ok(loaded) => loaded,
            Err((_, Unreadable::Absent)) if !dir.has_begun() => {
                tracing::warn!(pod = uid, "removing a pod that has no record");
                let (config, hierarchy) = (self.config.clone(), self.hierarchy.clone());
                return blocking(move || teardown::remove_pod(&config, &hierarchy, &dir)).await;
            }
            Err((path, error @ Unreadable::Busy(_))) => {
                return Err(unread(format!("read {}", path.display()))(error));
            }
            Err((path, error)) => {
                let why = format!("{}: {error}", path.display());
                match format::set_aside(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(pod = uid, %error, "the record stays where it is");
                    }
                    _ => {}
                }
                self.leave_alone(uid, why);
                return Ok(());
            }
        };
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut wait = Backoff::new(FIRST_WAIT, LAST_WAIT);
        let pod = loop {
            let busy = match Link::connect(&dir.0).await {
                Err(error @ NoLink::Version { .. }) => {
                    self.leave_alone(uid, format!("its supervisor: {error}"));
                    return Ok(());
                }
                Err(NoLink::Busy(error)) => error,
                connected => {
                    let link = connected.inspect_err(|error| {
                        tracing::warn!(pod = uid, %error, "the pod's supervisor is gone");
                    });
                    match Pod::new(loaded.clone(), dir.clone(), link.ok(), self.events.clone()) {
                        Ok(pod) => break pod,
                        Err(error) => error,
                    }
                }
            };
            if tokio::time::Instant::now() > end {
                return Err(io_error(format!("take over pod {uid}"))(busy));
            }
            tracing::warn!(pod = uid, error = %busy, "the pod is not taken over yet, will retry");
            tokio::time::sleep(wait.next_wait()).await;
        };
        for id in pod.unstarted() {
            if is_unknown(&pod, &id).await {
                self.discard(&pod, &id).await?;
            }
        }
        lock(&self.pods).insert(uid.into(), pod.clone());
        for id in pod.unstarted() {
            tokio::spawn(self.clone().follow_launch(pod.clone(), id));
        }
        Ok(())
    }

    /// Waits for what becomes of a start that an earlier daemon has ordered, and tells of it: it runs,
    /// has failed, or leaves nothing.
    async fn follow_launch(self: Arc<Self>, pod: Arc<Pod>, id: String) {
        while tokio::time::timeout(LAUNCH_LOOK, pod.launched(&id))
            .await
            .is_err()
        {
            if is_unknown(&pod, &id).await {
                self.discard_logged(&pod, &id).await;
            }
        }
        pod.tell();
    }

    fn leave_alone(&self, uid: &str, why: String) {
        tracing::error!(
            pod = uid,
            why,
            "a pod is not understood and left alone as it is"
        );
        lock(&self.set_aside).insert(uid.to_owned(), why);
    }

    /// Pods that may run, but are not understood, and why.
    pub fn set_aside(&self) -> BTreeMap<String, String> {
        lock(&self.set_aside).clone()
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
            made.map_err(io_error(format!("make {}", left.0.display())))
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
        let config = &record.config;
        let name = cgroup::pod_name(&self.config.cgroup_root, &config.cgroup);
        let resources = config.resources.as_ref().map(|one| (one, Owner::Pod));
        cgroup::create(&self.hierarchy, &name, resources, None)
            .map_err(|error| cgroup::failed(&name, error))?;
        let own = cgroup::supervisor_name(&self.config.cgroup_root, &config.cgroup);
        cgroup::create(&self.hierarchy, &own, None, None)
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
            .fork(&dir.0, &theirs, &log)
            .map_err(io_error("start the supervisor"))?;
        Ok(ours)
    }

    pub async fn run_container(
        self: &Arc<Self>,
        uid: &str,
        config: ContainerConfig,
    ) -> Result<String, Error> {
        let (node, pod) = (self.clone(), self.pod(uid)?);
        carried(async move { node.run(&pod, config).await }).await
    }

    async fn run(
        self: Arc<Self>,
        pod: &Arc<Pod>,
        config: ContainerConfig,
    ) -> Result<String, Error> {
        let link = pod.link.as_ref().filter(|_| pod.snapshot().alive);
        let Some(link) = link else {
            return Err(Error::Supervisor {
                pod: pod.uid().into(),
                message: "it is gone".into(),
            });
        };
        let id = new_id();
        let io = config.io.clone();
        let join = pid_target(&config.oci);
        let record = ContainerRecord {
            version: records::VERSION,
            id: id.clone(),
            created: SystemTime::now(),
            config,
        };
        pod.add(container_state(&record, None));
        let (node, owner) = (self.clone(), pod.clone());
        let prepared = blocking(move || node.prepare(&owner, &record)).await;
        if let Err(error) = prepared {
            self.discard_logged(pod, &id).await;
            return Err(error);
        }
        let call = Call::Run {
            id: id.clone(),
            io,
            join,
        };
        let error = match link.call(call).await {
            Ok((Ok(_), _)) => return Ok(id),
            Ok((Err(failure), _)) => {
                if matches!(failure, Failure::Start { recorded: true, .. }) {
                    return Err(session::failed(pod.uid(), &id, failure));
                }
                session::failed(pod.uid(), &id, failure)
            }
            Err(gone) => session::gone(pod.uid(), &gone),
        };
        self.discard_logged(pod, &id).await;
        Err(error)
    }

    /// Folders, record and group of a new container.
    fn prepare(&self, pod: &Pod, record: &ContainerRecord) -> Result<(), Error> {
        let id = &record.id;
        let root = records::root_dir(&self.config.state_dir, id);
        let private = |path: &Path| {
            records::private_dir(path).map_err(io_error(format!("make {}", path.display())))
        };
        private(&pod.dir.container(id))?;
        records::write(&pod.dir.container_config(id), record)
            .map_err(io_error("write the container's record"))?;
        private(&root)?;
        for name in ["upper", "work", "merged"] {
            // The upper folder's mode is that of the container's `/`.
            let mut builder = fs::DirBuilder::new();
            builder
                .mode(0o755)
                .create(root.join(name))
                .map_err(io_error(format!("make {}/{name}", root.display())))?;
        }
        let name = cgroup::child_name(&self.config.cgroup_root, &pod.record.config.cgroup, id);
        let linux = record.config.oci.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let devices = resources.and_then(|resources| resources.devices().as_deref());
        let rules = cgroup::device_rules(devices.unwrap_or_default());
        let none = LinuxResources::default();
        let limits = (resources.unwrap_or(&none), Owner::Container);
        cgroup::create(&self.hierarchy, &name, Some(limits), Some(&rules))
            .map_err(|error| cgroup::failed(&name, error))?;
        Ok(())
    }

    /// Removes all of a container, memory of it included.
    async fn discard(&self, pod: &Arc<Pod>, id: &str) -> Result<(), Error> {
        let (config, hierarchy) = (self.config.clone(), self.hierarchy.clone());
        let (owner, name) = (pod.clone(), id.to_owned());
        let result = blocking(move || {
            let group = &owner.record.config.cgroup;
            teardown::remove_container(&config, &hierarchy, group, &owner.dir, &name)
        })
        .await;
        if result.is_ok() {
            pod.forget(id);
        }
        result
    }

    async fn discard_logged(&self, pod: &Arc<Pod>, id: &str) {
        if let Err(error) = self.discard(pod, id).await {
            pod.forget(id);
            tracing::warn!(container = id, %error, "a failed container was not removed whole");
        }
    }

    pub async fn stop_container(
        self: &Arc<Self>,
        id: &str,
        signal: i32,
        grace: Duration,
    ) -> Result<(), Error> {
        let pod = self.pod_of(id)?;
        if matches!(pod.phase(id), None | Some(Phase::Exited { .. })) {
            return Ok(());
        }
        if !grace.is_zero() {
            let call = Call::Signal {
                id: id.into(),
                signal,
            };
            self.ask(&pod, id, call).await?;
            if tokio::time::timeout(grace, pod.ended(id)).await.is_ok() {
                return Ok(());
            }
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // Again after a while: on v1 a process may fork between being listed and being killed.
        while tokio::time::Instant::now() < deadline {
            self.ask(&pod, id, Call::Kill { id: id.into() }).await?;
            let ended = tokio::time::timeout(Duration::from_secs(1), pod.ended(id)).await;
            if ended.is_ok() {
                return Ok(());
            }
        }
        Err(Error::Supervisor {
            pod: pod.uid().into(),
            message: format!("container {id} is still there {PATIENCE:?} after SIGKILL"),
        })
    }

    /// A call that gives nothing back. A container that ended meanwhile is no error.
    async fn ask(&self, pod: &Pod, id: &str, call: Call) -> Result<(), Error> {
        let Some(link) = &pod.link else { return Ok(()) };
        match link.call(call).await {
            Ok((Ok(_) | Err(Failure::NoContainer), _)) => Ok(()),
            Ok((Err(failure), _)) => Err(session::failed(pod.uid(), id, failure)),
            Err(_) if !pod.snapshot().alive => Ok(()),
            Err(gone) => Err(session::gone(pod.uid(), &gone)),
        }
    }

    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let pod = self.pod_of(id)?;
        if let Some(Phase::Running { .. } | Phase::Created) = pod.phase(id) {
            return Err(Error::WrongPhase {
                id: id.into(),
                phase: "running",
            });
        }
        let (node, id) = (self.clone(), id.to_owned());
        carried(async move {
            node.ask(&pod, &id, Call::Forget { id: id.clone() }).await?;
            node.discard(&pod, &id).await
        })
        .await
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
        let (config, hierarchy) = (self.config.clone(), self.hierarchy.clone());
        let dir = PodDir::new(&self.config, uid);
        // Without a pod too: a try to make it may have left something.
        blocking(move || match dir.0.exists() {
            true => teardown::remove_pod(&config, &hierarchy, &dir),
            false => Ok(()),
        })
        .await?;
        lock(&self.pods).remove(uid);
        Ok(())
    }

    pub async fn remove_set_aside(&self) -> Result<(), Error> {
        let config = self.config.clone();
        let uids: Vec<String> = self.set_aside().into_keys().collect();
        blocking(move || {
            let dirs = uids.iter().map(|uid| PodDir::new(&config, uid));
            dirs.map(|dir| teardown::remove_files(&config, &dir))
                .fold(Ok(()), Result::and)
        })
        .await?;
        lock(&self.set_aside).clear();
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

    fn group(&self, pod: &Pod, id: Option<&str>) -> Result<cgroups::Group, Error> {
        let (root, group) = (&self.config.cgroup_root, &pod.record.config.cgroup);
        let name = match id {
            Some(id) => cgroup::child_name(root, group, id),
            None => cgroup::pod_name(root, group),
        };
        cgroups::Group::open(&self.hierarchy, &name).map_err(|error| cgroup::failed(&name, error))
    }

    pub async fn container_usage(&self, id: &str) -> Result<Usage, Error> {
        let pod = self.pod_of(id)?;
        let (group, id) = (self.group(&pod, Some(id))?, id.to_owned());
        blocking(move || cgroup::usage(&group).map_err(|error| cgroup::failed(&id, error))).await
    }

    pub async fn pod_usage(&self, uid: &str) -> Result<Usage, Error> {
        let pod = self.pod(uid)?;
        let (group, uid) = (self.group(&pod, None)?, uid.to_owned());
        blocking(move || cgroup::usage(&group).map_err(|error| cgroup::failed(&uid, error))).await
    }

    pub async fn node_usage(&self) -> Result<Usage, Error> {
        let root = self.config.cgroup_root.clone();
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            cgroups::Group::open(&hierarchy, &root)
                .and_then(|group| cgroup::usage(&group))
                .map_err(|error| cgroup::failed(&root, error))
        })
        .await
    }

    /// What all pods use together of what they may.
    pub async fn pods_usage(&self) -> Result<Usage, Error> {
        let name = cgroup::pods_name(&self.config.cgroup_root);
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            cgroups::Group::open(&hierarchy, &name)
                .and_then(|group| cgroup::usage(&group))
                .map_err(|error| cgroup::failed(&name, error))
        })
        .await
    }

    pub async fn machine_memory(&self) -> Result<cgroups::MachineMemory, Error> {
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            let read = hierarchy.machine_memory();
            read.map_err(|error| cgroup::failed("the machine", error))
        })
        .await
    }

    pub async fn set_ceilings(&self, ceilings: Ceilings) -> Result<(), Error> {
        let root = self.config.cgroup_root.clone();
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            cgroup::set_ceilings(&hierarchy, &root, ceilings)
                .map_err(|error| cgroup::failed("all pods", error))
        })
        .await
    }

    pub fn writable_layer(&self, id: &str) -> PathBuf {
        records::root_dir(&self.config.state_dir, id).join("upper")
    }

    pub async fn update_resources(&self, id: &str, resources: LinuxResources) -> Result<(), Error> {
        let pod = self.pod_of(id)?;
        let (group, id) = (self.group(&pod, Some(id))?, id.to_owned());
        blocking(move || {
            cgroup::apply(&group, &resources, Owner::Container)
                .map_err(|error| cgroup::failed(&id, error))
        })
        .await
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

/// Whether the supervisor surely has no such container, so that it will not start any more.
async fn is_unknown(pod: &Pod, id: &str) -> bool {
    let Some(link) = &pod.link else {
        return false;
    };
    // Signal 0 only asks.
    let call = Call::Signal {
        id: id.into(),
        signal: 0,
    };
    matches!(link.call(call).await, Ok((Err(Failure::NoContainer), _)))
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

/// 64 hex digits.
fn new_id() -> String {
    rand::random::<[u8; 32]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Another container of the pod whose pid namespace the spec names by the container's id.
fn pid_target(spec: &oci_spec::runtime::Spec) -> Option<String> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let pid = namespaces
        .iter()
        .find(|namespace| namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Pid)?;
    Some(pid.path().as_ref()?.to_string_lossy().into_owned())
}

/// Roots of containers that no record knows: what was there before the machine was restarted.
/// Their layers may be large, so nobody waits for them.
fn remove_strays(config: &Config, uids: &[String]) -> Result<(), Error> {
    let list = |dir: &Path| {
        let names = format::patiently(|| Ok(records::names(dir)?));
        names.map_err(unread(format!("list {}", dir.display())))
    };
    let mut known = std::collections::BTreeSet::new();
    for uid in uids {
        known.extend(list(&PodDir::new(config, uid).containers())?);
    }
    let strays: Vec<PathBuf> = list(&config.state_dir.join("containers"))?
        .into_iter()
        .filter(|id| !known.contains(id))
        .map(|id| records::root_dir(&config.state_dir, &id))
        .collect();
    if strays.is_empty() {
        return Ok(());
    }
    std::thread::spawn(move || {
        for path in strays {
            if let Err(error) = records::remove_dir(&path) {
                tracing::warn!(path = %path.display(), %error, "a stray root was not removed");
            }
        }
    });
    Ok(())
}

fn unread(action: impl Into<String>) -> impl FnOnce(Unreadable) -> Error {
    let action = action.into();
    move |error| match error {
        Unreadable::Busy(source) => io_error(action)(source),
        other => io_error(action)(std::io::Error::other(other)),
    }
}
