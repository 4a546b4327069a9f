//! What the API is told of a pod. Pure.
//!
//! A terminal phase is told once the pod's containers have ended, and never changes.

use std::{net::IpAddr, time::SystemTime};

use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus, HostIP, Pod,
        PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{
    Member, Role, conditions, members,
    plan::{Observed, Verdict, due},
    record::{Fault, Origin, Record, SCHEME, Sandbox, terminated_state},
};
use crate::runtime::Phase;

/// All that a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub observed: Observed<'a>,
    pub host_ips: &'a [IpAddr],
    pub pod_ips: &'a [IpAddr],
    /// What was told before, by us or by others.
    pub previous: &'a PodStatus,
    /// All containers have ended and nothing will start again.
    pub ended: bool,
}

/// Seconds are all that the API keeps.
pub fn time(at: SystemTime) -> Option<Time> {
    let timestamp = Timestamp::try_from(at).ok()?;
    Timestamp::from_second(timestamp.as_second()).ok().map(Time)
}

pub fn status(view: &View<'_>) -> PodStatus {
    let members = members(view.observed.pod);
    // Of a pod that was turned away there is nothing to tell.
    let turned_away = view.ended && view.observed.records.is_empty();
    let statuses = |wanted: fn(Role) -> bool| {
        if turned_away {
            return None;
        }
        let list: Vec<ContainerStatus> = members
            .iter()
            .filter(|member| wanted(member.role))
            .map(|member| view.container(member, &members))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    let text = |ips: &[IpAddr]| -> Vec<String> { ips.iter().map(IpAddr::to_string).collect() };
    let (host_ips, pod_ips) = (text(view.host_ips), text(view.pod_ips));
    let phase = view.phase(&members);
    let told = view.previous;
    let (reason, message) = match (phase, view.verdict()) {
        _ if view.is_settled() => (told.reason.clone(), told.message.clone()),
        ("Failed", Some(Verdict::Failed { reason, message })) => (reason, message),
        _ => (None, None),
    };
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        observed_generation: view.observed.taken_up(),
        start_time: told
            .start_time
            .clone()
            .or_else(|| view.observed.started.and_then(time)),
        host_ip: host_ips.first().cloned(),
        host_ips: (!host_ips.is_empty())
            .then(|| host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty())
            .then(|| pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        init_container_statuses: statuses(|role| matches!(role, Role::Init | Role::Sidecar)),
        container_statuses: statuses(|role| role == Role::Regular),
        ephemeral_container_statuses: statuses(|role| role == Role::Ephemeral),
        qos_class: told.qos_class.clone(),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions::conditions(view, &members, &status));
    status
}

impl View<'_> {
    /// The phase that nothing changes any more.
    fn is_settled(&self) -> bool {
        matches!(self.previous.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// How the pod ended, when it has.
    fn verdict(&self) -> Option<Verdict> {
        if !self.ended {
            return None;
        }
        let ending = self.observed.ending?;
        let decided = ending.verdict.clone();
        Some(decided.unwrap_or_else(|| self.codes()))
    }

    /// A deleted pod ends as its containers did; one that never ran has failed.
    fn codes(&self) -> Verdict {
        let members = members(self.observed.pod);
        let good = members
            .iter()
            .filter(|member| member.role == Role::Regular)
            .all(|member| {
                let record = self.observed.latest(member.name());
                record.and_then(Record::exit_code) == Some(0)
            });
        match good {
            true => Verdict::Succeeded,
            false => Verdict::FAILED,
        }
    }

    fn phase(&self, members: &[Member<'_>]) -> &'static str {
        match self.previous.phase.as_deref() {
            Some("Succeeded") => return "Succeeded",
            Some("Failed") => return "Failed",
            _ => {}
        }
        match self.verdict() {
            Some(Verdict::Succeeded) => return "Succeeded",
            Some(Verdict::Failed { .. }) => return "Failed",
            None => {}
        }
        let all_seen = members
            .iter()
            .filter(|member| member.role == Role::Regular)
            .all(|member| self.observed.shown(member.name()).is_some());
        match all_seen && self.observed.is_initialized(members) {
            true => "Running",
            false => "Pending",
        }
    }

    fn container(&self, member: &Member<'_>, members: &[Member<'_>]) -> ContainerStatus {
        let observed = &self.observed;
        let latest = observed.shown(member.name());
        let image = member.spec.image.clone().unwrap_or_default();
        let state = self.state(member, latest, members);
        let running = state.running.is_some();
        ContainerStatus {
            name: member.name().to_owned(),
            image: match latest {
                Some(record) if !record.image_name.is_empty() => record.image_name.clone(),
                _ => image,
            },
            image_id: latest.map_or_else(String::new, |record| record.image_id.clone()),
            container_id: latest
                .filter(|record| !record.id.is_empty())
                .map(|record| format!("{SCHEME}{}", record.id)),
            restart_count: latest.map_or(0, |record| i32::try_from(record.attempt).unwrap_or(0)),
            last_state: self.last_state(member, latest, &state),
            ready: match member.role {
                Role::Init => latest.and_then(Record::exit_code) == Some(0),
                Role::Ephemeral => false,
                Role::Regular | Role::Sidecar => observed.is_ready(member),
            },
            started: Some(observed.has_started(member)),
            resources: member.spec.resources.clone().filter(|_| running),
            allocated_resources: member
                .spec
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.clone())
                .filter(|_| running),
            state: Some(state),
            ..ContainerStatus::default()
        }
    }

    fn state(
        &self,
        member: &Member<'_>,
        latest: Option<&Record>,
        members: &[Member<'_>],
    ) -> ContainerState {
        let Some(record) = latest else {
            return self.waiting(member, members);
        };
        match &record.phase {
            Phase::Created => self.waiting(member, members),
            Phase::Running { started, .. } => ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: time(*started),
                }),
                ..ContainerState::default()
            },
            Phase::Exited { .. } => match self.waits(member, record) {
                Some((reason, message)) => waiting(reason, Some(message)),
                None if record.origin == Origin::Before && self.comes_again(member, record) => {
                    self.waiting(member, members)
                }
                None => {
                    let message = self.observed.marks.messages.get(&record.id);
                    terminated_state(record, message.map(String::as_str)).unwrap_or_default()
                }
            },
        }
    }

    fn comes_again(&self, member: &Member<'_>, record: &Record) -> bool {
        let rerun = member.role == Role::Init && record.origin == Origin::Before;
        self.observed.ending.is_none() && (rerun || self.observed.will_restart(member, record))
    }

    /// Why an ended container that will come again is not there yet.
    fn waits(&self, member: &Member<'_>, record: &Record) -> Option<(&'static str, String)> {
        let observed = &self.observed;
        if !self.comes_again(member, record) {
            return None;
        }
        if let Some(setback) = observed.marks.setbacks.get(member.name()) {
            return Some((setback.reason, setback.message.clone()));
        }
        if let Some(Fault::PostStart(message)) = observed.marks.faults.get(&record.id) {
            return Some(("PostStartHookError", message.clone()));
        }
        let image = member.spec.image.as_deref().unwrap_or_default();
        let waits = record.origin == Origin::Here
            && !observed.is_starting(member.name())
            && due(record, image) > observed.now;
        waits.then(|| ("CrashLoopBackOff", back_off(observed.pod, member, record)))
    }

    fn waiting(&self, member: &Member<'_>, members: &[Member<'_>]) -> ContainerState {
        if let Some(setback) = self.observed.marks.setbacks.get(member.name()) {
            return waiting(setback.reason, Some(setback.message.clone()));
        }
        // Nobody has tried again yet since it was told.
        if let Some(told) = self.told_waiting(member) {
            return told;
        }
        let has_init = members
            .iter()
            .any(|member| matches!(member.role, Role::Init | Role::Sidecar));
        let initializing =
            has_init && (member.role != Role::Regular || !self.observed.is_initialized(members));
        match initializing {
            true => waiting("PodInitializing", None),
            false => waiting("ContainerCreating", None),
        }
    }

    /// What the container waited for when it was told of last, if that was its own trouble.
    fn told_waiting(&self, member: &Member<'_>) -> Option<ContainerState> {
        let state = self.told(member)?.state.as_ref()?;
        let reason = state.waiting.as_ref()?.reason.as_deref()?;
        let plain = matches!(reason, "ContainerCreating" | "PodInitializing");
        (!plain && self.observed.sandbox != Sandbox::Absent).then(|| state.clone())
    }

    fn told(&self, member: &Member<'_>) -> Option<&ContainerStatus> {
        let list = match member.role {
            Role::Init | Role::Sidecar => &self.previous.init_container_statuses,
            Role::Regular => &self.previous.container_statuses,
            Role::Ephemeral => &self.previous.ephemeral_container_statuses,
        };
        let mut told = list.iter().flatten();
        told.find(|status| status.name == member.name())
    }

    /// The end before the one that `state` shows.
    fn last_state(
        &self,
        member: &Member<'_>,
        latest: Option<&Record>,
        state: &ContainerState,
    ) -> Option<ContainerState> {
        let message = |record: &Record| self.observed.marks.messages.get(&record.id);
        let told = |record: &Record| terminated_state(record, message(record).map(String::as_str));
        if state.terminated.is_none()
            && let Some(latest) = latest.filter(|record| record.is_exited())
        {
            return told(latest);
        }
        let earlier = self
            .observed
            .records
            .iter()
            .rfind(|record| {
                record.name == member.name()
                    && record.is_exited()
                    && latest.is_some_and(|latest| record.attempt < latest.attempt)
            })
            .and_then(told);
        earlier.or_else(|| self.told_last(member, latest))
    }

    /// Records of earlier attempts go sooner than the wish to know of them.
    fn told_last(&self, member: &Member<'_>, latest: Option<&Record>) -> Option<ContainerState> {
        let told = self.told(member)?;
        let latest = latest.map(|record| format!("{SCHEME}{}", record.id));
        let states = [told.state.as_ref(), told.last_state.as_ref()];
        states
            .into_iter()
            .flatten()
            .find(|state| {
                let ended = state.terminated.as_ref();
                ended.is_some_and(|ended| ended.container_id != latest)
            })
            .cloned()
    }

    pub fn sandbox_ready(&self) -> bool {
        let kind = conditions::SANDBOX;
        let told = || conditions::held(self.previous, kind).is_some_and(|c| c.status == "True");
        !self.ended
            && match self.observed.sandbox {
                Sandbox::Ready => true,
                Sandbox::Checking => told(),
                _ => false,
            }
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: message.filter(|message| !message.is_empty()),
        }),
        ..ContainerState::default()
    }
}

