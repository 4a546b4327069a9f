//! What is known of a pod's containers: from the runtime, and from the status for those of an
//! earlier sandbox, which the runtime has no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateTerminated, ContainerStatus, Lifecycle,
    PodStatus,
};

use crate::runtime::{ContainerState, Exit, Phase, PodState};

/// The runtime's name in container ids.
pub const SCHEME: &str = "vetch://";
/// The reason of a container whose end nobody saw.
pub const UNKNOWN: &str = "ContainerStatusUnknown";

/// What a container carries with it, to be found again after a restart of the daemon.
mod label {
    pub const IMAGE: &str = "vetch.dev/image";
    pub const IMAGE_NAME: &str = "vetch.dev/image-name";
    pub const IMAGE_ID: &str = "vetch.dev/image-id";
    pub const DELAY_MS: &str = "vetch.dev/restart-delay-ms";
    pub const SIGNAL: &str = "vetch.dev/stop-signal";
    pub const GRACE_MS: &str = "vetch.dev/gone-grace-ms";
    pub const PRE_STOP: &str = "vetch.dev/pre-stop";
}

/// Whether a container's sandbox is the one there is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Here,
    Before,
}

/// One attempt of one container.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    /// As the spec named it when the container started.
    pub image: String,
    pub image_name: String,
    pub image_id: String,
    /// How long to wait after its end before it starts again.
    pub delay: Duration,
    /// Asks it to stop.
    pub signal: i32,
    /// How long it has to stop when nobody knows its pod any more.
    pub grace: Option<Duration>,
    pub phase: Phase,
    pub origin: Origin,
    pub log_path: PathBuf,
    /// What the status told of its end, if the runtime has nothing.
    pub told: Option<ContainerStateTerminated>,
}

/// What the worker gives a container for [`Record::here`].
pub struct Carried<'a> {
    pub image: &'a str,
    pub image_name: &'a str,
    pub image_id: &'a str,
    pub delay: Duration,
    pub signal: i32,
    pub grace: Duration,
    pub spec: &'a Container,
}

impl Carried<'_> {
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let hook = with_pre_stop(self.spec).and_then(|spec| serde_json::to_string(&spec).ok());
        let hook = hook.map(|spec| (label::PRE_STOP.to_owned(), spec));
        let all = [
            (label::IMAGE, self.image.to_owned()),
            (label::IMAGE_NAME, self.image_name.to_owned()),
            (label::IMAGE_ID, self.image_id.to_owned()),
            (label::DELAY_MS, self.delay.as_millis().to_string()),
            (label::SIGNAL, self.signal.to_string()),
            (label::GRACE_MS, self.grace.as_millis().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        all.into_iter().chain(hook).collect()
    }
}

/// Of a container with a preStop hook what that needs: it runs also when nobody knows the pod any more.
fn with_pre_stop(spec: &Container) -> Option<Container> {
    let pre_stop = spec.lifecycle.as_ref()?.pre_stop.clone()?;
    Some(Container {
        name: spec.name.clone(),
        ports: spec.ports.clone(),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(pre_stop),
            ..Lifecycle::default()
        }),
        ..Container::default()
    })
}

/// As much of the container's spec as its preStop hook needs, if it has one.
pub fn carried_pre_stop(state: &ContainerState) -> Option<Container> {
    let text = state.annotations.get(label::PRE_STOP)?;
    serde_json::from_str(text).ok()
}

impl Record {
    pub fn here(state: ContainerState, alive: bool) -> Self {
        let annotation = |key: &str| state.annotations.get(key).cloned().unwrap_or_default();
        let delay = annotation(label::DELAY_MS).parse().unwrap_or(0);
        let signal = annotation(label::SIGNAL).parse();
        let grace = annotation(label::GRACE_MS).parse().ok();
        let lost = !alive && !matches!(state.phase, Phase::Exited { .. });
        Self {
            image: annotation(label::IMAGE),
            image_name: annotation(label::IMAGE_NAME),
            image_id: annotation(label::IMAGE_ID),
            delay: Duration::from_millis(delay),
            signal: signal.unwrap_or(libc::SIGTERM),
            grace: grace.map(Duration::from_millis),
            told: lost.then(|| unknown(&state.id)),
            phase: match lost {
                true => lost_phase(),
                false => state.phase,
            },
            origin: match alive {
                true => Origin::Here,
                false => Origin::Before,
            },
            id: state.id,
            name: state.name,
            attempt: state.attempt,
            log_path: state.log_path,
        }
    }

