//! When containers start again: after they end, and when their resources change.

use std::collections::HashSet;

use serde_json::Value;

use super::containers::List;
use crate::apiserver::registry::{
    Causes,
    kinds::value::{has, items, text},
};

const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// `restartPolicy` and `restartPolicyRules` of the container at `path`.
pub fn policy(container: &Value, path: &str, causes: &mut Causes) {
    const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
    const ACTIONS: [&str; 2] = ["Restart", "RestartAllContainers"];
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let rules = items(container, "restartPolicyRules");
    let own = format!("{path}.restartPolicy");
    if !has(container, "restartPolicy") {
        if !rules.is_empty() {
            let detail = "must specify restartPolicy when restart rules are used";
            causes.required(own, detail);
        }
    } else if !POLICIES.contains(&text(container, "restartPolicy")) {
        causes.unsupported(own, text(container, "restartPolicy"), &POLICIES);
    }
    let path = format!("{path}.restartPolicyRules");
    if rules.len() > MOST_RULES {
        causes.too_many(&path, rules.len(), MOST_RULES);
    }
    for (index, rule) in rules.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}[{index}]");
        let action = text(rule, "action");
        if !ACTIONS.contains(&action) {
            causes.unsupported(format!("{path}.action"), action, &ACTIONS);
        }
        let path = format!("{path}.exitCodes");
        if !has(rule, "exitCodes") {
            causes.required(path, "must be specified");
            continue;
        }
        let operator = text(rule, "exitCodes.operator");
        if !OPERATORS.contains(&operator) {
            causes.unsupported(format!("{path}.operator"), operator, &OPERATORS);
        }
        let values = items(rule, "exitCodes.values").len();
        if values > MOST_EXIT_CODES {
            causes.too_many(format!("{path}.values"), values, MOST_EXIT_CODES);
        }
    }
}

/// `resizePolicy` of the container at `path`, in a pod with this restart policy.
pub fn on_resize(container: &Value, pod_policy: &str, path: &str, causes: &mut Causes) {
    const POLICIES: [&str; 2] = ["NotRequired", "RestartContainer"];
    let path = format!("{path}.resizePolicy");
    let mut seen = HashSet::new();
    for (index, policy) in items(container, "resizePolicy").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let resource = text(policy, "resourceName");
        if !seen.insert(resource) {
            causes.duplicate(format!("{path}[{index}]"), resource);
        }
        match resource {
            "" => causes.required(&path, ""),
            resource if !RESIZABLE.contains(&resource) => {
                causes.unsupported(&path, resource, &RESIZABLE);
            }
            _ => {}
        }
        let restart = text(policy, "restartPolicy");
        match restart {
            "" => causes.required(&path, ""),
            restart if !POLICIES.contains(&restart) => {
                causes.unsupported(&path, restart, &POLICIES);
            }
            _ => {}
        }
        if pod_policy == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            causes.invalid(&path, restart, detail);
        }
    }
}

/// What ends before the pod's containers start cannot be started again for new resources.
pub fn of_init(container: &Value, path: &str, causes: &mut Causes) {
    if text(container, "restartPolicy") == "Always" {
        return;
    }
    for (index, policy) in items(container, "resizePolicy").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        if text(policy, "restartPolicy") == "RestartContainer" {
            causes.invalid(
                format!("{path}.resizePolicy[{index}].restartPolicy"),
                "RestartContainer",
                "must not be set to 'RestartContainer' for non-sidecar initContainers",
            );
        }
    }
}

/// One container each for init containers, which run one after the other; else all of them.
pub fn host_port_conflicts(spec: &Value, list: List, path: &str, causes: &mut Causes) {
    let mut taken = HashSet::new();
    for (index, container) in items(spec, list.field()).iter().enumerate() {
        if list == List::Init {
            taken.clear();
        }
        for (at, port) in items(container, "ports").iter().enumerate() {
            if causes.is_full() {
                return;
            }
            let host = port["hostPort"].as_i64().unwrap_or_default();
            if host == 0 {
                continue;
            }
            let key = (host, text(port, "hostIP"), text(port, "protocol"));
            if !taken.insert(key) {
                let shown = format!("{}/{}/{host}", key.2, key.1);
                let path = format!("{path}.{}[{index}].ports[{at}].hostPort", list.field());
                causes.duplicate(path, &shown);
            }
        }
    }
}
