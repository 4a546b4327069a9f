//! Rules over a pod as a whole: its operating system, its user namespace, its resources, and what
//! only an older pod may have.

use std::collections::BTreeMap;

use proto::quantity::Quantity;
use serde_json::Value;

use super::resources;
use crate::apiserver::registry::{
    Causes,
    kinds::value::{at, flag, has, items, members, number, text},
};

const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// A PodSpec (defaulted) found at `path`.
pub fn validate(spec: &Value, path: &str, causes: &mut Causes) {
    system(spec, path, causes);
    if at(spec, "hostUsers") == Some(&Value::Bool(false)) {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            if flag(spec, field) {
                causes.forbidden(format!("{path}.{field}"), "when `hostUsers` is false");
            }
        }
    }
    if flag(spec, "hostNetwork") {
        host_ports(spec, path, causes);
    }
    let policy = text(spec, "preemptionPolicy");
    if !matches!(policy, "" | "Never" | "PreemptLowerPriority") {
        let known = ["Never", "PreemptLowerPriority"];
        causes.unsupported(format!("{path}.preemptionPolicy"), policy, &known);
    }
    if has(spec, "resources") {
        of_pod(spec, path, causes);
    }
}

/// What a new pod must not have yet.
pub fn validate_new(pod: &Value, causes: &mut Causes) {
    if !items(pod, "spec.ephemeralContainers").is_empty() {
        causes.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    if !items(pod, "spec.schedulingGates").is_empty() && !text(pod, "spec.nodeName").is_empty() {
        causes.forbidden(
            "spec.nodeName",
            "cannot be set until all schedulingGates have been cleared",
        );
    }
}

/// A pod says on which system it runs, and then has nothing of the other.
fn system(spec: &Value, path: &str, causes: &mut Causes) {
    if !has(spec, "os") {
        return;
    }
    let pod: &[&str] = &[
        "hostPID",
        "hostIPC",
        "hostUsers",
        "shareProcessNamespace",
        "securityContext.appArmorProfile",
        "securityContext.seLinuxOptions",
        "securityContext.seccompProfile",
        "securityContext.fsGroup",
        "securityContext.fsGroupChangePolicy",
        "securityContext.sysctls",
        "securityContext.runAsUser",
        "securityContext.runAsGroup",
        "securityContext.supplementalGroups",
        "securityContext.supplementalGroupsPolicy",
    ];
    let container: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let (pod, container, detail) = match text(spec, "os.name") {
        "linux" => (
            &["securityContext.windowsOptions"][..],
            &["windowsOptions"][..],
            "windows options cannot be set for a linux pod",
        ),
        "windows" => (pod, container, "cannot be set for a windows pod"),
        "" => return causes.required(format!("{path}.os.name"), ""),
        other => {
            return causes.unsupported(format!("{path}.os.name"), other, &["linux", "windows"]);
        }
    };
    for field in pod {
        let set = match *field {
            "hostPID" | "hostIPC" => flag(spec, field),
            _ => has(spec, field),
        };
        if set {
            causes.forbidden(format!("{path}.{field}"), detail);
        }
    }
    for list in LISTS {
        for (index, one) in items(spec, list).iter().enumerate() {
            for field in container {
                if causes.is_full() {
                    return;
                }
                if has(one, &format!("securityContext.{field}")) {
                    let path = format!("{path}.{list}[{index}].securityContext.{field}");
                    causes.forbidden(path, detail);
                }
            }
        }
    }
}

/// With the host's network a container has no ports of its own.
fn host_ports(spec: &Value, path: &str, causes: &mut Causes) {
    for list in ["containers", "initContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            for (at, port) in items(container, "ports").iter().enumerate() {
                if causes.is_full() {
                    return;
                }
                let own = number(port, "containerPort").unwrap_or_default();
                let host = number(port, "hostPort").unwrap_or_default();
                if host != 0 && host != own {
                    causes.invalid(
                        format!("{path}.{list}[{index}].ports[{at}].containerPort"),
                        own,
                        "must match `hostPort` when `hostNetwork` is true",
                    );
                }
            }
        }
    }
}

/// Amounts in thousandths, by resource.
type Amounts = BTreeMap<String, i64>;

fn amounts(resources: &Value, list: &str) -> Amounts {
    let all = members(resources, list).into_iter().flatten();
    let parsed = all.filter_map(|(name, amount)| {
        let amount = Quantity::parse(amount.as_str()?).ok()?;
        Some((name.clone(), amount.milli()))
    });
    parsed.collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

/// What the containers ask for together: those that run side by side, or one that comes before,
/// with the sidecars that are there by then.
fn together(spec: &Value) -> Amounts {
    let mut running = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut running, &amounts(&container["resources"], "requests"));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let own = amounts(&container["resources"], "requests");
        let mut then = sidecars.clone();
        add(&mut then, &own);
        if text(container, "restartPolicy") == "Always" {
            sidecars = then.clone();
        }
        for (name, amount) in then {
            let least = most.entry(name).or_default();
            *least = amount.max(*least);
        }
    }
    add(&mut running, &sidecars);
    for (name, amount) in most {
        let sum = running.entry(name).or_default();
        *sum = amount.max(*sum);
    }
    running
}

fn shown(milli: i64) -> String {
    Quantity::from_milli(milli).canonical()
}

