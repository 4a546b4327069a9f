//! What a StatefulSet's pods need next. Pure.
//!
//! Source: upstream's stateful_set_control.go. `OrderedReady` takes one step and waits for it;
//! `Parallel` takes every step of creation and deletion at once.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetStatus},
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use kube::ResourceExt;

use crate::controllers::{
    percent::{Round, of_total},
    pods::{self, Availability},
    revisions::HASH_LABEL,
};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Create { ordinal: i32, revision: Revision },
    Delete { pod: String, why: Why },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    Current,
    Update,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Ended by itself: a new one of the same name follows.
    Ended,
    ScaledDown,
    OldTemplate,
}

#[derive(Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: StatefulSetStatus,
    pub recheck: Option<Duration>,
}

/// The ordinal of a pod of `set`: `web-3` is 3.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let canonical = digits == "0" || !digits.starts_with(['0', '+', '-']);
    digits.parse().ok().filter(|_| canonical)
}

struct Rules {
    start: i32,
    replicas: i32,
    ordered: bool,
    rolling: bool,
    partition: i32,
    max_unavailable: i32,
    min_ready_seconds: i32,
}

impl Rules {
    fn of(set: &StatefulSet) -> Self {
        let spec = set.spec.clone();
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let unavailable = rolling
            .max_unavailable
            .map_or(1, |value| of_total(&value, replicas, Round::Up));
        Self {
            start: spec
                .ordinals
                .and_then(|ordinals| ordinals.start)
                .unwrap_or(0),
            replicas,
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            rolling: strategy.type_.as_deref() != Some("OnDelete"),
            partition: rolling.partition.unwrap_or(0),
            max_unavailable: unavailable.max(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
        }
    }
}

/// `current` and `update` are the names of the revisions; pods are those of the set.
pub fn plan(set: &StatefulSet, pods: &[&Pod], current: &str, update: &str, now: Timestamp) -> Plan {
    let rules = Rules::of(set);
    let name = set.name_any();
    let by_ordinal: BTreeMap<i32, &Pod> = pods
        .iter()
        .filter_map(|pod| Some((ordinal(&name, &pod.name_any())?, *pod)))
        .collect();
    let mut planner = Planner {
        actions: Vec::new(),
        recheck: None,
        status: status(set, &by_ordinal, &rules, current, update, now),
        by_ordinal,
        rules,
        update,
        now,
    };
    if !pods::is_terminating(set) && planner.fill() && planner.shrink() {
        planner.roll();
    }
    complete(&mut planner.status, &planner.rules, update);
    Plan {
        actions: planner.actions,
        status: planner.status,
        recheck: planner.recheck,
    }
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.labels().get(HASH_LABEL).map(String::as_str)
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn status(
    set: &StatefulSet,
    by_ordinal: &BTreeMap<i32, &Pod>,
    rules: &Rules,
    current: &str,
    update: &str,
    now: Timestamp,
) -> StatefulSetStatus {
    let count = |holds: &dyn Fn(&Pod) -> bool| {
        i32::try_from(by_ordinal.values().filter(|pod| holds(pod)).count()).unwrap_or(i32::MAX)
    };
    let lives = |pod: &Pod| !pods::is_terminating(pod);
    let old = set.status.clone().unwrap_or_default();
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(&|_| true),
        ready_replicas: Some(count(&is_running_and_ready)),
        available_replicas: Some(count(&|pod| {
            is_running_and_ready(pod)
                && pods::availability(pod, rules.min_ready_seconds, now) == Availability::Available
        })),
        current_replicas: Some(count(&|pod| {
            lives(pod) && revision_of(pod) == Some(current)
        })),
        updated_replicas: Some(count(&|pod| lives(pod) && revision_of(pod) == Some(update))),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
    }
}

/// Once every pod is of the new revision and ready, it is the current one.
fn complete(status: &mut StatefulSetStatus, rules: &Rules, update: &str) {
    let all = Some(rules.replicas);
    if rules.rolling
        && status.updated_replicas == all
        && status.ready_replicas == all
        && Some(status.replicas) == all
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision = Some(update.to_owned());
    }
}

struct Planner<'a> {
    actions: Vec<Action>,
    recheck: Option<Duration>,
    status: StatefulSetStatus,
    by_ordinal: BTreeMap<i32, &'a Pod>,
    rules: Rules,
    update: &'a str,
    now: Timestamp,
}

