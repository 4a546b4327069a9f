//! Rules over a pod as a whole: what it shares with its host, its name, its resources, and what only
//! an older pod may have.

use std::collections::{BTreeMap, BTreeSet};

use proto::quantity::Quantity;
use serde_json::Value;

use super::resources;
use crate::apiserver::{
    registry::{
        Causes,
        kinds::{
            names,
            value::{at, flag, has, items, members, number, text},
        },
    },
    status::CauseType,
};

/// The lists of containers in the order in which the API looks at all of them.
pub const VISITED: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// A hostname as the kernel takes it.
const LONGEST_HOSTNAME: usize = 64;

/// A pod with users of its own shares nothing else with the host.
pub fn users(spec: &Value, path: &str, causes: &mut Causes) {
    const DETAIL: &str = "when `hostUsers` is false";
    if at(spec, "hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for (field, named) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if flag(spec, field) {
            causes.forbidden(format!("{path}.{named}"), DETAIL);
        }
    }
    for list in VISITED {
        for (index, container) in items(spec, list).iter().enumerate() {
            if causes.is_full() {
                return;
            }
            if !items(container, "volumeDevices").is_empty() {
                let own = format!("{path}.{list}[{index}].volumeDevices");
                causes.forbidden(own, DETAIL);
            }
        }
    }
}

/// `hostnameOverride`, which is all of the pod's name on its own network.
pub fn hostname(spec: &Value, path: &str, causes: &mut Causes) {
    let Some(name) = at(spec, "hostnameOverride").and_then(Value::as_str) else {
        return;
    };
    let path = format!("{path}.hostnameOverride");
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if flag(spec, field) {
            let detail = format!("may not be specified when {field} is true");
            causes.forbidden(&path, &detail);
        }
    }
    if name.len() > LONGEST_HOSTNAME {
        let message = format!("Too long: may not be more than {LONGEST_HOSTNAME} bytes");
        causes.push(CauseType::FieldValueTooLong, &path, message);
    }
    names::report(names::dns_subdomain(name), name, &path, causes);
}

/// With whom a pod is scheduled, and who is asked before it is evicted.
pub fn group_and_responders(spec: &Value, path: &str, causes: &mut Causes) {
    const MOST: usize = 16;
    if has(spec, "schedulingGroup") {
        let own = format!("{path}.schedulingGroup.podGroupName");
        match at(spec, "schedulingGroup.podGroupName").and_then(Value::as_str) {
            None => causes.invalid(own, Value::Null, "must specify one of: `podGroupName`"),
            Some(name) => names::report(names::dns_subdomain(name), name, &own, causes),
        }
    }
    let responders = items(spec, "evictionResponders");
    let path = format!("{path}.evictionResponders");
    if responders.is_empty() {
        return;
    }
    if has(spec, "schedulingGroup") {
        let detail = "eviction responders are not supported when spec.schedulingGroup is set";
        return causes.forbidden(path, detail);
    }
    if responders.len() > MOST {
        return causes.too_many(path, responders.len(), MOST);
    }
    for (index, responder) in responders.iter().enumerate() {
        let name = text(responder, "name");
        let before = &responders[..index];
        if before.iter().any(|one| text(one, "name") == name) {
            causes.duplicate(format!("{path}[{index}]"), name);
        }
    }
    for (index, responder) in responders.iter().enumerate() {
        let own = format!("{path}[{index}].name");
        match text(responder, "name") {
            "" => causes.required(own, ""),
            name => names::report(names::qualified_name(name), name, &own, causes),
        }
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
    super::annotations::seccomp_matches(&pod["metadata"], &pod["spec"], "spec", causes);
    super::annotations::app_armor_matches(&pod["metadata"], &pod["spec"], "spec", causes);
}

/// With the host's network a container has no ports of its own. A template may leave the host's
/// ports to its pods.
pub fn host_ports(spec: &Value, path: &str, causes: &mut Causes) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    for (index, container) in items(spec, "containers").iter().enumerate() {
        for (at, port) in items(container, "ports").iter().enumerate() {
            if causes.is_full() {
                return;
            }
            let own = number(port, "containerPort").unwrap_or_default();
            let host = number(port, "hostPort").unwrap_or_default();
            if host != 0 && host != own {
                causes.invalid(
                    format!("{path}.containers[{index}].ports[{at}].hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
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

/// What the containers have together of a list: those that run side by side, or one that comes before,
/// with the sidecars that are there by then.
fn together(spec: &Value, list: &str) -> Amounts {
    let mut running = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut running, &amounts(&container["resources"], list));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let own = amounts(&container["resources"], list);
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
pub fn of_pod(spec: &Value, claims: &BTreeSet<&str>, path: &str, causes: &mut Causes) {
    let Some(whole) = at(spec, "resources") else {
        return;
    };
    let own = format!("{path}.resources");
    if text(spec, "os.name") == "windows" {
        return causes.forbidden(own, "may not be set for a windows pod");
    }
    if has(whole, "claims") {
        let detail = "claims may not be set for Resources at pod-level";
        causes.forbidden(format!("{own}.claims"), detail);
    }
    resources::requirements(whole, resources::Owner::Pod, &own, causes);
    super::claims::used(whole, claims, &own, causes);
    let (requests, limits) = (amounts(whole, "requests"), amounts(whole, "limits"));
    for (name, asked) in together(spec, "requests") {
        if let Some(request) = requests.get(&name).filter(|request| asked > **request) {
            let detail = format!(
                "must be greater than or equal to aggregate container requests of {}",
                shown(asked)
            );
            causes.invalid(format!("{own}.requests[{name}]"), shown(*request), &detail);
        }
    }
    for (name, most) in together(spec, "limits") {
        let pages = name.starts_with("hugepages-");
        if let Some(limit) = limits.get(&name).filter(|limit| pages && most > **limit) {
            let detail = format!(
                "must be greater than or equal to aggregate container limits of {}",
                shown(most)
            );
            causes.invalid(format!("{own}.limits[{name}]"), shown(*limit), &detail);
        }
    }
    for (index, container) in items(spec, "containers").iter().enumerate() {
        for (name, limit) in amounts(&container["resources"], "limits") {
            if causes.is_full() {
                return;
            }
            if let Some(most) = limits.get(&name).filter(|most| limit > **most) {
                let path = format!("{own}.containers[{index}][{name}].limits");
                let detail = format!(
                    "must be less than or equal to pod limits of {}",
                    shown(*most)
                );
                causes.invalid(path, shown(limit), &detail);
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
                    "s.resources.containers[0][cpu].limits: Invalid value: \"2\": must be less than or equal to pod limits of 1",
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
                    "s.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
                ],
            ),
        ] {
            let none = BTreeSet::new();
            assert_eq!(
                said(|causes| of_pod(&spec, &none, "s", causes)),
                want,
                "{spec}"
            );
        }
    }
}
