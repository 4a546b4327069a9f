//! Whether a Job is to end, and how.

use std::collections::BTreeSet;

use super::{Indexes, State};
use crate::controllers::pods;

/// How a Job is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub success: bool,
    pub reason: String,
    pub message: String,
}

impl End {
    pub(super) fn failed(reason: &str, message: &str) -> Self {
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

impl State<'_> {
    /// An end decided earlier.
    pub(super) fn known_end(&self) -> Option<End> {
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

    pub(super) fn new_end(&mut self, suspended: bool) -> Option<End> {
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
        let rules = self
            .spec
            .success_policy
            .iter()
            .flat_map(|policy| &policy.rules);
        for (number, rule) in rules.enumerate() {
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
                let message = format!("Matched rules at index {number}");
                return Some(End::complete("SuccessPolicy", &message));
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
}