    /// A container that the status tells of and nothing else.
    fn before(status: &ContainerStatus) -> Option<Self> {
        let state = status.state.as_ref();
        let ended = state.and_then(|state| state.terminated.clone());
        let last = status.last_state.as_ref();
        let last = last.and_then(|state| state.terminated.clone());
        let was_running = state.is_some_and(|state| state.running.is_some());
        let id = status.container_id.clone().unwrap_or_default();
        let told = match (ended, was_running) {
            (Some(ended), _) => ended,
            (None, true) => unknown(id.trim_start_matches(SCHEME)),
            (None, false) => last?,
        };
        let id = told.container_id.clone().unwrap_or(id);
        Some(Self {
            id: id.trim_start_matches(SCHEME).to_owned(),
            name: status.name.clone(),
            attempt: u32::try_from(status.restart_count).unwrap_or(0),
            image: String::new(),
            image_name: status.image.clone(),
            image_id: status.image_id.clone(),
            delay: Duration::ZERO,
            signal: libc::SIGTERM,
            grace: None,
            phase: Phase::Exited {
                exit: Exit {
                    code: told.exit_code,
                    signal: None,
                    oom_killed: false,
                    error: String::new(),
                },
                started: told.started_at.as_ref().map(|time| time.0.into()),
                finished: told
                    .finished_at
                    .as_ref()
                    .map_or(SystemTime::UNIX_EPOCH, |time| time.0.into()),
            },
            origin: Origin::Before,
            log_path: PathBuf::new(),
            told: Some(told),
        })
    }

    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Made, but not yet known to run.
    pub fn is_launching(&self) -> bool {
        self.phase == Phase::Created
    }

    pub fn is_exited(&self) -> bool {
        matches!(self.phase, Phase::Exited { .. })
    }

    pub fn exit_code(&self) -> Option<i32> {
        match &self.phase {
            Phase::Exited { exit, .. } => Some(exit.code),
            _ => None,
        }
    }
}

fn lost_phase() -> Phase {
    Phase::Exited {
        exit: Exit {
            code: 137,
            signal: None,
            oom_killed: false,
            error: String::new(),
        },
        started: None,
        finished: SystemTime::UNIX_EPOCH,
    }
}

fn unknown(id: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("{SCHEME}{id}")),
        exit_code: 137,
        reason: Some(UNKNOWN.into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..ContainerStateTerminated::default()
    }
}

/// All that is known, oldest first.
pub fn records(state: Option<PodState>, status: &PodStatus) -> Vec<Record> {
    let (alive, containers) = match state {
        Some(state) => (state.alive, state.containers),
        None => (false, Vec::new()),
    };
    let mut records: Vec<Record> = containers
        .into_iter()
        .map(|container| Record::here(container, alive))
        .collect();
    let told = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    for status in told.into_iter().flatten().flatten() {
        if !records.iter().any(|record| record.name == status.name) {
            records.extend(Record::before(status));
        }
    }
    records.sort_by_key(|record| record.attempt);
    records
}

/// How the status tells a container's end.
pub fn terminated(record: &Record, message: Option<&str>) -> Option<ContainerStateTerminated> {
    if let Some(told) = &record.told {
        return Some(told.clone());
    }
    let Phase::Exited {
        exit,
        started,
        finished,
    } = &record.phase
    else {
        return None;
    };
    let reason = match exit {
        Exit {
            oom_killed: true, ..
        } => "OOMKilled",
        Exit { error, .. } if !error.is_empty() => "StartError",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    };
    let message = match exit.error.as_str() {
        "" => message.unwrap_or_default(),
        error => error,
    };
    Some(ContainerStateTerminated {
        container_id: Some(format!("{SCHEME}{}", record.id)),
        exit_code: exit.code,
        finished_at: super::status::time(*finished),
        message: (!message.is_empty()).then(|| message.to_owned()),
        reason: Some(reason.into()),
        signal: None,
        started_at: super::status::time(started.unwrap_or(*finished)),
    })
}

/// The same as one of a status' states.
pub fn terminated_state(record: &Record, message: Option<&str>) -> Option<ApiState> {
    Some(ApiState {
        terminated: Some(terminated(record, message)?),
        ..ApiState::default()
    })
}

