//! What the daemon knows of one pod, kept true by what its supervisor tells.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    io::unix::AsyncFd,
    sync::{broadcast, watch},
    task::AbortHandle,
};

use super::{
    ContainerState, Event, Exit, Phase, PodState,
    link::{Link, lock},
    protocol::Frame,
    records::{self, ContainerRecord, PodDir, PodRecord, StateRecord},
    sys,
};
use crate::supervision::caught;

/// After news that could not be taken in.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Pod {
    pub record: PodRecord,
    pub dir: PodDir,
    /// `None` when the supervisor was dead already when we came.
    pub link: Option<Arc<Link>>,
    /// The supervisor.
    process: Option<(i32, AsyncFd<OwnedFd>)>,
    state: Mutex<State>,
    /// Rings at every change of a phase.
    changed: watch::Sender<()>,
    events: broadcast::Sender<Event>,
    reader: Mutex<Option<AbortHandle>>,
}

#[derive(Debug)]
struct State {
    alive: bool,
    /// Oldest first.
    containers: Vec<ContainerState>,
}

impl Pod {
    /// A pod with its supervisor's connection, which is read from now on.
    pub fn new(
        record: PodRecord,
        dir: PodDir,
        link: Option<(Link, i32)>,
        events: broadcast::Sender<Event>,
    ) -> Arc<Self> {
        let process = link.as_ref().and_then(|(_, pid)| {
            let pidfd = sys::pidfd_open(*pid).ok()?;
            Some((*pid, sys::watch(pidfd).ok()?))
        });
        let pod = Arc::new(Self {
            record,
            dir,
            state: Mutex::new(State {
                alive: process.is_some(),
                containers: Vec::new(),
            }),
            link: link.map(|(link, _)| Arc::new(link)),
            process,
            changed: watch::channel(()).0,
            events,
            reader: Mutex::new(None),
        });
        for container in recorded(&pod.dir) {
            lock(&pod.state).containers.push(container);
        }
        match &pod.link {
            Some(link) if pod.process.is_some() => {
                let reader = tokio::spawn(keep_reading(pod.clone(), link.clone()));
                *lock(&pod.reader) = Some(reader.abort_handle());
            }
            _ => pod.lost(),
        }
        pod
    }

    pub fn uid(&self) -> &str {
        &self.record.config.identity.uid
    }

    pub fn snapshot(&self) -> PodState {
        let state = lock(&self.state);
        PodState {
            config: self.record.config.clone(),
            created: self.record.created,
            alive: state.alive,
            containers: state.containers.clone(),
        }
    }

    pub fn phase(&self, id: &str) -> Option<Phase> {
        let state = lock(&self.state);
        let container = state.containers.iter().find(|one| one.id == id)?;
        Some(container.phase.clone())
    }

    pub fn add(&self, container: ContainerState) {
        lock(&self.state).containers.push(container);
    }

    pub fn forget(&self, id: &str) {
        lock(&self.state).containers.retain(|one| one.id != id);
        self.changed.send_replace(());
    }

    /// Containers that were recorded but not yet heard of.
    pub fn unstarted(&self) -> Vec<String> {
        let state = lock(&self.state);
        let unstarted = state
            .containers
            .iter()
            .filter(|one| one.phase == Phase::Created);
        unstarted.map(|one| one.id.clone()).collect()
    }

    /// Takes a container's new phase. The end is final: late news of a start do not undo it.
    fn apply(&self, id: &str, phase: Phase) {
        let ended = matches!(phase, Phase::Exited { .. });
        {
            let mut state = lock(&self.state);
            let Some(container) = state.containers.iter_mut().find(|one| one.id == id) else {
                return;
            };
            if matches!(container.phase, Phase::Exited { .. }) {
                return;
            }
            container.phase = phase;
        }
        self.changed.send_replace(());
        if ended {
            self.tell();
        }
    }

    /// Tells listeners to look at the pod.
    pub fn tell(&self) {
        let event = Event {
            pod_uid: self.uid().into(),
        };
        let _ = self.events.send(event); // nobody need listen
    }

