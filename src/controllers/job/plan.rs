//! The next step of a Job: what to count, what to start, what to stop. Pure.
//!
//! Each ended pod is counted once, also over a crash: its UID is written to the status, then its
//! finalizer is removed, then the UID becomes a number. One sync makes one of these steps.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{
    indexes::Indexes,
    policy::{Verdict, judge},
};
use crate::controllers::pods;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// At most this many pods wait in the status to be counted.
const MAX_UNCOUNTED: usize = 500;
const MAX_CREATED: i32 = 500;
const FIRST_DELAY_S: i64 = 10;
const LAST_DELAY_S: i64 = 600;

#[derive(Debug)]
pub struct Plan {
    pub status: JobStatus,
    /// Pods whose finalizer may go once the status is written.
    pub release: Vec<String>,
    /// Pods to delete; their finalizer goes first if they shall not count.
    pub delete: Vec<String>,
    pub uncounted_delete: bool,
    /// Pods to start: their index, or none for a Job without indexes.
    pub create: Vec<Option<i32>>,
    pub recheck: Option<Duration>,
}

/// How a Job is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    success: bool,
    reason: String,
    message: String,
}

impl End {
    fn failed(reason: &str, message: &str) -> Self {
        Self {
            success: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn complete(reason: &str, message: &str) -> Self {
        Self {
            success: true,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

pub fn is_finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|status| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|one| matches!(one.type_.as_str(), "Complete" | "Failed") && one.status == "True")
    })
}

pub fn has_finalizer(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|one| one == FINALIZER)
}

pub fn index_of(pod: &Pod) -> Option<i32> {
    let text = pod
        .annotations()
        .get(INDEX)
        .or_else(|| pod.labels().get(INDEX));
    text?.parse().ok()
}

/// `pods` are those the Job controls.
pub fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let mut state = State::new(job, &spec, pods, now);
    state.settle_counted();
    let failed_by_policy = state.count_ended();
    let suspended = spec.suspend == Some(true);
    state.suspend_or_resume(suspended);
    let end = state
        .known_end()
        .or(failed_by_policy)
        .or_else(|| state.new_end(suspended));
    match end {
        Some(end) => state.finish(end),
        None if suspended => state.stop_all(),
        None => state.scale(),
    }
    state.done()
}

struct State<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    indexed: bool,
    completed: Indexes,
    failed_indexes: Indexes,
    counted: HashSet<String>,
    plan: Plan,
}

