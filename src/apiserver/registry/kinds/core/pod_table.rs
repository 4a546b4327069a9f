//! What `kubectl get pods` prints; the Status column follows upstream's `printPod` step by step.

use jiff::Timestamp;
use serde_json::Value;

use crate::apiserver::registry::{
    Column,
    kinds::{
        cells::{NONE, or_none, since_time, text_or_none},
        row::{AGE, column, wide},
        value::{at, flag, has, items, number, text},
    },
};

pub const COLUMNS: &[Column] = &[
    column("Ready", |pod| summary(pod).ready.into()),
    column("Status", |pod| summary(pod).reason.into()),
    column("Restarts", |pod| summary(pod).restarts.into()),
    AGE,
    wide("IP", |pod| {
        or_none(
            items(pod, "status.podIPs")
                .first()
                .map_or("", |ip| text(ip, "ip")),
        )
    }),
    wide("Node", |pod| text_or_none(pod, "spec.nodeName")),
    wide("Nominated Node", |pod| {
        text_or_none(pod, "status.nominatedNodeName")
    }),
    wide("Readiness Gates", gates),
];

struct Summary {
    ready: String,
    reason: String,
    restarts: String,
}

/// Restarts counted so far and when the last one was.
#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(status, "restartCount").unwrap_or_default();
        let finished = text(status, "lastState.terminated.finishedAt").parse().ok();
        self.last = self.last.max(finished);
    }

    fn shown(&self) -> String {
        match self.last {
            Some(last) if self.count != 0 => {
                let ago = since_time(&last.to_string(), Timestamp::now());
                format!("{} ({ago} ago)", self.count)
            }
            _ => self.count.to_string(),
        }
    }
}

fn summary(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let mut reason = match text(pod, "status.reason") {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    if condition(pod, "PodScheduled").is_some_and(|gate| text(gate, "reason") == "SchedulingGated")
    {
        reason = "SchedulingGated".to_owned();
    }
    let sidecar = |name: &str| {
        items(pod, "spec.initContainers").iter().any(|container| {
            text(container, "name") == name && text(container, "restartPolicy") == "Always"
        })
    };
    let sidecars = items(pod, "spec.initContainers")
        .iter()
        .filter(|container| text(container, "restartPolicy") == "Always")
        .count();
    let total = items(pod, "spec.containers").len() + sidecars;
    let mut ready = 0;
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (index, status) in items(pod, "status.initContainerStatuses")
        .iter()
        .enumerate()
    {
        restarts.add(status);
        let is_sidecar = sidecar(text(status, "name"));
        if is_sidecar {
            sidecar_restarts.add(status);
        }
        let waiting = text(status, "state.waiting.reason");
        if number(status, "state.terminated.exitCode") == Some(0) {
            continue;
        }
        if is_sidecar && flag(status, "started") {
            ready += usize::from(flag(status, "ready"));
            continue;
        }
        reason = if has(status, "state.terminated") {
            format!("Init:{}", ended(status))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", items(pod, "spec.initContainers").len())
        };
        initializing = true;
        break;
    }
    if !initializing || is_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        for status in items(pod, "status.containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = text(status, "state.waiting.reason");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if has(status, "state.terminated") {
                reason = ended(status);
            } else if flag(status, "ready") && has(status, "state.running") {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if is_true(pod, "Ready") {
                "Running"
            } else {
                "NotReady"
            }
            .to_owned();
        }
    }
    if has(pod, "metadata.deletionTimestamp") {
        if text(pod, "status.reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }
    Summary {
        ready: format!("{ready}/{total}"),
        reason,
        restarts: restarts.shown(),
    }
}

/// Why a container ended: its reason, else its signal or exit code.
fn ended(status: &Value) -> String {
    let reason = text(status, "state.terminated.reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match number(status, "state.terminated.signal").unwrap_or_default() {
        0 => format!(
            "ExitCode:{}",
            number(status, "state.terminated.exitCode").unwrap_or_default()
        ),
        signal => format!("Signal:{signal}"),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "status.conditions")
        .iter()
        .find(|condition| text(condition, "type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| text(condition, "status") == "True")
}

fn gates(pod: &Value) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() || at(pod, "spec").is_none() {
        return NONE.into();
    }
    let open = gates
        .iter()
        .filter(|gate| is_true(pod, text(gate, "conditionType")))
        .count();
    format!("{open}/{}", gates.len()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_column() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let running = json!({"running": {}});
        for (status, deleted, want) in [
            (json!({"phase": "Pending"}), false, ("0/2", "Pending", "0")),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": running}]}),
                false,
                ("0/2", "Init:0/2", "0"),
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}, "restartCount": 2}]}),
                false,
                ("0/2", "Init:ExitCode:3", "2"),
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"waiting": {"reason": "ErrImagePull"}}}]}),
                false,
                ("0/2", "Init:ErrImagePull", "0"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": running}, {"name": "b", "ready": true, "state": running}]}),
                false,
                ("2/2", "Running", "0"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": running}, {"name": "b", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                false,
                ("1/2", "CrashLoopBackOff", "4"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": running}, {"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                false,
                ("1/2", "NotReady", "0"),
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                true,
                ("0/2", "Completed", "0"),
            ),
            (
                json!({"phase": "Running"}),
                true,
                ("0/2", "Terminating", "0"),
            ),
            (
                json!({"phase": "Failed", "reason": "Evicted"}),
                false,
                ("0/2", "Evicted", "0"),
            ),
        ] {
            let mut pod = json!({"metadata": {}, "spec": spec, "status": status});
            if deleted {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let got = summary(&pod);
            assert_eq!((&*got.ready, &*got.reason, &*got.restarts), want, "{pod}");
        }
    }

    #[test]
    fn restarts_say_how_long_ago() {
        let ago = Timestamp::now().as_second() - 300;
        let finished = Timestamp::from_second(ago).unwrap().to_string();
        let pod = json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running", "containerStatuses": [
            {"name": "a", "restartCount": 3, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": finished}}}]}});
        assert_eq!(summary(&pod).restarts, "3 (5m ago)");
    }
}