    /// The supervisor is gone, and with it all that was known of what ran.
    fn lost(&self) {
        if let Some(link) = &self.link {
            link.close();
        }
        let last: Vec<ContainerState> = recorded(&self.dir);
        {
            let mut state = lock(&self.state);
            state.alive = false;
            for container in &mut state.containers {
                if matches!(container.phase, Phase::Exited { .. }) {
                    continue;
                }
                let told = last.iter().find(|one| one.id == container.id);
                container.phase = match told.map(|one| one.phase.clone()) {
                    Some(phase @ Phase::Exited { .. }) => phase,
                    earlier => Phase::Exited {
                        exit: Exit {
                            code: 137,
                            signal: None,
                            oom_killed: false,
                            error: "the pod's supervisor is gone".into(),
                        },
                        started: match earlier {
                            Some(Phase::Running { started, .. }) => Some(started),
                            _ => None,
                        },
                        finished: SystemTime::now(),
                    },
                };
            }
        }
        self.changed.send_replace(());
        self.tell();
    }

    /// Returns once the container has ended or is forgotten.
    pub async fn ended(&self, id: &str) {
        let ended = |phase| matches!(phase, None | Some(Phase::Exited { .. }));
        self.until(id, ended).await;
    }

    /// Returns once the container runs, has ended or is forgotten.
    pub async fn launched(&self, id: &str) {
        self.until(id, |phase| phase != Some(Phase::Created)).await;
    }

    async fn until(&self, id: &str, suits: impl Fn(Option<Phase>) -> bool) {
        let mut changed = self.changed.subscribe();
        while !suits(self.phase(id)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns once the supervisor's process has ended.
    pub async fn supervisor_ended(&self) {
        if let Some((_, process)) = &self.process {
            let _ = process.readable().await;
        }
    }

    /// One of the supervisor's namespaces, surely its own and not that of a later process.
    pub fn namespace(&self, name: &str) -> std::io::Result<OwnedFd> {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let (pid, process) = self.process.as_ref().ok_or_else(gone)?;
        let file = std::fs::File::open(format!("/proc/{pid}/ns/{name}"))?;
        sys::pidfd_send_signal(process.get_ref().as_fd(), 0)?;
        Ok(file.into())
    }

    /// Stops reading; the supervisor goes on.
    pub fn let_go(&self) {
        if let Some(reader) = lock(&self.reader).take() {
            reader.abort();
        }
    }
}

/// News that cannot be taken in must not keep later ones from it.
async fn keep_reading(pod: Arc<Pod>, link: Arc<Link>) {
    while let Err(panic) = caught(read(pod.clone(), link.clone())).await {
        tracing::error!(pod = pod.uid(), %panic, "news of a pod were not taken in");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Hears the supervisor until it is gone.
async fn read(pod: Arc<Pod>, link: Arc<Link>) {
    loop {
        match link.receive().await {
            Ok(Some((Frame::Answer { number, result }, fds))) => {
                link.answered(number, (result, fds));
            }
            Ok(Some((Frame::Changed { id, phase }, _))) => pod.apply(&id, phase),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(pod = pod.uid(), %error, "supervisor's connection");
                break;
            }
        }
    }
    pod.lost();
}

/// Containers as their records tell.
fn recorded(dir: &PodDir) -> Vec<ContainerState> {
    let mut found: Vec<(SystemTime, ContainerState)> = dir
        .container_ids()
        .into_iter()
        .filter_map(|id| {
            let record: ContainerRecord = records::read(&dir.container_config(&id)).ok()?;
            let state: Option<StateRecord> = records::read(&dir.container_state(&id)).ok();
            Some((record.created, container_state(&record, state)))
        })
        .collect();
    found.sort_by_key(|(created, _)| *created);
    found.into_iter().map(|(_, container)| container).collect()
}

pub fn container_state(record: &ContainerRecord, state: Option<StateRecord>) -> ContainerState {
    ContainerState {
        id: record.id.clone(),
        name: record.config.name.clone(),
        attempt: record.config.attempt,
        annotations: record.config.annotations.clone(),
        phase: state.map_or(Phase::Created, |state| state.phase),
        log_path: record.config.io.log_path.clone(),
    }
}