impl<'a> State<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, pods: &'a [Arc<Pod>], now: Timestamp) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        let completions = spec.completions.unwrap_or(0);
        let indexes = |text: &Option<String>| {
            Indexes::parse(text.as_deref().unwrap_or_default(), completions)
        };
        Self {
            job,
            spec,
            pods,
            now,
            indexed,
            completed: indexes(&status.completed_indexes),
            failed_indexes: indexes(&status.failed_indexes),
            counted: HashSet::new(),
            plan: Plan {
                status,
                release: Vec::new(),
                delete: Vec::new(),
                uncounted_delete: false,
                create: Vec::new(),
                recheck: None,
            },
        }
    }

    /// UIDs in the status whose finalizer is gone become numbers.
    fn settle_counted(&mut self) {
        let held: HashMap<String, &Arc<Pod>> = self
            .pods
            .iter()
            .filter_map(|pod| Some((pod.uid()?, pod)))
            .collect();
        let waits = |uid: &String| held.get(uid).is_some_and(|pod| has_finalizer(pod));
        let status = &mut self.plan.status;
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        for (uids, number) in [
            (&mut uncounted.succeeded, &mut status.succeeded),
            (&mut uncounted.failed, &mut status.failed),
        ] {
            let uids = uids.get_or_insert_default();
            let before = uids.len();
            uids.retain(|uid| waits(uid));
            let settled = i32::try_from(before - uids.len()).unwrap_or(i32::MAX);
            *number = Some(number.unwrap_or(0) + settled);
        }
        // What the status on the server holds already may be released now.
        let written = self.job.status.as_ref();
        let written = written.and_then(|status| status.uncounted_terminated_pods.as_ref());
        if let Some(written) = written {
            let all = written.succeeded.iter().chain(&written.failed).flatten();
            for uid in all.filter(|uid| waits(uid)) {
                self.counted.insert(uid.clone());
                self.plan.release.push(uid.clone());
            }
        }
    }

    /// Notes pods that ended since; the result is the end that a failure policy demands.
    fn count_ended(&mut self) -> Option<End> {
        let mut end = None;
        let failing = self.known_end().is_some_and(|end| !end.success);
        for pod in self.pods.iter().filter(|pod| has_finalizer(pod)) {
            let uid = pod.uid().unwrap_or_default();
            if self.counted.contains(&uid) || self.uncounted() >= MAX_UNCOUNTED {
                continue;
            }
            if pods::phase(pod) == "Succeeded" {
                self.count_success(pod, uid);
            } else if self.has_failed(pod) || (failing && pods::is_terminating(pod.as_ref())) {
                match judge(self.job, pod) {
                    Verdict::Ignore => {
                        self.plan.release.push(uid);
                        continue;
                    }
                    Verdict::FailJob(message) => {
                        end = end.or(Some(End::failed("PodFailurePolicy", &message)));
                    }
                    Verdict::FailIndex => self.fail_index(pod),
                    Verdict::Count => self.count_index_failure(pod),
                }
                let uncounted = self
                    .plan
                    .status
                    .uncounted_terminated_pods
                    .get_or_insert_default();
                uncounted.failed.get_or_insert_default().push(uid);
            } else if pods::is_terminating(pod.as_ref()) && self.known_end().is_some() {
                self.plan.release.push(uid);
            }
        }
        end
    }

    fn uncounted(&self) -> usize {
        let uncounted = self.plan.status.uncounted_terminated_pods.as_ref();
        uncounted.map_or(0, |held| {
            held.succeeded.as_ref().map_or(0, Vec::len) + held.failed.as_ref().map_or(0, Vec::len)
        })
    }

    fn count_success(&mut self, pod: &Pod, uid: String) {
        if !self.indexed {
            let uncounted = self
                .plan
                .status
                .uncounted_terminated_pods
                .get_or_insert_default();
            uncounted.succeeded.get_or_insert_default().push(uid);
            return;
        }
        let completions = self.spec.completions.unwrap_or(0);
        if let Some(index) = index_of(pod).filter(|index| (0..completions).contains(index)) {
            let new = self.completed.0.insert(index);
            self.failed_indexes.0.remove(&index);
            if new {
                return; // released by a later sync, once the index is written
            }
        }
        self.plan.release.push(uid);
    }

    /// Failed, or deleted by somebody else before it could end.
    fn has_failed(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Failed" || (!self.replaces_failed_only() && pods::is_terminating(pod))
    }

    /// Terminating pods are replaced only once they have ended.
    fn replaces_failed_only(&self) -> bool {
        self.spec.pod_failure_policy.is_some()
            || self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    fn fail_index(&mut self, pod: &Pod) {
        if self.spec.backoff_limit_per_index.is_some()
            && let Some(index) = index_of(pod)
            && !self.completed.0.contains(&index)
        {
            self.failed_indexes.0.insert(index);
        }
    }

    fn count_index_failure(&mut self, pod: &Pod) {
        let (Some(limit), Some(index)) = (self.spec.backoff_limit_per_index, index_of(pod)) else {
            return;
        };
        let failures = self.failures_of(Some(index)).count();
        if i64::try_from(failures).unwrap_or(i64::MAX) > i64::from(limit) {
            self.fail_index(pod);
        }
    }

    /// Failed pods, of one index or of all.
    fn failures_of(&self, index: Option<i32>) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(move |pod| {
            pods::phase(pod) == "Failed"
                && (index.is_none() || index_of(pod) == index)
                && judge(self.job, pod) != Verdict::Ignore
        })
    }

    fn succeeded(&self) -> i32 {
        if self.indexed {
            return self.completed.count();
        }
        let status = &self.plan.status;
        let waiting = status.uncounted_terminated_pods.as_ref();
        let waiting = waiting
            .and_then(|held| held.succeeded.as_ref())
            .map_or(0, Vec::len);
        status.succeeded.unwrap_or(0) + i32::try_from(waiting).unwrap_or(i32::MAX)
    }

    fn failed(&self) -> i32 {
        let status = &self.plan.status;
        let waiting = status.uncounted_terminated_pods.as_ref();
        let waiting = waiting
            .and_then(|held| held.failed.as_ref())
            .map_or(0, Vec::len);
        status.failed.unwrap_or(0) + i32::try_from(waiting).unwrap_or(i32::MAX)
    }

    fn active(&self) -> Vec<&Arc<Pod>> {
        self.pods
            .iter()
            .filter(|pod| pods::is_active(pod))
            .collect()
    }

    fn terminating(&self) -> i32 {
        let leaving = self
            .pods
            .iter()
            .filter(|pod| pods::is_terminating(pod.as_ref()) && !pods::is_finished(pod));
        i32::try_from(leaving.count()).unwrap_or(i32::MAX)
    }

    /// An end decided earlier.
    fn known_end(&self) -> Option<End> {
        self.plan
            .status
            .conditions
            .iter()
            .flatten()
            .find_map(|one| {
                let success = match one.type_.as_str() {
                    "SuccessCriteriaMet" => true,
                    "FailureTarget" => false,
                    _ => return None,
                };
                (one.status == "True").then(|| End {
                    success,
                    reason: one.reason.clone().unwrap_or_default(),
                    message: one.message.clone().unwrap_or_default(),
                })
            })
    }

    fn new_end(&mut self, suspended: bool) -> Option<End> {
        if self.past_backoff_limit() {
            return Some(End::failed(
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            ));
        }
        if !suspended && let Some(seconds) = self.spec.active_deadline_seconds {
            let start = self
                .plan
                .status
                .start_time
                .as_ref()
                .map_or(self.now, |time| time.0);
            match pods::remaining(start, seconds, self.now) {
                None => {
                    return Some(End::failed(
                        "DeadlineExceeded",
                        "Job was active longer than specified deadline",
                    ));
                }
                Some(left) => self.look_again(left),
            }
        }
        if self.indexed
            && let Some(end) = self.end_by_indexes()
        {
            return Some(end);
        }
        let reached = match self.spec.completions {
            Some(completions) => self.succeeded() >= completions,
            None => self.succeeded() > 0 && self.active().is_empty(),
        };
        reached.then(|| {
            End::complete(
                "CompletionsReached",
                "Reached expected number of succeeded pods",
            )
        })
    }

    fn end_by_indexes(&self) -> Option<End> {
        let completions = self.spec.completions.unwrap_or(0);
        for rule in self
            .spec
            .success_policy
            .iter()
            .flat_map(|policy| &policy.rules)
        {
            let among: BTreeSet<i32> = match &rule.succeeded_indexes {
                Some(text) => {
                    let listed = Indexes::parse(text, completions);
                    listed.0.intersection(&self.completed.0).copied().collect()
                }
                None => self.completed.0.clone(),
            };
            let needed = rule.succeeded_count.unwrap_or_else(|| {
                let text = rule.succeeded_indexes.as_deref().unwrap_or_default();
                Indexes::parse(text, completions).count()
            });
            if Indexes(among).count() >= needed {
                return Some(End::complete("SuccessPolicy", "Matched rules at index 0"));
            }
        }
        self.spec.backoff_limit_per_index?;
        let failed = self.failed_indexes.count();
        if self
            .spec
            .max_failed_indexes
            .is_some_and(|most| failed > most)
        {
            return Some(End::failed(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ));
        }
        (failed > 0 && failed + self.completed.count() >= completions)
            .then(|| End::failed("FailedIndexes", "Job has failed indexes"))
    }

    fn past_backoff_limit(&self) -> bool {
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed() > limit {
            return true;
        }
        let template = self.spec.template.spec.as_ref();
        let on_failure =
            template.and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure");
        if !on_failure {
            return false;
        }
        let restarts: i32 = self
            .active()
            .iter()
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|status| {
                let all = status.container_statuses.iter().flatten();
                all.chain(status.init_container_statuses.iter().flatten())
            })
            .map(|container| container.restart_count)
            .sum();
        if limit == 0 {
            restarts > 0
        } else {
            restarts >= limit
        }
    }

    fn suspend_or_resume(&mut self, suspended: bool) {
        let was = self
            .plan
            .status
            .conditions
            .iter()
            .flatten()
            .any(|one| one.type_ == "Suspended" && one.status == "True");
        if self.known_end().is_some() {
            return;
        }
        if suspended && !was {
            self.set_condition("Suspended", "True", "JobSuspended", "Job suspended");
            self.plan.status.start_time = None;
        } else if !suspended && was {
            self.set_condition("Suspended", "False", "JobResumed", "Job resumed");
        }
        if !suspended && self.plan.status.start_time.is_none() {
            self.plan.status.start_time = Some(Time(self.now));
        }
    }

    fn stop_all(&mut self) {
        self.plan.delete = self.active().iter().filter_map(|pod| pod.uid()).collect();
        self.plan.uncounted_delete = true;
    }

    /// First the target, then the pods' end, then the terminal condition.
    fn finish(&mut self, end: End) {
        let kind = if end.success {
            "SuccessCriteriaMet"
        } else {
            "FailureTarget"
        };
        self.set_condition(kind, "True", &end.reason, &end.message);
        self.plan.delete = self.active().iter().filter_map(|pod| pod.uid()).collect();
        self.plan.uncounted_delete = end.success;
        let tracked = self.pods.iter().any(|pod| has_finalizer(pod));
        if self.active().is_empty() && self.terminating() == 0 && !tracked && self.uncounted() == 0
        {
            let kind = if end.success { "Complete" } else { "Failed" };
            self.set_condition(kind, "True", &end.reason, &end.message);
            if end.success {
                self.plan.status.completion_time = Some(Time(self.now));
            }
        }
    }

    fn scale(&mut self) {
        let active = self.active();
        let have = i32::try_from(active.len()).unwrap_or(i32::MAX);
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let want = match self.spec.completions {
            None if self.succeeded() > 0 => have,
            None => parallelism,
            Some(completions) => {
                let left = completions - self.succeeded() - self.failed_indexes.count();
                parallelism.min(left).max(0)
            }
        };
        let surplus = self.surplus(&active, want);
        if !surplus.is_empty() {
            self.plan.delete = surplus;
            self.plan.uncounted_delete = true;
            return;
        }
        let waiting = if self.replaces_failed_only() {
            self.terminating()
        } else {
            0
        };
        let missing = (want - have - waiting).min(MAX_CREATED);
        if missing <= 0 {
            return;
        }
        if !self.indexed {
            match self.delay(None) {
                Some(left) => self.look_again(left),
                None => self.plan.create = (0..missing).map(|_| None).collect(),
            }
            return;
        }
        self.create_indexes(missing);
    }

    /// Pods too many, and pods of an index that another one has.
    fn surplus(&self, active: &[&Arc<Pod>], want: i32) -> Vec<String> {
        let mut order: Vec<&&Arc<Pod>> = active.iter().collect();
        order.sort_by_cached_key(|pod| {
            let running = pods::phase(pod) == "Running";
            let index = index_of(pod).unwrap_or(i32::MAX);
            (
                !pods::is_ready(pod),
                !running,
                index,
                pod.creation_timestamp(),
                pod.name_any(),
            )
        });
        let mut seen = HashSet::new();
        let mut kept = 0;
        let mut surplus = Vec::new();
        for pod in order {
            let doubled = self.indexed
                && index_of(pod)
                    .is_none_or(|index| !seen.insert(index) || self.completed.0.contains(&index));
            if doubled || kept >= want {
                surplus.extend(pod.uid());
            } else {
                kept += 1;
            }
        }
        surplus
    }

    fn create_indexes(&mut self, missing: i32) {
        let taken: HashSet<i32> = self
            .pods
            .iter()
            .filter(|pod| {
                pods::is_active(pod)
                    || (self.replaces_failed_only()
                        && pods::is_terminating(pod.as_ref())
                        && !pods::is_finished(pod))
            })
            .filter_map(|pod| index_of(pod))
            .collect();
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let common = if per_index { None } else { self.delay(None) };
        if let Some(left) = common {
            return self.look_again(left);
        }
        let mut left = missing;
        for index in 0..self.spec.completions.unwrap_or(0) {
            if left == 0 {
                return;
            }
            let done = self.completed.0.contains(&index) || self.failed_indexes.0.contains(&index);
            if done || taken.contains(&index) {
                continue;
            }
            match self.delay(Some(index)).filter(|_| per_index) {
                Some(wait) => self.look_again(wait),
                None => {
                    self.plan.create.push(Some(index));
                    left -= 1;
                }
            }
        }
    }

    /// What is left of the back-off after failures since the last success.
    fn delay(&self, index: Option<i32>) -> Option<Duration> {
        let last_success = self
            .pods
            .iter()
            .filter(|pod| pods::phase(pod) == "Succeeded")
            .map(|pod| ended(pod))
            .max();
        let failures: Vec<Timestamp> = self
            .failures_of(index)
            .map(|pod| ended(pod))
            .filter(|at| last_success.is_none_or(|success| *at > success))
            .collect();
        let last = failures.iter().max()?;
        let doublings = u32::try_from(failures.len() - 1)
            .unwrap_or(u32::MAX)
            .min(20);
        let seconds = (FIRST_DELAY_S << doublings).min(LAST_DELAY_S);
        pods::remaining(*last, seconds, self.now)
    }

    fn look_again(&mut self, after: Duration) {
        let sooner = self.plan.recheck.map_or(after, |held| held.min(after));
        self.plan.recheck = Some(sooner);
    }

    fn set_condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let conditions = self.plan.status.conditions.get_or_insert_default();
        let held = conditions.iter_mut().find(|one| one.type_ == kind);
        let since = Some(Time(self.now));
        match held {
            Some(held) if held.status == status => {}
            Some(held) => {
                held.status = status.into();
                held.reason = Some(reason.into());
                held.message = Some(message.into());
                held.last_transition_time.clone_from(&since);
                held.last_probe_time = since;
            }
            None => conditions.push(JobCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_probe_time: since.clone(),
                last_transition_time: since,
            }),
        }
    }

    fn done(mut self) -> Plan {
        let active = self.active();
        let number = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
        let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
        let active = number(active.len());
        let terminating = Some(self.terminating());
        let status = &mut self.plan.status;
        status.active = active;
        status.ready = number(ready);
        status.terminating = terminating;
        if self.indexed {
            status.succeeded = Some(self.completed.count());
            let text = self.completed.to_string();
            status.completed_indexes = (!text.is_empty()).then_some(text);
            if self.spec.backoff_limit_per_index.is_some() {
                status.failed_indexes = Some(self.failed_indexes.to_string());
            }
        }
        // Lists that are empty are left out, as the server does.
        if let Some(UncountedTerminatedPods { succeeded, failed }) =
            &mut status.uncounted_terminated_pods
        {
            *succeeded = succeeded.take().filter(|list| !list.is_empty());
            *failed = failed.take().filter(|list| !list.is_empty());
        }
        self.plan
    }
}

/// When a finished pod ended, as well as it is known.
fn ended(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    status
        .into_iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
        .filter_map(|container| {
            let terminated = container.state.as_ref()?.terminated.as_ref()?;
            terminated.finished_at.as_ref()
        })
        .max()
        .or_else(|| pods::condition(pod, "Ready")?.last_transition_time.as_ref())
        .or(pod.metadata.deletion_timestamp.as_ref())
        .or(pod.metadata.creation_timestamp.as_ref())
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

#[cfg(test)]
mod tests;
