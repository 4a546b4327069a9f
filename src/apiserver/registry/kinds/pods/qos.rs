//! The quality-of-service class of a pod, from its containers' cpu and memory.

use serde_json::Value;

use crate::apiserver::registry::kinds::value::{items, text};
use proto::quantity::Quantity;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    // Resources given for the pod as a whole decide alone.
    let whole = &pod["spec"]["resources"];
    if has_any(whole) {
        return if is_guaranteed(whole) {
            "Guaranteed"
        } else {
            "Burstable"
        };
    }
    for list in ["spec.initContainers", "spec.containers"] {
        for container in items(pod, list) {
            any |= has_any(&container["resources"]);
            guaranteed &= is_guaranteed(&container["resources"]);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn has_any(resources: &Value) -> bool {
    ["requests", "limits"].iter().any(|kind| {
        ["cpu", "memory"]
            .iter()
            .any(|name| amount(resources, kind, name).is_some())
    })
}

fn is_guaranteed(resources: &Value) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let limit = amount(resources, "limits", name);
        limit.is_some() && limit == amount(resources, "requests", name)
    })
}

/// A quantity above zero, in thousandths.
fn amount(resources: &Value, kind: &str, name: &str) -> Option<i64> {
    let quantity = Quantity::parse(text(&resources[kind], name)).ok()?;
    Some(quantity.milli()).filter(|milli| *milli != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, want) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": full, "limits": full}), "Guaranteed"),
            (
                json!({"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": full}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}),
                "Burstable",
            ),
        ] {
            let pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
            assert_eq!(class(&pod), want, "{resources}");
        }
    }
}
