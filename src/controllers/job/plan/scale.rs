//! Which pods a Job starts and which it gives up, and how long it waits after failures.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use super::{State, index_of};
use crate::controllers::pods;

const MAX_CREATED: i32 = 500;
const FIRST_DELAY_S: i64 = 10;
const LAST_DELAY_S: i64 = 600;

impl State<'_> {
    pub(super) fn scale(&mut self) {
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
