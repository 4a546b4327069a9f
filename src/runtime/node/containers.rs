//! One container's life: made, started, stopped, removed.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use oci_spec::runtime::LinuxResources;

use super::{
    super::{
        ContainerConfig, Error, Phase,
        cgroup::{self, Owner},
        pod::{Pod, container_state},
        protocol::{Call, Failure},
        records::{self, ContainerRecord},
        session,
        teardown::{self, io_error},
    },
    Node, PATIENCE, blocking, carried,
};
use crate::{
    hex::hex,
    supervision::steps::{Step, reached},
};

impl Node {
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
            Ok((Ok(_), _)) => {
                reached(Step::ContainerStarted);
                return Ok(id);
            }
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
        reached(Step::ContainerRecorded);
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
        reached(Step::ContainerPrepared);
        Ok(())
    }

    /// Removes all of a container, memory of it included.
    pub(super) async fn discard(&self, pod: &Arc<Pod>, id: &str) -> Result<(), Error> {
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

    pub(super) async fn discard_logged(&self, pod: &Arc<Pod>, id: &str) {
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
            reached(Step::StopSignalled);
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
    pub(super) async fn ask(&self, pod: &Pod, id: &str, call: Call) -> Result<(), Error> {
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
}

/// 64 hex digits.
fn new_id() -> String {
    hex(&rand::random::<[u8; 32]>())
}

/// Another container of the pod whose pid namespace the spec names by the container's id.
fn pid_target(spec: &oci_spec::runtime::Spec) -> Option<String> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let pid = namespaces
        .iter()
        .find(|namespace| namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Pid)?;
    Some(pid.path().as_ref()?.to_string_lossy().into_owned())
}
