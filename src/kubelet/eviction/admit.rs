//! Which new pods a node under pressure takes. Pure.

use k8s_openapi::api::core::v1::Pod;

use super::{decide::Pressures, rank::is_critical};
use crate::{
    kubelet::container::{QosClass, qos_class},
    placement::tolerates,
};

const MEMORY_TAINT: &str = "node.kubernetes.io/memory-pressure";

/// The message of the refusal, if the pod is refused.
pub fn refusal(pod: &Pod, pressures: Pressures) -> Option<String> {
    if !pressures.any() || is_critical(pod) {
        return None;
    }
    let only_memory = pressures.memory && !pressures.disk && !pressures.pid;
    if only_memory && (qos_class(pod) != QosClass::BestEffort || tolerates_memory(pod)) {
        return None;
    }
    let conditions = [
        (pressures.memory, "MemoryPressure"),
        (pressures.disk, "DiskPressure"),
        (pressures.pid, "PIDPressure"),
    ];
    let names: Vec<&str> = conditions
        .iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, name)| *name)
        .collect();
    let names = names.join(" ");
    Some(format!("The node had condition: [{names}]. "))
}

fn tolerates_memory(pod: &Pod) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
    tolerations
        .into_iter()
        .flatten()
        .any(|toleration| tolerates(toleration, MEMORY_TAINT, "", "NoSchedule"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_may_still_come() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let plain = || pod(json!({"containers": [{"name": "c"}]}));
        let burstable = || {
            pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]}))
        };
        let tolerating = |key: &str| {
            let toleration = json!([{"key": key, "operator": "Exists"}]);
            pod(json!({"containers": [{"name": "c"}], "tolerations": toleration}))
        };
        let critical = || pod(json!({"containers": [], "priority": 2_000_000_000}));
        let none = Pressures::default();
        let memory = Pressures {
            memory: true,
            ..none
        };
        let disk = Pressures { disk: true, ..none };
        let both = Pressures {
            memory: true,
            ..disk
        };
        let pid = Pressures { pid: true, ..none };
        for (pod, pressures, want) in [
            (plain(), none, None),
            (plain(), memory, Some("[MemoryPressure]")),
            (burstable(), memory, None),
            (tolerating(MEMORY_TAINT), memory, None),
            (
                tolerating("node.kubernetes.io/disk-pressure"),
                memory,
                Some("[MemoryPressure]"),
            ),
            (burstable(), disk, Some("[DiskPressure]")),
            (
                tolerating("node.kubernetes.io/disk-pressure"),
                disk,
                Some("[DiskPressure]"),
            ),
            (burstable(), both, Some("[MemoryPressure DiskPressure]")),
            (plain(), pid, Some("[PIDPressure]")),
            (critical(), both, None),
        ] {
            let want = want.map(|names| format!("The node had condition: {names}. "));
            assert_eq!(refusal(&pod, pressures), want, "{pod:?} {pressures:?}");
        }
    }
}
