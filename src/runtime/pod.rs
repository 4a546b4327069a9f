//! What the daemon knows of one pod, kept true by what its supervisor tells.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use serde::de::DeserializeOwned;
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
use crate::{
    format::{self, Unreadable},
    supervision::caught,
};

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
    ///
    /// Errors: a shortage of descriptors, after which nothing has changed.
    pub fn new(
        loaded: Loaded,
        dir: PodDir,
        link: Option<(Link, i32)>,
        events: broadcast::Sender<Event>,
    ) -> std::io::Result<Arc<Self>> {
        let Loaded { record, containers } = loaded;
        let process = match &link {
            Some((_, pid)) => match sys::pidfd_open(*pid).and_then(sys::watch) {
                Ok(process) => Some((*pid, process)),
                Err(error) if format::is_shortage(&error) => return Err(error),
                Err(_) => None, // it has just ended
            },
            None => None,
        };
        let pod = Arc::new(Self {
            record,
            dir,
            state: Mutex::new(State {
                alive: process.is_some(),
                containers,
            }),
            link: link.map(|(link, _)| Arc::new(link)),
            process,
            changed: watch::channel(()).0,
            events,
            reader: Mutex::new(None),
        });
        match &pod.link {
            Some(link) if pod.process.is_some() => {
                let reader = tokio::spawn(keep_reading(pod.clone(), link.clone()));
                *lock(&pod.reader) = Some(reader.abort_handle());
            }
            _ => pod.lost(),
        }
        Ok(pod)
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

    fn tell(&self) {
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
        let last = load_containers(&self.dir).unwrap_or_else(|(path, error)| {
            let path = path.display();
            tracing::warn!(pod = self.uid(), %path, %error, "how containers ended is not known");
            Vec::new()
        });
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
        let mut changed = self.changed.subscribe();
        loop {
            match self.phase(id) {
                None | Some(Phase::Exited { .. }) => return,
                Some(_) => {}
            }
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

/// What the records of one pod say.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub record: PodRecord,
    /// Oldest first.
    pub containers: Vec<ContainerState>,
}

impl Loaded {
    /// Of a pod that has just been made.
    pub fn fresh(record: PodRecord) -> Self {
        Self {
            record,
            containers: Vec::new(),
        }
    }
}

/// Reads all records of a pod, those that were set aside too, which a program of another version may
/// understand. Waits while there is a shortage. On error, which file it was. Blocking.
pub fn load(dir: &PodDir) -> Result<Loaded, (PathBuf, Unreadable)> {
    let record = read_record(&dir.pod())?;
    let containers = load_containers(dir)?;
    Ok(Loaded { record, containers })
}

fn load_containers(dir: &PodDir) -> Result<Vec<ContainerState>, (PathBuf, Unreadable)> {
    let folder = dir.containers();
    let ids = format::patiently(|| Ok(dir.container_ids()?)).map_err(|error| (folder, error))?;
    let mut found: Vec<(SystemTime, ContainerState)> = Vec::new();
    for id in ids {
        let record: ContainerRecord = match read_record(&dir.container_config(&id)) {
            Err((_, Unreadable::Absent)) => continue, // nothing has been started yet
            record => record?,
        };
        let state: Option<StateRecord> = match read_record(&dir.container_state(&id)) {
            Err((_, Unreadable::Absent)) => None,
            state => Some(state?),
        };
        found.push((record.created, container_state(&record, state)));
    }
    found.sort_by_key(|(created, _)| *created);
    Ok(found.into_iter().map(|(_, container)| container).collect())
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T, (PathBuf, Unreadable)> {
    let found = format::patiently(|| records::read(path));
    let Err(Unreadable::Absent) = found else {
        return found.map_err(|error| (path.to_owned(), error));
    };
    let aside = format::aside(path);
    let record = format::patiently(|| records::read(&aside));
    let record = record.map_err(|error| (path.to_owned(), error))?;
    // Understood after all: the version that wrote it is back.
    std::fs::rename(&aside, path).map_err(|error| (path.to_owned(), error.into()))?;
    Ok(record)
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
