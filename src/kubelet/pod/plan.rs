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
    /// When an edit of the spec will be taken up, if it is not yet.
    fn settling(&self) -> Option<SystemTime> {
        let settled = self.marks.edited?.at + SETTLE;
        (self.ending.is_none() && self.now < settled).then_some(settled)
    }

    /// The generation of the pod that is acted on.
    pub fn taken_up(&self) -> Option<i64> {
        match (self.settling(), self.marks.edited) {
            (Some(_), Some(edit)) => edit.before,
            _ => self.pod.metadata.generation,
        }
    }

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

    /// Running, past its startup probe and its postStart hook. While it is being started the runtime
    /// may say already that it runs, but nobody has begun its hook and its probes.
    pub fn has_started(&self, member: &Member<'_>) -> bool {
        let name = member.name();
        !self.is_starting(name)
            && self.here(name).is_some_and(|record| {
                record.is_running()
                    && !self.marks.in_hook.contains(&record.id)
                    && (member.spec.startup_probe.is_none()
                        || self.marks.started.contains(&record.id))
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
        let by_probe = self.marks.stopped_by_fault.contains(&record.id);
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
        if let Some(settled) = self.settling() {
            plan.wake(settled);
        }
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
            return self.start(member, 0, Duration::ZERO, plan);
        };
        match (&record.phase, record.origin) {
            // An earlier daemon has begun to start it: it will run, or be gone.
            (Phase::Created, _) => {}
            (Phase::Running { .. }, _) => {
                if let Some((cause, grace)) = self.must_stop(member, record, image)
                    && (cause != Cause::Changed || self.settling().is_none())
                {
                    self.stop(record, cause, self.now + grace, plan);
                }
            }
            (Phase::Exited { .. }, Origin::Before) => {
                let again = member.role == Role::Init || self.will_restart(member, record);
                if again {
                    self.start(member, record.attempt + 1, next_delay(record, image), plan);
                }
            }
            (Phase::Exited { finished, .. }, Origin::Here) => {
                if !self.will_restart(member, record) {
                    return;
                }
                let due = due(record, image);
                // A clock that was set back must not hold it up.
                if self.now >= due || self.now < *finished {
                    self.start(member, record.attempt + 1, next_delay(record, image), plan);
                } else {
                    plan.wake(due);
                }
            }
        }
    }

    fn start(&self, member: &Member<'_>, attempt: u32, delay: Duration, plan: &mut Plan) {
        let container = member.name();
        let image = member.spec.image.as_deref().unwrap_or_default();
        if let Some(setback) = self.marks.setbacks.get(container)
            && setback.image == image
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
mod tests;
