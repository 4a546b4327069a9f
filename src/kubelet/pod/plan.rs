//! What to do next for a pod. Pure: no clock, no I/O.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use super::{
    Member, Role, grace, members,
    record::{Fault, Marks, Origin, Record, Sandbox},
    restarts,
};
use crate::runtime::Phase;

const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// A container that ran so long has not crashed in a row.
const STEADY: Duration = Duration::from_secs(600);
/// A container gets this long to stop even when its pod's grace period is used up.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// A stop is ordered again only if it shall be over sooner by more than this.
const SOONER: Duration = Duration::from_secs(1);
/// An image that was changed is taken up after this: who edits a running pod often edits it again at
/// once, and one restart is better than two.
const SETTLE: Duration = Duration::from_millis(300);

/// All that counts for the next step.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    pub pod: &'a Pod,
    pub now: SystemTime,
    /// When this node took the pod.
    pub started: Option<SystemTime>,
    pub sandbox: Sandbox,
    /// Oldest first.
    pub records: &'a [Record],
    pub marks: &'a Marks,
    pub ending: Option<&'a Ending>,
}

/// Termination, which nothing takes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// `None`: it was deleted.
    pub verdict: Option<Verdict>,
    pub since: SystemTime,
    pub grace: Duration,
}

impl Ending {
    pub fn deadline(&self) -> SystemTime {
        self.since + self.grace
    }
}

/// How a pod has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Succeeded,
    Failed {
        reason: Option<String>,
        message: Option<String>,
    },
}

impl Verdict {
    pub const FAILED: Self = Self::Failed {
        reason: None,
        message: None,
    };
}

/// Why a container is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its pod ends.
    Pod,
    /// It goes on after a restart.
    Fault(Fault),
    /// Its image is another one now.
    Changed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Namespaces, volumes, address. What is left of an earlier sandbox goes first.
    MakeSandbox,
    Start {
        container: String,
        attempt: u32,
        /// How long it will have to wait after its end.
        delay: Duration,
    },
    Stop {
        id: String,
        container: String,
        cause: Cause,
        grace: Duration,
    },
    /// A dead container that nobody needs.
    Remove { id: String },
    /// Nothing will run again: terminate.
    End(Verdict),
    /// Nothing runs any more: give everything back.
    Release,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Look again then, even if nothing happens.
    pub wake: Option<SystemTime>,
}

impl Plan {
    fn wake(&mut self, at: SystemTime) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

pub fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    match observed.ending {
        Some(ending) => observed.stop_all(ending, &mut plan),
        None => observed.run(&mut plan),
    }
    plan
}

/// When a container that ended may start again; in the past if at once.
pub fn due(record: &Record, image: &str) -> SystemTime {
    let Phase::Exited {
        started, finished, ..
    } = &record.phase
    else {
        return SystemTime::UNIX_EPOCH;
    };
    match record.image == image && !ran_long(*started, *finished) {
        true => *finished + record.delay,
        false => SystemTime::UNIX_EPOCH,
    }
}

fn ran_long(started: Option<SystemTime>, finished: SystemTime) -> bool {
    started
        .and_then(|started| finished.duration_since(started).ok())
        .is_some_and(|ran| ran >= STEADY)
}

/// How long the next attempt will wait after its end.
fn next_delay(record: &Record, image: &str) -> Duration {
    let Phase::Exited {
        started, finished, ..
    } = &record.phase
    else {
        return Duration::ZERO;
    };
    if record.origin == Origin::Here && record.image != image {
        return Duration::ZERO;
    }
    match record.delay.is_zero() || ran_long(*started, *finished) {
        true => FIRST_DELAY,
        false => (record.delay * 2).min(LONGEST_DELAY),
    }
}

