//! What may be written to a pod's status.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::pod_update::validate_annotations;
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        pods::whole::VISITED,
        value::{has, items, number, text},
    },
};

/// A write of `pods/status`.
pub fn validate(new: &Value, old: &Value, causes: &mut Causes) {
    validate_annotations(new, old, causes);
    conditions(new, causes);
    nominated(new, old, causes);
    if let Some(seen) = number(new, "status.observedGeneration").filter(|seen| *seen < 0) {
        let detail = "must be a non-negative integer";
        causes.invalid("status.observedGeneration", seen, detail);
    }
    transitions(new, old, causes);
    claims(new, causes);
    for list in ["podIPs", "hostIPs"] {
        addresses(new, old, list, causes);
    }
}

fn conditions(pod: &Value, causes: &mut Causes) {
    for (index, condition) in items(pod, "status.conditions").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("status.conditions[{index}]");
        if let Some(seen) = number(condition, "observedGeneration").filter(|seen| *seen < 0) {
            let own = format!("{path}.observedGeneration");
            causes.invalid(own, seen, "must be a non-negative integer");
        }
        let name = text(condition, "type");
        let own = format!("{path}.Type");
        names::report(names::qualified_name(name), name, &own, causes);
    }
}

fn nominated(new: &Value, old: &Value, causes: &mut Causes) {
    const PATH: &str = "status.nominatedNodeName";
    let node = text(new, PATH);
    if node.is_empty() || node == text(old, PATH) {
        return;
    }
    names::report(names::dns_subdomain(node), node, PATH, causes);
    if !text(old, "spec.nodeName").is_empty() {
        let detail = "may not be set on pods that are already bound to a node";
        causes.forbidden(PATH, detail);
    }
}

/// What has ended for good does not run again.
fn transitions(new: &Value, old: &Value, causes: &mut Causes) {
    let spec = &old["spec"];
    let everything = VISITED.iter().any(|list| {
        items(spec, list).iter().any(|container| {
            items(container, "restartPolicyRules")
                .iter()
                .any(|rule| text(rule, "action") == "RestartAllContainers")
        })
    });
    for (list, of) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", ""),
    ] {
        if everything && !of.is_empty() {
            continue;
        }
        let containers: HashMap<&str, &Value> = items(spec, of)
            .iter()
            .map(|container| (text(container, "name"), container))
            .collect();
        let path = format!("status.{list}");
        let now: HashMap<&str, &Value> = items(new, &path)
            .iter()
            .map(|status| (text(status, "name"), status))
            .collect();
        for (index, before) in items(old, &path).iter().enumerate() {
            if causes.is_full() {
                return;
            }
            let name = text(before, "name");
            let again = now
                .get(name)
                .is_some_and(|now| !has(now, "state.terminated"));
            if !has(before, "state.terminated") || !again {
                continue;
            }
            let code = number(before, "state.terminated.exitCode").unwrap_or_default();
            let container = containers.get(name);
            if !container.is_some_and(|container| restarts(container, spec, code)) {
                let detail = "may not be transitioned to non-terminated state";
                causes.forbidden(format!("{path}[{index}].state"), detail);
            }
        }
    }
}

