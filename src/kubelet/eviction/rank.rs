//! Who goes first. Pure.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::core::v1::Pod;

use super::threshold::Resource;
use crate::{kubelet::statics, placement::Requests};

/// Priority of the two system classes and above.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// A pod that might go.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub pod: Arc<Pod>,
    /// Of the resource that is short; `None` if it cannot be read.
    pub usage: Option<u64>,
}

/// Pods that are never evicted: the node or the cluster does not work without them.
pub fn is_critical(pod: &Pod) -> bool {
    statics::is_static(pod) || statics::is_mirror(pod) || priority(pod) >= SYSTEM_CRITICAL
}

fn priority(pod: &Pod) -> i32 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .unwrap_or(0)
}

/// What the pod asked for of the resource.
pub fn request(pod: &Pod, resource: Resource) -> u64 {
    let needed = Requests::of(pod).needed;
    let asked = match resource {
        Resource::Memory => needed.memory,
        Resource::EphemeralStorage => needed.ephemeral,
        Resource::Inodes | Resource::Pids => 0,
    };
    u64::try_from(asked).unwrap_or(0)
}

/// The first to be evicted first: who uses more than it asked for, then the lesser priority, then
/// who uses most beyond its request. Of processes nobody asks for any: priority, then number.
pub fn rank(resource: Resource, candidates: &mut [Candidate]) {
    candidates.sort_by_cached_key(|candidate| {
        let asked = i128::from(request(&candidate.pod, resource));
        let used = candidate.usage.map(i128::from);
        let exceeds = match resource {
            Resource::Pids => true,
            _ => used.is_some_and(|used| used > asked),
        };
        (
            used.is_some(),
            !exceeds,
            priority(&candidate.pod),
            Reverse(used.unwrap_or(0) - asked),
        )
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn candidate(name: &str, priority: i32, requests: &str, usage: Option<u64>) -> Candidate {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources":
                {"requests": {"memory": requests, "ephemeral-storage": requests}}}]},
        });
        Candidate {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            usage,
        }
    }

    fn order(resource: Resource, mut candidates: Vec<Candidate>) -> Vec<String> {
        rank(resource, &mut candidates);
        let name = |one: &Candidate| one.pod.metadata.name.clone().unwrap();
        candidates.iter().map(name).collect()
    }

    #[test]
    fn who_goes_first() {
        for (resource, candidates, want) in [
            (
                Resource::Memory,
                vec![
                    candidate("within", 0, "500", Some(400)),
                    candidate("over", 0, "100", Some(200)),
                    candidate("over much", 0, "0", Some(300)),
                    candidate("over, higher", 10, "0", Some(900)),
                    candidate("unknown", 0, "0", None),
                ],
                vec!["unknown", "over much", "over", "over, higher", "within"],
            ),
            (
                Resource::EphemeralStorage,
                vec![
                    candidate("within, low", -5, "500", Some(500)),
                    candidate("over", 0, "500", Some(501)),
                ],
                vec!["over", "within, low"],
            ),
            (
                // Of inodes every one is more than was asked for.
                Resource::Inodes,
                vec![
                    candidate("few", 0, "0", Some(3)),
                    candidate("many", 0, "500", Some(4)),
                ],
                vec!["many", "few"],
            ),
            (
                Resource::Pids,
                vec![
                    candidate("few", 0, "0", Some(1)),
                    candidate("high", 1, "0", Some(900)),
                    candidate("many", 0, "0", Some(800)),
                ],
                vec!["many", "few", "high"],
            ),
        ] {
            assert_eq!(order(resource, candidates), want, "{resource:?}");
        }
    }

    #[test]
    fn who_never_goes() {
        for (meta, priority, want) in [
            (json!({}), 0, false),
            (json!({}), 1_999_999_999, false),
            (json!({}), 2_000_000_000, true),
            (
                json!({"kubernetes.io/config.mirror": "x", "kubernetes.io/config.source": "api"}),
                0,
                true,
            ),
            (json!({"kubernetes.io/config.source": "file"}), 0, true),
        ] {
            let pod = json!({
                "metadata": {"annotations": meta},
                "spec": {"priority": priority, "containers": []},
            });
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(is_critical(&pod), want, "{meta} {priority}");
        }
    }
}