/// The namespaces around the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    Absent,
    /// Its supervisor is gone, whatever was in it too.
    Broken,
    Making,
    /// An earlier daemon made it; what is missing is being made.
    Checking,
    /// Could not be made; not again before.
    Failed {
        again: SystemTime,
    },
    Ready,
}

/// Why a running container shall not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Liveness,
    Startup,
    /// With what the hook said.
    PostStart(String),
}

/// A start that did not work, and when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    pub reason: &'static str,
    pub message: String,
    pub again: SystemTime,
    /// As the spec named it. A start with another one has not failed yet.
    pub image: String,
}

/// What the worker knows beyond the runtime: by container id, or by name where it says so.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// The startup probe has succeeded.
    pub started: BTreeSet<String>,
    /// The readiness probe says yes.
    pub ready: BTreeSet<String>,
    /// The postStart hook has not ended.
    pub in_hook: BTreeSet<String>,
    pub faults: BTreeMap<String, Fault>,
    /// Told to stop because of a fault, while they ran. An end of their own is nobody's fault.
    pub stopped_by_fault: BTreeSet<String>,
    /// Their wait for the next attempt was told of.
    pub waiting: BTreeSet<String>,
    /// Being stopped, until when at the latest.
    pub stopping: BTreeMap<String, SystemTime>,
    /// Names of containers that are being started.
    pub starting: BTreeSet<String>,
    /// Starts that failed, by name.
    pub setbacks: BTreeMap<String, Setback>,
    /// What containers left as their last words.
    pub messages: BTreeMap<String, String>,
    /// Why the node evicted the pod.
    pub disrupted: Option<String>,
    /// The last change of an image in the pod's spec.
    pub edited: Option<Edit>,
}

/// A change of a running pod's spec.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    pub at: SystemTime,
    /// The pod's generation that was taken up before.
    pub before: Option<i64>,
}

impl Marks {
    /// Forgets containers that are no more.
    pub fn retain(&mut self, records: &[Record]) {
        let ids: BTreeSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
        self.started.retain(|id| ids.contains(id.as_str()));
        self.ready.retain(|id| ids.contains(id.as_str()));
        self.in_hook.retain(|id| ids.contains(id.as_str()));
        self.waiting.retain(|id| ids.contains(id.as_str()));
        self.faults.retain(|id, _| ids.contains(id.as_str()));
        self.stopped_by_fault.retain(|id| ids.contains(id.as_str()));
        self.stopping.retain(|id, _| ids.contains(id.as_str()));
        self.messages.retain(|id, _| ids.contains(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_stands_in_for_a_lost_sandbox() {
        let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [
            {"name": "ran", "image": "i", "imageID": "s", "ready": true, "restartCount": 2,
             "containerID": "vetch://abc", "state": {"running": {}}},
            {"name": "done", "image": "i", "imageID": "s", "ready": false, "restartCount": 0,
             "containerID": "vetch://def",
             "state": {"terminated": {"exitCode": 3, "reason": "Error", "containerID": "vetch://def"}}},
            {"name": "waiting", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "ContainerCreating"}}},
        ]}))
        .unwrap();
        let records = records(None, &status);
        let shown: Vec<_> = records
            .iter()
            .map(|r| {
                (
                    r.name.as_str(),
                    r.id.as_str(),
                    r.attempt,
                    r.exit_code(),
                    r.origin,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("done", "def", 0, Some(3), Origin::Before),
                ("ran", "abc", 2, Some(137), Origin::Before),
            ]
        );
        let end = terminated(&records[1], None).unwrap();
        assert_eq!(end.reason.as_deref(), Some(UNKNOWN));
        assert_eq!(end.container_id.as_deref(), Some("vetch://abc"));
    }

    #[test]
    fn how_ends_are_told() {
        for (code, oom_killed, error, want) in [
            (0, false, "", "Completed"),
            (1, false, "", "Error"),
            (143, false, "", "Error"),
            (137, true, "", "OOMKilled"),
            (128, false, "no such file", "StartError"),
        ] {
            let mut record = super::super::testing::exited("c", 0, code);
            if let Phase::Exited { exit, .. } = &mut record.phase {
                (exit.oom_killed, exit.error) = (oom_killed, error.into());
            }
            let end = terminated(&record, Some("bye")).unwrap();
            assert_eq!(end.reason.as_deref(), Some(want));
            let message = if error.is_empty() { "bye" } else { error };
            assert_eq!(end.message.as_deref(), Some(message));
        }
    }
}