/// Resources for the pod as a whole: enough for its containers.
fn of_pod(spec: &Value, path: &str, causes: &mut Causes) {
    let whole = &spec["resources"];
    let own = format!("{path}.resources");
    for list in ["limits", "requests"] {
        resources::quantities(whole, list, &own, causes);
        for (name, _) in members(whole, list).into_iter().flatten() {
            if !matches!(&**name, "cpu" | "memory") && !name.starts_with("hugepages-") {
                causes.unsupported(format!("{own}.{list}[{name}]"), name, &["cpu", "memory"]);
            }
        }
    }
    if !items(whole, "claims").is_empty() {
        causes.forbidden(
            format!("{own}.claims"),
            "claims are not supported for pod-level resources",
        );
    }
    let (requests, limits) = (amounts(whole, "requests"), amounts(whole, "limits"));
    for (name, request) in &requests {
        if let Some(limit) = limits.get(name).filter(|limit| request > limit) {
            let detail = format!(
                "must be less than or equal to {name} limit of {}",
                shown(*limit)
            );
            causes.invalid(format!("{own}.requests"), shown(*request), &detail);
        }
    }
    for (name, asked) in together(spec) {
        if let Some(request) = requests.get(&name).filter(|request| asked > **request) {
            let detail = format!(
                "must be greater than or equal to aggregate container requests of {}",
                shown(asked)
            );
            causes.invalid(format!("{own}.requests[{name}]"), shown(*request), &detail);
        }
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            for (name, limit) in amounts(&container["resources"], "limits") {
                if causes.is_full() {
                    return;
                }
                if let Some(most) = limits.get(&name).filter(|most| limit > **most) {
                    let path = format!("{path}.{list}[{index}].resources.limits[{name}]");
                    let detail = format!(
                        "must be less than or equal to pod limits of {}",
                        shown(*most)
                    );
                    causes.invalid(path, shown(limit), &detail);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(check: impl Fn(&mut Causes)) -> Vec<String> {
        let mut causes = Causes::default();
        check(&mut causes);
        let causes = causes.0.iter();
        causes
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn what_a_new_pod_must_not_have() {
        for (spec, want) in [
            (
                json!({"ephemeralContainers": [{"name": "d"}]}),
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
            (
                json!({"schedulingGates": [{"name": "g"}], "nodeName": "n"}),
                "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
            ),
            (json!({"schedulingGates": [{"name": "g"}]}), ""),
            (json!({"nodeName": "n", "ephemeralContainers": []}), ""),
        ] {
            let pod = json!({"spec": spec});
            assert_eq!(
                said(|causes| validate_new(&pod, causes)).join("; "),
                want,
                "{pod}"
            );
        }
    }

    #[test]
    fn what_does_not_go_together() {
        let ports = json!([{"containerPort": 80, "hostPort": 81}]);
        for (spec, want) in [
            (json!({}), vec![]),
            (
                json!({"hostNetwork": true, "containers": [{"ports": ports}]}),
                vec![
                    "s.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true",
                ],
            ),
            (json!({"containers": [{"ports": ports}]}), vec![]),
            (
                json!({"hostUsers": false, "hostPID": true, "hostIPC": true}),
                vec![
                    "s.hostPID: Forbidden: when `hostUsers` is false",
                    "s.hostIPC: Forbidden: when `hostUsers` is false",
                ],
            ),
            (json!({"hostUsers": true, "hostPID": true}), vec![]),
            (
                json!({"preemptionPolicy": "Sometimes"}),
                vec![
                    "s.preemptionPolicy: Unsupported value: \"Sometimes\": supported values: \"Never\", \"PreemptLowerPriority\"",
                ],
            ),
            (json!({"os": {}}), vec!["s.os.name: Required value"]),
            (
                json!({"os": {"name": "plan9"}}),
                vec![
                    "s.os.name: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"",
                ],
            ),
            (
                json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}}, "containers": [{"securityContext": {"windowsOptions": {}}}]}),
                vec![
                    "s.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
                    "s.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
                ],
            ),
            (
                json!({"os": {"name": "windows"}, "hostPID": false, "securityContext": {"fsGroup": 1}, "containers": [{"securityContext": {"privileged": true}}]}),
                vec![
                    "s.securityContext.fsGroup: Forbidden: cannot be set for a windows pod",
                    "s.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod",
                ],
            ),
        ] {
            assert_eq!(said(|causes| validate(&spec, "s", causes)), want, "{spec}");
        }
    }

    #[test]
    fn resources_of_the_pod_as_a_whole() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        for (spec, want) in [
            (
                json!({"resources": {"requests": {"cpu": "2"}}, "containers": [asks("1"), asks("1")]}),
                vec![],
            ),
            (
                json!({"resources": {"requests": {"cpu": "1500m"}}, "containers": [asks("1"), asks("1")]}),
                vec![
                    "s.resources.requests[cpu]: Invalid value: \"1500m\": must be greater than or equal to aggregate container requests of 2",
                ],
            ),
            (
                json!({"resources": {"requests": {"cpu": "2"}}, "containers": [asks("1")], "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}}, asks("1500m")]}),
                vec![],
            ),
            (
                json!({"resources": {"requests": {"cpu": "1"}}, "containers": [asks("1")], "initContainers": [asks("1500m")]}),
                vec![
                    "s.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1500m",
                ],
            ),
            (
                json!({"resources": {"limits": {"cpu": "1"}}, "containers": [{"resources": {"limits": {"cpu": "2"}}}]}),
                vec![
                    "s.containers[0].resources.limits[cpu]: Invalid value: \"2\": must be less than or equal to pod limits of 1",
                ],
            ),
            (
                json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
                vec![
                    "s.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                json!({"resources": {"requests": {"ephemeral-storage": "1Gi"}}}),
                vec![
                    "s.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"memory\"",
                ],
            ),
        ] {
            assert_eq!(said(|causes| validate(&spec, "s", causes)), want, "{spec}");
        }
    }
}