impl Planner<'_> {
    fn end(&self) -> i32 {
        self.rules.start.saturating_add(self.rules.replicas)
    }

    fn delete(&mut self, pod: &Pod, why: Why) {
        self.actions.push(Action::Delete {
            pod: pod.name_any(),
            why,
        });
    }

    /// Ready for long enough; asks to look again where time alone is missing.
    fn is_available(&mut self, pod: &Pod) -> bool {
        if !is_running_and_ready(pod) {
            return false;
        }
        match pods::availability(pod, self.rules.min_ready_seconds, self.now) {
            Availability::Available => true,
            Availability::NotReady => false,
            Availability::In(left) => {
                self.recheck = Some(self.recheck.map_or(left, |other| other.min(left)));
                false
            }
        }
    }

    /// Brings every wanted pod up, in order. True if the next stage may begin.
    fn fill(&mut self) -> bool {
        for ordinal in self.rules.start..self.end() {
            let Some(pod) = self.by_ordinal.get(&ordinal).copied() else {
                let revision = self.revision_for(ordinal);
                self.actions.push(Action::Create { ordinal, revision });
                if self.rules.ordered {
                    return false;
                }
                continue;
            };
            if pods::is_terminating(pod) {
                if self.rules.ordered {
                    return false;
                }
                continue;
            }
            if pods::is_finished(pod) {
                self.delete(pod, Why::Ended);
                if self.rules.ordered {
                    return false;
                }
                continue;
            }
            if self.rules.ordered && !self.is_available(pod) {
                return false;
            }
        }
        true
    }

    /// A pod that is made anew below the line keeps the current template.
    fn revision_for(&self, ordinal: i32) -> Revision {
        if !self.rules.rolling {
            return Revision::Update;
        }
        let current = self.status.current_replicas.unwrap_or(0);
        let line = if self.rules.partition == 0 {
            current
        } else {
            self.rules.partition
        };
        let below = ordinal < self.rules.start.saturating_add(line);
        if below {
            Revision::Current
        } else {
            Revision::Update
        }
    }

    /// Takes pods away that are not wanted, the highest ordinal first.
    fn shrink(&mut self) -> bool {
        let wanted = self.rules.start..self.end();
        let condemned: Vec<&Pod> = self
            .by_ordinal
            .iter()
            .rev()
            .filter(|(ordinal, _)| !wanted.contains(ordinal))
            .map(|(_, pod)| *pod)
            .collect();
        let first_unhealthy = self
            .by_ordinal
            .values()
            .find(|pod| pods::is_terminating(**pod) || !is_running_and_ready(pod))
            .map(|pod| pod.name_any());
        for pod in condemned {
            if pods::is_terminating(pod) {
                if self.rules.ordered {
                    return false;
                }
                continue;
            }
            let may_go = first_unhealthy.as_ref() == Some(&pod.name_any());
            if self.rules.ordered && !may_go && !self.is_available(pod) {
                return false;
            }
            self.delete(pod, Why::ScaledDown);
            if self.rules.ordered {
                return false;
            }
        }
        true
    }

    /// Replaces pods of an old template, the highest ordinal first, down to the partition.
    fn roll(&mut self) {
        if !self.rules.rolling || !self.actions.is_empty() {
            return;
        }
        let lowest = self.rules.start.saturating_add(self.rules.partition);
        let mut unavailable = 0;
        let mut old = Vec::new();
        for (ordinal, pod) in self.by_ordinal.clone().into_iter().rev() {
            if !(self.rules.start..self.end()).contains(&ordinal) {
                continue;
            }
            let available = !pods::is_terminating(pod) && self.is_available(pod);
            unavailable += i32::from(!available);
            let is_old = revision_of(pod) != Some(self.update) && !pods::is_terminating(pod);
            if ordinal >= lowest && is_old {
                old.push((pod, available));
            } else if ordinal >= lowest && !available && self.rules.max_unavailable == 1 {
                // Wait for the one just replaced.
                break;
            }
        }
        for (pod, available) in old {
            if available && unavailable >= self.rules.max_unavailable {
                return;
            }
            unavailable += i32::from(available);
            self.delete(pod, Why::OldTemplate);
            if let Some(count) = &mut self.status.current_replicas {
                *count = (*count - 1).max(0);
            }
            if self.rules.max_unavailable == 1 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut value = json!({"metadata": {"name": "w", "generation": 1}, "spec": {
            "replicas": 3, "selector": {}, "serviceName": "s", "template": {}}});
        for (key, one) in spec.as_object().into_iter().flatten() {
            value["spec"][key] = one.clone();
        }
        serde_json::from_value(value).expect("a StatefulSet")
    }

    /// `0:a+` is pod 0 of revision a, ready; `-` not ready, `!` terminating, `x` failed.
    fn pods(words: &str) -> Vec<Pod> {
        words
            .split_whitespace()
            .map(|word| {
                let (ordinal, rest) = word.split_once(':').expect("a colon");
                let (revision, state) = rest.split_at(1);
                let mut pod = json!({"metadata": {"name": format!("w-{ordinal}"),
                    "labels": {HASH_LABEL: revision}}, "status": {"phase": "Running",
                    "conditions": [{"type": "Ready", "status": if state == "+" { "True" } else { "False" }}]}});
                match state {
                    "!" => pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
                    "x" => pod["status"]["phase"] = json!("Failed"),
                    _ => {}
                }
                serde_json::from_value(pod).expect("a pod")
            })
            .collect()
    }

    fn steps(spec: Value, words: &str) -> String {
        let pods = pods(words);
        let pods: Vec<&Pod> = pods.iter().collect();
        let now = Timestamp::UNIX_EPOCH;
        let actions = plan(&set(spec), &pods, "a", "b", now).actions;
        let words: Vec<String> = actions
            .iter()
            .map(|action| match action {
                Action::Create { ordinal, revision } => match revision {
                    Revision::Current => format!("+{ordinal}a"),
                    Revision::Update => format!("+{ordinal}b"),
                },
                Action::Delete { pod, .. } => pod.replace("w-", "-"),
            })
            .collect();
        words.join(" ")
    }

    #[test]
    fn one_step_at_a_time() {
        for (spec, words, want) in [
            (json!({}), "", "+0b"),
            (json!({}), "0:b-", ""),
            (json!({}), "0:b+", "+1b"),
            (json!({}), "0:b+ 2:b+", "+1b"),
            (json!({}), "0:b+ 1:bx 2:b+", "-1"),
            (
                json!({"podManagementPolicy": "Parallel"}),
                "1:b-",
                "+0b +2b",
            ),
            // Down from the top, and only while the others are well.
            (json!({"replicas": 1}), "0:b+ 1:b+ 2:b+", "-2"),
            (json!({"replicas": 1}), "0:b- 1:b+ 2:b+", ""),
            (json!({"replicas": 1}), "0:b+ 1:b+ 2:b!", ""),
            (json!({"replicas": 1}), "0:b+ 1:b- 2:b+", "-2"),
            (
                json!({"replicas": 0, "podManagementPolicy": "Parallel"}),
                "0:b+ 1:b-",
                "-1 -0",
            ),
            // A new template, from the top, one after the other.
            (json!({}), "0:a+ 1:a+ 2:a+", "-2"),
            (json!({}), "0:a+ 1:a+ 2:b+", "-1"),
            (json!({}), "0:a+ 1:a+ 2:b!", ""),
            (json!({}), "0:a+ 1:a+", "+2b"),
            (json!({}), "1:a+ 2:b+", "+0a"),
            (
                json!({"updateStrategy": {"type": "OnDelete"}}),
                "0:a+ 1:a+ 2:a+",
                "",
            ),
            (
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
                "0:a+ 1:a+ 2:b+",
                "",
            ),
            (
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
                "1:a+ 2:b+",
                "+0a",
            ),
            (
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}}),
                "0:a+ 1:a+ 2:a+",
                "-2 -1",
            ),
            (json!({"ordinals": {"start": 5}, "replicas": 1}), "", "+5b"),
        ] {
            assert_eq!(steps(spec.clone(), words), want, "{spec} {words}");
        }
    }

    #[test]
    fn the_new_revision_becomes_the_current_one() {
        let made = pods("0:b+ 1:b+ 2:b+");
        let made: Vec<&Pod> = made.iter().collect();
        let status = plan(&set(json!({})), &made, "a", "b", Timestamp::UNIX_EPOCH).status;
        assert_eq!(status.current_revision.as_deref(), Some("b"));
        assert_eq!(
            (status.current_replicas, status.updated_replicas),
            (Some(3), Some(3))
        );
    }

    #[test]
    fn ordinals() {
        for (pod, want) in [
            ("w-0", Some(0)),
            ("w-12", Some(12)),
            ("w-01", None),
            ("w-x", None),
            ("v-1", None),
        ] {
            assert_eq!(ordinal("w", pod), want, "{pod}");
        }
    }
}
