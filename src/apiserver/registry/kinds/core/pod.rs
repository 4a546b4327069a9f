//! Pods.

use serde_json::{Value, json};

use super::{pod_table, pod_update};
use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, SpecialSubresource, StatusMetadata,
    Subresource::{Special, Status},
    kinds::{
        names,
        pods::{annotations, defaults, qos, validate, warnings, whole},
        row::{self, field, read, read_flag, special},
        twins::POD_IPS,
        value::{default_text, items, number, set, text},
    },
};

const LOG: SpecialSubresource = special("log", &["get"], "", "v1", "Pod");
const EXEC: SpecialSubresource = special("exec", &["create", "get"], "", "v1", "PodExecOptions");
const ATTACH: SpecialSubresource =
    special("attach", &["create", "get"], "", "v1", "PodAttachOptions");
const FORWARD: SpecialSubresource = special(
    "portforward",
    &["create", "get"],
    "",
    "v1",
    "PodPortForwardOptions",
);
const PROXY: SpecialSubresource = special("proxy", row::PROXY, "", "v1", "PodProxyOptions");
const BINDING: SpecialSubresource = special("binding", row::CREATE, "", "v1", "Binding");
const EVICTION: SpecialSubresource = special("eviction", row::CREATE, "policy", "v1", "Eviction");
const EPHEMERAL: SpecialSubresource = special(
    "ephemeralcontainers",
    &["get", "patch", "update"],
    "",
    "v1",
    "Pod",
);

pub const ROW: Resource = Resource {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Special(&ATTACH),
        Special(&BINDING),
        Special(&EPHEMERAL),
        Special(&EVICTION),
        Special(&EXEC),
        Special(&LOG),
        Special(&FORWARD),
        Special(&PROXY),
        Status,
    ],
    columns: pod_table::COLUMNS,
    fields: &[
        field("spec.nodeName", |pod| read(pod, "spec.nodeName")),
        field("spec.restartPolicy", |pod| read(pod, "spec.restartPolicy")),
        field("spec.schedulerName", |pod| read(pod, "spec.schedulerName")),
        field("spec.serviceAccountName", |pod| {
            read(pod, "spec.serviceAccountName")
        }),
        field("spec.hostNetwork", |pod| read_flag(pod, "spec.hostNetwork")),
        field("status.phase", |pod| read(pod, "status.phase")),
        field("status.podIP", |pod| read(pod, "status.podIP")),
        field("status.podIPs", |pod| {
            let ips = items(pod, "status.podIPs").iter();
            ips.map(|ip| text(ip, "ip")).collect::<Vec<_>>().join(",")
        }),
        field("status.nominatedNodeName", |pod| {
            read(pod, "status.nominatedNodeName")
        }),
    ],
    behaviour: Behaviour {
        status_metadata: StatusMetadata::AllBut("ownerReferences"),
        default,
        prepare_create,
        validate: validate_pod,
        validate_new: whole::validate_new,
        validate_update: pod_update::validate_update,
        warnings: warnings::pod,
        generation: true,
        graceful: Some(grace),
        ..PLAIN
    },
    ..row::namespaced("", "v1", "Pod", "pods", "pod", "io.k8s.api.core.v1.Pod")
};

fn default(pod: &mut Value) {
    defaults::pod(pod);
    POD_IPS.agree(pod);
    default_text(pod, "status.phase", "Pending");
    // Resources are complete only now, and they do not change: neither does the class.
    let class = qos::class(pod);
    set(pod, "status.qosClass", class);
}

fn prepare_create(pod: &mut Value) {
    let class = qos::class(pod);
    set(
        pod,
        "status",
        json!({"phase": "Pending", "qosClass": class}),
    );
    if !items(pod, "spec.schedulingGates").is_empty() {
        set(
            pod,
            "status.conditions",
            json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]),
        );
    }
}

fn validate_pod(pod: &Value, causes: &mut Causes) {
    names::object_name(pod, names::dns_subdomain, causes);
    let Some(spec) = pod.get("spec") else {
        return causes.required("spec", "");
    };
    annotations::validate(&pod["metadata"], spec, "metadata.annotations", causes);
    validate::spec(spec, "spec", causes);
    validate::pod(pod, causes);
}

/// The grace period of a delete that names none: none for a pod no node runs, or that is over.
fn grace(pod: &Value) -> i64 {
    let over = matches!(text(pod, "status.phase"), "Succeeded" | "Failed");
    if text(pod, "spec.nodeName").is_empty() || over {
        return 0;
    }
    match number(pod, "spec.terminationGracePeriodSeconds") {
        None => 30,
        // As it always was.
        Some(grace) if grace < 0 => 1,
        Some(grace) => grace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_period() {
        for (pod, want) in [
            (json!({"spec": {"terminationGracePeriodSeconds": 9}}), 0),
            (
                json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 9}}),
                9,
            ),
            (
                json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}),
                0,
            ),
        ] {
            assert_eq!(grace(&pod), want, "{pod}");
        }
    }

    #[test]
    fn create_resets_status() {
        let mut pod = json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running", "podIP": "1.2.3.4"}});
        prepare_create(&mut pod);
        default(&mut pod);
        assert_eq!(
            pod["status"],
            json!({"phase": "Pending", "qosClass": "BestEffort"})
        );
    }
}