/// The text of CrashLoopBackOff.
fn back_off(pod: &Pod, member: &Member<'_>, record: &Record) -> String {
    format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(record.delay.as_secs()),
        member.name(),
        pod.name_any(),
        pod.namespace().unwrap_or_default(),
        pod.uid().unwrap_or_default(),
    )
}

/// `10s`, `2m40s`, `5m0s`.
fn go_duration(seconds: u64) -> String {
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{
        super::{
            plan::Ending,
            record::{Marks, Setback},
            testing::{at, exited, observed, pod, running},
        },
        *,
    };

    fn told(view: &View<'_>) -> Value {
        serde_json::to_value(status(view)).unwrap()
    }

    fn view<'a>(observed: Observed<'a>, previous: &'a PodStatus) -> View<'a> {
        View {
            observed,
            host_ips: &[],
            pod_ips: &[],
            previous,
            ended: false,
        }
    }

    /// `Waiting/CrashLoopBackOff`, `Running`, `Terminated/Completed`.
    fn state(status: &Value, list: &str, index: usize) -> String {
        let state = status[list][index]["state"].as_object().unwrap();
        let (kind, inner) = state.iter().next().unwrap();
        match inner["reason"].as_str() {
            Some(reason) => format!("{kind}/{reason}"),
            None => kind.clone(),
        }
    }

    #[test]
    fn phases_and_states() {
        let one =
            |policy: &str| pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        let init = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
        let delayed = |seconds| {
            let mut record = exited("a", 1, 1);
            record.delay = Duration::from_secs(seconds);
            record
        };
        for (what, pod, records, phase, want) in [
            (
                "new",
                one("Always"),
                vec![],
                "Pending",
                "waiting/ContainerCreating",
            ),
            (
                "new with init",
                init.clone(),
                vec![],
                "Pending",
                "waiting/PodInitializing",
            ),
            (
                "init runs",
                init.clone(),
                vec![running("i", 0)],
                "Pending",
                "waiting/PodInitializing",
            ),
            (
                "init done",
                init,
                vec![exited("i", 0, 0)],
                "Pending",
                "waiting/ContainerCreating",
            ),
            (
                "runs",
                one("Always"),
                vec![running("a", 0)],
                "Running",
                "running",
            ),
            (
                "crashed once",
                one("Always"),
                vec![exited("a", 0, 1)],
                "Running",
                "terminated/Error",
            ),
            (
                "crashed again",
                one("Always"),
                vec![delayed(10)],
                "Running",
                "waiting/CrashLoopBackOff",
            ),
            (
                "ended",
                one("OnFailure"),
                vec![exited("a", 0, 0)],
                "Running",
                "terminated/Completed",
            ),
        ] {
            let (marks, previous) = (Marks::default(), PodStatus::default());
            let status = told(&view(observed(&pod, &records, &marks), &previous));
            assert_eq!(status["phase"], phase, "{what}");
            assert_eq!(state(&status, "containerStatuses", 0), want, "{what}");
        }
    }

    #[test]
    fn the_end_is_told_once_and_for_all() {
        let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
        let good = [exited("a", 0, 0)];
        let bad = [exited("a", 0, 3)];
        let ending = |verdict| Ending {
            verdict,
            since: at(10),
            grace: Duration::from_secs(30),
        };
        let deadline = Verdict::Failed {
            reason: Some("DeadlineExceeded".into()),
            message: None,
        };
        for (records, verdict, previous, want) in [
            (&good[..], Some(Verdict::Succeeded), "Running", "Succeeded"),
            (&bad, Some(Verdict::FAILED), "Running", "Failed"),
            (&good, Some(deadline), "Running", "Failed DeadlineExceeded"),
            // Deleted.
            (&good, None, "Running", "Succeeded"),
            (&bad, None, "Running", "Failed"),
            (&[], None, "Pending", "Failed"),
            // Never back.
            (&bad, None, "Succeeded", "Succeeded"),
        ] {
            let (marks, ending) = (Marks::default(), ending(verdict));
            let previous = PodStatus {
                phase: Some(previous.into()),
                ..PodStatus::default()
            };
            let mut observed = observed(&pod, records, &marks);
            observed.ending = Some(&ending);
            let mut view = view(observed, &previous);
            view.ended = true;
            let status = told(&view);
            let reason = status["reason"].as_str().unwrap_or_default();
            let shown = format!("{} {reason}", status["phase"].as_str().unwrap());
            assert_eq!(shown.trim(), want);
        }
    }

    #[test]
    fn a_pod_turned_away_has_no_containers() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let (marks, previous) = (Marks::default(), PodStatus::default());
        let ending = Ending {
            verdict: Some(Verdict::FAILED),
            since: at(0),
            grace: Duration::ZERO,
        };
        let mut observed = observed(&pod, &[], &marks);
        observed.ending = Some(&ending);
        let mut view = view(observed, &previous);
        assert!(told(&view)["containerStatuses"].is_array());
        view.ended = true;
        assert!(told(&view)["containerStatuses"].is_null());
        assert_eq!(told(&view)["phase"], "Failed");
    }

    #[test]
    fn what_a_container_tells() {
        let pod = pod(json!({"containers": [{"name": "a", "readinessProbe": {}}]}));
        let records = [exited("a", 0, 1), running("a", 1)];
        let mut marks = Marks::default();
        let previous = PodStatus::default();
        let ready = |marks: &Marks| {
            told(&view(observed(&pod, &records, marks), &previous))["containerStatuses"][0].clone()
        };
        let container = ready(&marks);
        assert_eq!(container["ready"], false);
        assert_eq!(container["started"], true);
        assert_eq!(container["restartCount"], 1);
        assert_eq!(container["containerID"], "vetch://a-1");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
        assert_eq!(container["image"], "docker.io/library/i:latest");
        marks.ready.insert("a-1".into());
        assert_eq!(ready(&marks)["ready"], true);
        marks.starting.insert("a".into());
        assert_eq!(ready(&marks)["ready"], false);
        marks.starting.clear();
        marks.in_hook.insert("a-1".into());
        assert_eq!(ready(&marks)["ready"], false);
        assert_eq!(ready(&marks)["started"], false);
    }

    #[test]
    fn setbacks_show_and_the_last_end_stays() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut marks = Marks::default();
        marks.setbacks.insert(
            "a".into(),
            Setback {
                reason: "ImagePullBackOff",
                message: "no".into(),
                again: at(20),
                image: "i".into(),
            },
        );
        let before: PodStatus = serde_json::from_value(json!({"containerStatuses": [{
            "name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 9, "containerID": "vetch://a-0"}},
        }]}))
        .unwrap();
        let status = told(&view(observed(&pod, &[], &marks), &before));
        assert_eq!(
            state(&status, "containerStatuses", 0),
            "waiting/ImagePullBackOff"
        );
        let last = &status["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 9);
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (seconds, want) in [(10, "10s"), (160, "2m40s"), (300, "5m0s")] {
            assert_eq!(go_duration(seconds), want);
        }
    }
}
