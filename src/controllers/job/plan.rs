//! The next step of a Job: what to count, what to start, what to stop. Pure.
//!
//! Each ended pod is counted once, also over a crash: its UID is written to the status, then its
//! finalizer is removed, then the UID becomes a number. One sync makes one of these steps.

mod end;
mod scale;

use std::{
    collections::{HashMap, HashSet},
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
use end::End;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// At most this many pods wait in the status to be counted.
const MAX_UNCOUNTED: usize = 500;

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

#[cfg(test)]
mod tests;
