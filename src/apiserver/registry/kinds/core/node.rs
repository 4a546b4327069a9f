//! Nodes.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, SpecialSubresource,
    Subresource::{Special, Status},
    kinds::{
        cells::{NONE, or_none},
        names,
        row::{self, AGE, column, field, read_flag, special, wide},
        twins::POD_CIDRS,
        value::{at, default_to, flag, has, items, pairs, text},
    },
};

const PROXY: SpecialSubresource = special("proxy", row::PROXY, "", "v1", "NodeProxyOptions");

pub const ROW: Resource = Resource {
    short_names: &["no"],
    subresources: &[Special(&PROXY), Status],
    columns: &[
        column("Status", |node| status(node).into()),
        column("Roles", |node| roles(node).into()),
        AGE,
        column("Version", |node| {
            row::cell(node, "status.nodeInfo.kubeletVersion")
        }),
        wide("Internal-IP", |node| address(node, "InternalIP")),
        wide("External-IP", |node| address(node, "ExternalIP")),
        wide("OS-Image", |node| unknown(node, "status.nodeInfo.osImage")),
        wide("Kernel-Version", |node| {
            unknown(node, "status.nodeInfo.kernelVersion")
        }),
        wide("Container-Runtime", |node| {
            unknown(node, "status.nodeInfo.containerRuntimeVersion")
        }),
    ],
    fields: &[field("spec.unschedulable", |node| {
        read_flag(node, "spec.unschedulable")
    })],
    behaviour: Behaviour {
        default: |node| {
            default_to(node, "spec", json!({}));
            default_to(node, "status", json!({}));
            POD_CIDRS.agree(node);
        },
        validate,
        validate_update,
        ..PLAIN
    },
    ..row::cluster("", "v1", "Node", "nodes", "node", "io.k8s.api.core.v1.Node")
};

fn status(node: &Value) -> String {
    let ready = items(node, "status.conditions")
        .iter()
        .find(|condition| text(condition, "type") == "Ready");
    let mut status = match ready {
        Some(ready) if text(ready, "status") == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if flag(node, "spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = pairs(node, "metadata.labels")
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role),
                _ if key == "kubernetes.io/role" && !value.is_empty() => Some(value),
                _ => None,
            },
        )
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        NONE.to_owned()
    } else {
        roles.join(",")
    }
}

fn address(node: &Value, kind: &str) -> Value {
    or_none(
        items(node, "status.addresses")
            .iter()
            .find(|address| text(address, "type") == kind)
            .map_or("", |address| text(address, "address")),
    )
}

fn unknown(node: &Value, path: &str) -> Value {
    match text(node, path) {
        "" => "<unknown>".into(),
        text => text.into(),
    }
}

fn validate(node: &Value, causes: &mut Causes) {
    names::object_name(node, names::dns_subdomain, causes);
    let mut seen = Vec::new();
    for (index, taint) in items(node, "spec.taints").iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        names::label_key(key, &format!("{path}.key"), causes);
        names::label_value(text(taint, "value"), &format!("{path}.value"), causes);
        match effect {
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            "" => causes.required(format!("{path}.effect"), ""),
            other => causes.unsupported(
                format!("{path}.effect"),
                other,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ),
        }
        if seen.contains(&(key, effect)) {
            causes.duplicate(path, key);
        }
        seen.push((key, effect));
    }
}

fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    for path in ["spec.podCIDR", "spec.podCIDRs", "spec.providerID"] {
        if has(old, path) && at(new, path) != at(old, path) {
            causes.forbidden(
                path,
                "node updates may not change this field once it is set",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let node = json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
        assert_eq!(status(&node), "Ready,SchedulingDisabled");
        assert_eq!(roles(&node), "control-plane,worker");
        assert_eq!(address(&node, "InternalIP"), "10.0.0.1");
        assert_eq!(address(&node, "ExternalIP"), "<none>");
    }
}