/// Whether a container that ended with this code starts again.
fn restarts(container: &Value, spec: &Value, code: i64) -> bool {
    for rule in items(container, "restartPolicyRules") {
        let listed = items(rule, "exitCodes.values")
            .iter()
            .any(|value| value.as_i64() == Some(code));
        let holds = match text(rule, "exitCodes.operator") {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if holds {
            return true;
        }
    }
    let policy = match text(container, "restartPolicy") {
        "" => text(spec, "restartPolicy"),
        own => own,
    };
    match policy {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

fn claims(pod: &Value, causes: &mut Causes) {
    let known: HashSet<&str> = items(pod, "spec.resourceClaims")
        .iter()
        .map(|claim| text(claim, "name"))
        .collect();
    let mut seen = HashSet::new();
    for (index, status) in items(pod, "status.resourceClaimStatuses")
        .iter()
        .enumerate()
    {
        if causes.is_full() {
            return;
        }
        let path = format!("status.resourceClaimStatuses[{index}]");
        let name = text(status, "name");
        let own = format!("{path}.name");
        if !known.contains(name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            causes.invalid(&own, name, detail);
        }
        if !seen.insert(name) {
            causes.duplicate(own, name);
        }
        if has(status, "resourceClaimName") {
            let claim = text(status, "resourceClaimName");
            let own = format!("{path}.resourceClaimName");
            names::report(names::dns_subdomain(claim), claim, &own, causes);
        }
    }
}

/// One address of each family. Unlike `podIP`, a `hostIP` that is not the first of its list is no
/// old client's.
fn addresses(new: &Value, old: &Value, list: &str, causes: &mut Causes) {
    let path = format!("status.{list}");
    let all = items(new, &path);
    let Some(first) = all.first() else {
        return;
    };
    if list == "hostIPs" && text(first, "ip") != text(new, "status.hostIP") {
        causes.invalid(
            format!("{path}[0].ip"),
            text(first, "ip"),
            "must be equal to `hostIP`",
        );
    }
    let before: HashSet<&str> = items(old, &path).iter().map(|ip| text(ip, "ip")).collect();
    let mut families = Vec::new();
    for (index, ip) in all.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let ip = text(ip, "ip");
        match ip.parse::<std::net::IpAddr>() {
            Ok(ip) => families.push(ip.is_ipv4()),
            Err(_) if before.contains(ip) => {}
            Err(_) => {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.invalid(format!("{path}[{index}]"), ip, detail);
            }
        }
    }
    let dual = families.contains(&true) && families.contains(&false);
    if all.len() > 2 || (all.len() == 2 && !dual) {
        let detail = "may specify no more than one IP for each IP family";
        causes.invalid(path, all, detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(new: &Value, old: &Value) -> String {
        let mut causes = Causes::default();
        validate(new, old, &mut causes);
        let all = causes.0.iter();
        all.map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[test]
    fn what_has_ended_stays() {
        let ended = |code: i64| json!({"terminated": {"exitCode": code}});
        let pod = |policy: &str, more: Value, state: Value| {
            let mut container = json!({"name": "c"});
            json_patch::merge(&mut container, &more);
            json!({"spec": {"restartPolicy": policy, "containers": [container]},
                "status": {"containerStatuses": [{"name": "c", "state": state}]}})
        };
        let rule = |action: &str| {
            json!({"restartPolicy": "Never", "restartPolicyRules": [
                {"action": action, "exitCodes": {"operator": "In", "values": [3]}}]})
        };
        for (policy, more, code, fine) in [
            ("Always", json!({}), 0, true),
            ("OnFailure", json!({}), 0, false),
            ("OnFailure", json!({}), 1, true),
            ("Never", json!({}), 1, false),
            ("Never", json!({"restartPolicy": "Always"}), 0, true),
            ("Never", rule("Restart"), 3, true),
            ("Never", rule("Restart"), 4, false),
            ("Never", rule("RestartAllContainers"), 4, true),
        ] {
            let old = pod(policy, more.clone(), ended(code));
            let new = pod(policy, more, json!({"running": {}}));
            let want = match fine {
                true => "",
                false => {
                    "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
                }
            };
            assert_eq!(said(&new, &old), want, "{old}");
        }
    }

    #[test]
    fn what_a_status_says() {
        let invalid = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        for (status, want) in [
            (json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}), String::new()),
            (
                json!({"podIPs": [{"ip": "10.0.0"}]}),
                format!("status.podIPs[0]: Invalid value: \"10.0.0\": {invalid}"),
            ),
            (
                json!({"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.2"}]}),
                "status.hostIPs[0].ip: Invalid value: \"10.0.0.2\": must be equal to `hostIP`".to_owned(),
            ),
            (
                json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}),
                "status.podIPs: Invalid value: [{\"ip\":\"10.0.0.1\"},{\"ip\":\"10.0.0.2\"}]: may specify no more than one IP for each IP family".to_owned(),
            ),
            (
                json!({"nominatedNodeName": "n"}),
                "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node".to_owned(),
            ),
            (
                json!({"resourceClaimStatuses": [{"name": "gpu"}]}),
                "status.resourceClaimStatuses[0].name: Invalid value: \"gpu\": must match the name of an entry in `spec.resourceClaims`".to_owned(),
            ),
            (
                json!({"observedGeneration": -1}),
                "status.observedGeneration: Invalid value: -1: must be a non-negative integer".to_owned(),
            ),
            (json!({"conditions": [{"type": "Ready"}, {"type": "example.com/Mine"}]}), String::new()),
        ] {
            let pod = |status: Value| json!({"spec": {"nodeName": "n"}, "status": status});
            assert_eq!(said(&pod(status.clone()), &pod(json!({}))), want, "{status}");
        }
    }
}