impl<'a> Observed<'a> {
    pub fn latest(&self, name: &str) -> Option<&'a Record> {
        self.records.iter().rfind(|record| record.name == name)
    }

    /// The newest that has got as far as running; one that is being made is not told of yet.
    pub fn shown(&self, name: &str) -> Option<&'a Record> {
        self.records
            .iter()
            .rfind(|record| record.name == name && record.phase != Phase::Created)
    }

    /// The newest attempt in the sandbox there is now.
    fn here(&self, name: &str) -> Option<&'a Record> {
        self.latest(name)
            .filter(|record| record.origin == Origin::Here)
    }

    pub fn is_starting(&self, name: &str) -> bool {
        self.marks.starting.contains(name)
    }

    /// Running, past its startup probe and its postStart hook.
    pub fn has_started(&self, member: &Member<'_>) -> bool {
        self.here(member.name()).is_some_and(|record| {
            record.is_running()
                && !self.marks.in_hook.contains(&record.id)
                && (member.spec.startup_probe.is_none() || self.marks.started.contains(&record.id))
        })
    }

    pub fn is_ready(&self, member: &Member<'_>) -> bool {
        self.has_started(member)
            && self.here(member.name()).is_some_and(|record| {
                member.spec.readiness_probe.is_none() || self.marks.ready.contains(&record.id)
            })
    }

    /// Whether a container that ended starts again.
    pub fn will_restart(&self, member: &Member<'_>, record: &Record) -> bool {
        let by_probe = self.marks.faults.contains_key(&record.id);
        record
            .exit_code()
            .is_some_and(|code| restarts(self.pod, member, code, by_probe))
    }

    /// Whether regular containers may run: all init containers have done their part, or regular
    /// ones have been here, which proves it.
    pub fn is_initialized(&self, members: &[Member<'_>]) -> bool {
        self.regular_seen(members)
            || members.iter().all(|member| match member.role {
                Role::Init => self.is_done(member),
                Role::Sidecar => self.has_started(member),
                Role::Regular | Role::Ephemeral => true,
            })
    }

    pub fn is_done(&self, member: &Member<'_>) -> bool {
        self.here(member.name())
            .is_some_and(|record| record.exit_code() == Some(0))
    }

    fn regular_seen(&self, members: &[Member<'_>]) -> bool {
        members.iter().any(|member| {
            member.role == Role::Regular
                && (self.here(member.name()).is_some() || self.is_starting(member.name()))
        })
    }

    /// What the containers' ends come to, if none of those that count will start again.
    pub fn verdict(&self) -> Option<Verdict> {
        let members = members(self.pod);
        let over = |member: &Member<'_>| {
            let record = self.latest(member.name())?;
            let ended = !self.is_starting(member.name()) && !self.will_restart(member, record);
            record.exit_code().filter(|_| ended)
        };
        let init_failed = members
            .iter()
            .any(|member| member.role == Role::Init && over(member).is_some_and(|code| code != 0));
        if init_failed {
            return Some(Verdict::FAILED);
        }
        let codes: Option<Vec<i32>> = members
            .iter()
            .filter(|member| member.role == Role::Regular)
            .map(over)
            .collect();
        match codes?.iter().all(|code| *code == 0) {
            true => Some(Verdict::Succeeded),
            false => Some(Verdict::FAILED),
        }
    }

    fn run(&self, plan: &mut Plan) {
        if let Some(deadline) = self.active_deadline() {
            if self.now >= deadline {
                let message =
                    "Pod was active on the node longer than the specified deadline".to_owned();
                plan.actions.push(Action::End(Verdict::Failed {
                    reason: Some("DeadlineExceeded".into()),
                    message: Some(message),
                }));
                return;
            }
            plan.wake(deadline);
        }
        if let Some(verdict) = self.verdict() {
            plan.actions.push(Action::End(verdict));
            return;
        }
        match self.sandbox {
            Sandbox::Absent | Sandbox::Broken => plan.actions.push(Action::MakeSandbox),
            Sandbox::Failed { again } if self.now >= again => {
                plan.actions.push(Action::MakeSandbox);
            }
            Sandbox::Failed { again } => plan.wake(again),
            Sandbox::Making | Sandbox::Checking => {}
            Sandbox::Ready => self.containers(plan),
        }
    }

    fn active_deadline(&self) -> Option<SystemTime> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        Some(self.started? + Duration::from_secs(u64::try_from(seconds).ok()?))
    }

    fn containers(&self, plan: &mut Plan) {
        let members = members(self.pod);
        let regular_seen = self.regular_seen(&members);
        let mut initialized = true;
        for member in &members {
            match member.role {
                Role::Init if !regular_seen && initialized => {
                    initialized = self.is_done(member);
                    if !initialized {
                        self.keep_up(member, plan);
                    }
                }
                Role::Sidecar
                    if regular_seen || initialized || self.here(member.name()).is_some() =>
                {
                    self.keep_up(member, plan);
                    initialized = initialized && (regular_seen || self.has_started(member));
                }
                Role::Regular if initialized => self.keep_up(member, plan),
                Role::Ephemeral if self.here(member.name()).is_none() => self.keep_up(member, plan),
                _ => {}
            }
        }
        self.prune(plan);
    }

    /// Starts the container, stops it if it must not go on, restarts it when it may.
    fn keep_up(&self, member: &Member<'_>, plan: &mut Plan) {
        let (name, image) = (
            member.name(),
            member.spec.image.as_deref().unwrap_or_default(),
        );
        if self.is_starting(name) {
            return;
        }
        let Some(record) = self.latest(name) else {
            return self.start(name, 0, Duration::ZERO, plan);
        };
        match (&record.phase, record.origin) {
            (Phase::Created, _) => {
                // Left over from a start that was cut short.
                plan.actions.push(Action::Remove {
                    id: record.id.clone(),
                });
                self.start(name, record.attempt + 1, record.delay, plan);
            }
            (Phase::Running { .. }, _) => {
                if let Some((cause, grace)) = self.must_stop(member, record, image) {
                    match self.marks.edited.map(|edited| edited + SETTLE) {
                        Some(settled) if cause == Cause::Changed && self.now < settled => {
                            plan.wake(settled);
                        }
                        _ => self.stop(record, cause, self.now + grace, plan),
                    }
                }
            }
            (Phase::Exited { .. }, Origin::Before) => {
                let again = member.role == Role::Init || self.will_restart(member, record);
                if again {
                    self.start(name, record.attempt + 1, next_delay(record, image), plan);
                }
            }
            (Phase::Exited { finished, .. }, Origin::Here) => {
                if !self.will_restart(member, record) {
                    return;
                }
                let due = due(record, image);
                // A clock that was set back must not hold it up.
                if self.now >= due || self.now < *finished {
                    self.start(name, record.attempt + 1, next_delay(record, image), plan);
                } else {
                    plan.wake(due);
                }
            }
        }
    }

    fn start(&self, container: &str, attempt: u32, delay: Duration, plan: &mut Plan) {
        if let Some(setback) = self.marks.setbacks.get(container)
            && self.now < setback.again
        {
            return plan.wake(setback.again);
        }
        plan.actions.push(Action::Start {
            container: container.to_owned(),
            attempt,
            delay,
        });
    }

    fn must_stop(
        &self,
        member: &Member<'_>,
        record: &Record,
        image: &str,
    ) -> Option<(Cause, Duration)> {
        let fault = self.marks.faults.get(&record.id);
        let probe = match fault {
            Some(Fault::Liveness) => member.spec.liveness_probe.as_ref(),
            Some(Fault::Startup) => member.spec.startup_probe.as_ref(),
            _ => None,
        };
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        let own = own.and_then(|seconds| u64::try_from(seconds).ok());
        let grace = own.map_or_else(|| grace(self.pod), Duration::from_secs);
        match fault {
            Some(fault) => Some((Cause::Fault(fault.clone()), grace)),
            None if member.counts() && record.image != image => Some((Cause::Changed, grace)),
            None => None,
        }
    }

    fn stop(&self, record: &Record, cause: Cause, deadline: SystemTime, plan: &mut Plan) {
        let ordered = self.marks.stopping.get(&record.id);
        if ordered.is_some_and(|ordered| *ordered <= deadline + SOONER) {
            return;
        }
        plan.actions.push(Action::Stop {
            id: record.id.clone(),
            container: record.name.clone(),
            cause,
            grace: deadline.duration_since(self.now).unwrap_or_default(),
        });
    }

    /// Regular containers first, then the sidecars, the last one first.
    fn stop_all(&self, ending: &Ending, plan: &mut Plan) {
        let members = members(self.pod);
        let role = |name: &str| {
            let member = members.iter().find(|member| member.name() == name);
            member.map_or(Role::Regular, |member| member.role)
        };
        let running = || {
            self.records
                .iter()
                .filter(|record| record.is_running() && record.origin == Origin::Here)
        };
        if running().next().is_none() {
            let being_made = matches!(self.sandbox, Sandbox::Making | Sandbox::Checking);
            if self.marks.starting.is_empty() && !being_made {
                plan.actions.push(Action::Release);
            }
            return;
        }
        let least = LEAST_GRACE.min(ending.grace);
        let deadline = ending.deadline().max(self.now + least);
        let mut others = running()
            .filter(|record| role(&record.name) != Role::Sidecar)
            .peekable();
        if others.peek().is_some() {
            others.for_each(|record| self.stop(record, Cause::Pod, deadline, plan));
            return;
        }
        let last = members
            .iter()
            .rev()
            .filter(|member| member.role == Role::Sidecar)
            .find_map(|member| running().find(|record| record.name == member.name()));
        if let Some(record) = last {
            self.stop(record, Cause::Pod, deadline, plan);
        }
    }

    /// One dead attempt of each container is kept, for its log and its end.
    fn prune(&self, plan: &mut Plan) {
        let dead = |record: &&Record| record.is_exited() && record.origin == Origin::Here;
        for record in self.records.iter().filter(dead) {
            let newer = self
                .records
                .iter()
                .filter(dead)
                .any(|other| other.name == record.name && other.attempt > record.attempt);
            if newer {
                plan.actions.push(Action::Remove {
                    id: record.id.clone(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::testing::{at, exited, observed, pod, record, running},
        *,
    };
    use crate::kubelet::pod::record::Setback;

    /// Actions as short lines: `start c 1 +10s`, `stop c-0 Pod 30s`, `remove c-0`, ...
    fn lines(plan: &Plan) -> Vec<String> {
        let line = |action: &Action| match action {
            Action::Start {
                container,
                attempt,
                delay,
            } => format!("start {container} {attempt} +{}s", delay.as_secs()),
            Action::Stop {
                id, cause, grace, ..
            } => format!("stop {id} {cause:?} {}s", grace.as_secs()),
            Action::Remove { id } => format!("remove {id}"),
            Action::MakeSandbox => "sandbox".into(),
            Action::Release => "release".into(),
            Action::End(Verdict::Succeeded) => "succeeded".into(),
            Action::End(Verdict::Failed { reason, .. }) => {
                format!("failed {}", reason.as_deref().unwrap_or("-"))
            }
        };
        let mut lines: Vec<String> = plan.actions.iter().map(line).collect();
        if let Some(wake) = plan.wake {
            let seconds = wake.duration_since(at(0)).unwrap().as_secs();
            lines.push(format!("wake {seconds}"));
        }
        lines
    }

    fn delayed(mut record: Record, seconds: u64) -> Record {
        record.delay = Duration::from_secs(seconds);
        record
    }

    fn before(mut record: Record) -> Record {
        record.origin = Origin::Before;
        record
    }

    #[test]
    fn containers_of_a_running_pod() {
        let two = || pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let policy = |policy: &str| {
            pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}))
        };
        let init = || {
            pod(json!({
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}],
                "containers": [{"name": "a"}],
            }))
        };
        let mut long = exited("a", 3, 1);
        if let Phase::Exited { started, .. } = &mut long.phase {
            *started = Some(at(10) - Duration::from_secs(601));
        }
        for (what, pod, records, want) in [
            (
                "both at once",
                two(),
                vec![],
                vec!["start a 0 +0s", "start b 0 +0s"],
            ),
            (
                "one runs",
                two(),
                vec![running("a", 0)],
                vec!["start b 0 +0s"],
            ),
            (
                "the first restart is at once",
                two(),
                vec![exited("a", 0, 1), running("b", 0)],
                vec!["start a 1 +10s"],
            ),
            (
                "the second one waits",
                two(),
                vec![delayed(exited("a", 1, 0), 10), running("b", 0)],
                vec!["wake 20"],
            ),
            (
                "after ten minutes all is forgotten",
                two(),
                vec![delayed(long, 300), running("b", 0)],
                vec!["start a 4 +10s"],
            ),
            (
                "older dead go",
                two(),
                vec![
                    exited("a", 0, 1),
                    exited("a", 1, 1),
                    running("a", 2),
                    running("b", 0),
                ],
                vec!["remove a-0"],
            ),
            (
                "done when all are",
                policy("OnFailure"),
                vec![exited("a", 0, 0), exited("b", 1, 0)],
                vec!["succeeded"],
            ),
            (
                "never again",
                policy("Never"),
                vec![exited("a", 0, 0), exited("b", 0, 1)],
                vec!["failed -"],
            ),
            (
                "one is left",
                policy("Never"),
                vec![exited("a", 0, 1), running("b", 0)],
                vec![],
            ),
            ("init goes first", init(), vec![], vec!["start i 0 +0s"]),
            ("and alone", init(), vec![running("i", 0)], vec![]),
            (
                "then the sidecar",
                init(),
                vec![exited("i", 0, 0)],
                vec!["start s 0 +0s"],
            ),
            (
                "then the next",
                init(),
                vec![exited("i", 0, 0), running("s", 0)],
                vec!["start j 0 +0s"],
            ),
            (
                "init fails and comes again",
                init(),
                vec![exited("i", 0, 0), running("s", 0), exited("j", 0, 1)],
                vec!["start j 1 +10s"],
            ),
            (
                "regular ones last",
                init(),
                vec![exited("i", 0, 0), running("s", 0), exited("j", 0, 0)],
                vec!["start a 0 +0s"],
            ),
            (
                "init is not run again when its records are gone",
                init(),
                vec![running("s", 0), running("a", 0)],
                vec![],
            ),
            (
                "sidecars come again even after success",
                init(),
                vec![
                    exited("i", 0, 0),
                    exited("s", 0, 0),
                    exited("j", 0, 0),
                    running("a", 0),
                ],
                vec!["start s 1 +10s"],
            ),
            (
                "a new sandbox runs init again",
                init(),
                vec![before(exited("i", 0, 0)), before(exited("a", 2, 137))],
                vec!["start i 1 +10s"],
            ),
            (
                "a start that was cut short",
                two(),
                vec![record("a", 0, Phase::Created), running("b", 0)],
                vec!["remove a-0", "start a 1 +0s"],
            ),
        ] {
            let marks = Marks::default();
            let got = lines(&plan(&observed(&pod, &records, &marks)));
            assert_eq!(got, want, "{what}");
        }
    }

    #[test]
    fn delays_double_up_to_five_minutes() {
        let mut delay = Duration::ZERO;
        let mut seen = Vec::new();
        for attempt in 0..8 {
            let record = delayed(exited("a", attempt, 1), delay.as_secs());
            delay = next_delay(&record, "i");
            seen.push(delay.as_secs());
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn what_makes_a_container_stop() {
        let pod = pod(json!({
            "terminationGracePeriodSeconds": 7,
            "containers": [{"name": "a", "livenessProbe": {"terminationGracePeriodSeconds": 3}}],
        }));
        let records = [running("a", 0)];
        for (fault, want) in [
            (Fault::Liveness, "stop a-0 Fault(Liveness) 3s"),
            (Fault::Startup, "stop a-0 Fault(Startup) 7s"),
        ] {
            let mut marks = Marks::default();
            marks.faults.insert("a-0".into(), fault);
            assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [want]);
            marks.stopping.insert("a-0".into(), at(13));
            assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
        }
        let mut other = running("a", 0);
        other.image = "old".into();
        let (records, marks) = ([other], Marks::default());
        let got = lines(&plan(&observed(&pod, &records, &marks)));
        assert_eq!(got, ["stop a-0 Changed 7s"]);
        let marks = Marks {
            edited: Some(at(10)),
            ..marks
        };
        let got = plan(&observed(&pod, &records, &marks));
        assert_eq!((got.actions.len(), got.wake), (0, Some(at(10) + SETTLE)));
    }

    #[test]
    fn a_sidecar_holds_the_others_until_it_has_started() {
        let pod = pod(json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}],
            "containers": [{"name": "a"}],
        }));
        let records = [running("s", 0)];
        let mut marks = Marks::default();
        assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
        marks.in_hook.insert("s-0".into());
        marks.started.insert("s-0".into());
        assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
        marks.in_hook.clear();
        let got = lines(&plan(&observed(&pod, &records, &marks)));
        assert_eq!(got, ["start a 0 +0s"]);
    }

    #[test]
    fn sandboxes_and_setbacks() {
        let one = || pod(json!({"containers": [{"name": "a"}]}));
        let never = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
        let lost = [before(exited("a", 0, 137))];
        for (what, pod, sandbox, records, want) in [
            ("none yet", one(), Sandbox::Absent, &[][..], vec!["sandbox"]),
            ("being made", one(), Sandbox::Making, &[], vec![]),
            (
                "again later",
                one(),
                Sandbox::Failed { again: at(12) },
                &[],
                vec!["wake 12"],
            ),
            (
                "again now",
                one(),
                Sandbox::Failed { again: at(10) },
                &[],
                vec!["sandbox"],
            ),
            ("broken", one(), Sandbox::Broken, &lost, vec!["sandbox"]),
            (
                "not for what never starts again",
                never,
                Sandbox::Broken,
                &lost,
                vec!["failed -"],
            ),
        ] {
            let marks = Marks::default();
            let mut observed = observed(&pod, records, &marks);
            observed.sandbox = sandbox;
            assert_eq!(lines(&plan(&observed)), want, "{what}");
        }
        let (pod, mut marks) = (one(), Marks::default());
        let setback = |again| Setback {
            reason: "ErrImagePull",
            message: String::new(),
            again,
        };
        marks.setbacks.insert("a".into(), setback(at(15)));
        assert_eq!(lines(&plan(&observed(&pod, &[], &marks))), ["wake 15"]);
        marks.setbacks.insert("a".into(), setback(at(10)));
        assert_eq!(
            lines(&plan(&observed(&pod, &[], &marks))),
            ["start a 0 +0s"]
        );
        marks.starting.insert("a".into());
        assert_eq!(lines(&plan(&observed(&pod, &[], &marks))), [""; 0]);
    }

    #[test]
    fn the_active_deadline() {
        let pod = pod(json!({"activeDeadlineSeconds": 10, "containers": [{"name": "a"}]}));
        let (records, marks) = ([running("a", 0)], Marks::default());
        let mut observed = observed(&pod, &records, &marks);
        assert_eq!(lines(&plan(&observed)), ["failed DeadlineExceeded"]);
        observed.now = at(9);
        assert_eq!(lines(&plan(&observed)), ["wake 10"]);
    }

    #[test]
    fn the_end() {
        let pod = pod(json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}],
        }));
        let ending = |since: u64, grace: u64| Ending {
            verdict: None,
            since: at(since),
            grace: Duration::from_secs(grace),
        };
        let all = || vec![running("s", 0), running("t", 0), running("a", 0)];
        let sidecars = || vec![running("s", 0), running("t", 0), exited("a", 0, 0)];
        let stopping = |name: &str, until| {
            let mut marks = Marks::default();
            marks.stopping.insert(format!("{name}-0"), at(until));
            marks
        };
        for (what, records, marks, ending, want) in [
            (
                "regular first",
                all(),
                Marks::default(),
                ending(10, 30),
                vec!["stop a-0 Pod 30s"],
            ),
            (
                "the clock runs",
                all(),
                Marks::default(),
                ending(0, 30),
                vec!["stop a-0 Pod 20s"],
            ),
            (
                "but never to zero",
                all(),
                Marks::default(),
                ending(0, 5),
                vec!["stop a-0 Pod 2s"],
            ),
            (
                "unless asked for",
                all(),
                Marks::default(),
                ending(0, 0),
                vec!["stop a-0 Pod 0s"],
            ),
            (
                "said already",
                all(),
                stopping("a", 40),
                ending(10, 30),
                vec![],
            ),
            (
                "sooner than said",
                all(),
                stopping("a", 40),
                ending(10, 1),
                vec!["stop a-0 Pod 1s"],
            ),
            (
                "sidecars backwards",
                sidecars(),
                Marks::default(),
                ending(10, 30),
                vec!["stop t-0 Pod 30s"],
            ),
            (
                "one at a time",
                sidecars(),
                stopping("t", 40),
                ending(10, 30),
                vec![],
            ),
            (
                "nothing left",
                vec![exited("a", 0, 0)],
                Marks::default(),
                ending(10, 30),
                vec!["release"],
            ),
        ] {
            let mut observed = observed(&pod, &records, &marks);
            observed.ending = Some(&ending);
            assert_eq!(lines(&plan(&observed)), want, "{what}");
        }
        let mut marks = Marks::default();
        marks.starting.insert("a".into());
        let ending = ending(10, 30);
        let mut observed = observed(&pod, &[], &marks);
        observed.ending = Some(&ending);
        assert_eq!(lines(&plan(&observed)), [""; 0], "a start is under way");
    }
}
