//! The Node's status from what was seen. Pure: no clock, no I/O.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use serde_json::{Map, Value, json};

use super::{
    Config, Health,
    host::Host,
    reserved::{Amounts, Budget},
};
use crate::{
    kubelet::{container::NATIVE_HANDLER, eviction::Pressures},
    runtime::image::Image,
};

/// The largest of the node's images are told, so many.
const MAX_IMAGES: usize = 50;

/// All that a status is made from.
#[derive(Debug)]
pub struct Seen<'a> {
    pub config: &'a Config,
    pub host: &'a Host,
    pub budget: &'a Budget,
    pub disk_bytes: u64,
    pub pressures: Pressures,
    pub health: &'a Health,
    pub images: &'a [Arc<Image>],
    /// The object as it was last written.
    pub before: &'a Node,
}

/// The status as a strategic merge patch over what is there: of the conditions only those that the
/// kubelet owns, since others write theirs at the same time.
pub fn status(seen: &Seen<'_>, now: Timestamp) -> Value {
    json!({
        "capacity": capacity(seen),
        "allocatable": allocatable(seen),
        "conditions": conditions(seen, now),
        "addresses": addresses(&seen.config.node, &seen.config.addresses),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": seen.config.port}},
        "nodeInfo": info(seen.host),
        "images": images(seen.images),
        "runtimeHandlers": handlers(),
        "features": {"supplementalGroupsPolicy": false},
    })
}

/// What a RuntimeClass may ask for here.
fn handlers() -> Vec<Value> {
    let features = json!({"recursiveReadOnlyMounts": true, "userNamespaces": false});
    let handler = |name: &str| json!({"name": name, "features": features});
    ["", NATIVE_HANDLER].map(handler).into()
}

/// Without what changes with every look: two alike need not both be sent.
pub fn without_heartbeats(mut status: Value) -> Value {
    let conditions = status["conditions"].as_array_mut();
    for condition in conditions.into_iter().flatten() {
        if let Some(fields) = condition.as_object_mut() {
            fields.remove("lastHeartbeatTime");
        }
    }
    status
}

/// The node's own labels, and those that the user has chosen.
pub fn labels(node: &str, chosen: &BTreeMap<String, String>) -> Value {
    let mut labels = json!(chosen);
    labels["kubernetes.io/hostname"] = node.into();
    labels["kubernetes.io/os"] = "linux".into();
    labels["kubernetes.io/arch"] = architecture().into();
    labels
}

fn resources(seen: &Seen<'_>, amounts: Amounts) -> Map<String, Value> {
    let cpu = match amounts.cpu_milli % 1000 {
        0 => (amounts.cpu_milli / 1000).to_string(),
        _ => format!("{}m", amounts.cpu_milli),
    };
    let mut map = Map::new();
    map.insert("cpu".into(), cpu.into());
    map.insert(
        "memory".into(),
        format!("{}Ki", amounts.memory / 1024).into(),
    );
    map.insert(
        "ephemeral-storage".into(),
        amounts.ephemeral.to_string().into(),
    );
    map.insert("pods".into(), seen.config.max_pods.to_string().into());
    for (size, bytes) in &seen.host.huge_pages {
        let name = match size % 1024 {
            0 if size % (1024 * 1024) == 0 => format!("hugepages-{}Gi", size / 1024 / 1024),
            0 => format!("hugepages-{}Mi", size / 1024),
            _ => format!("hugepages-{size}Ki"),
        };
        let quantity = match bytes {
            0 => "0".into(),
            bytes => format!("{}Ki", bytes / 1024),
        };
        map.insert(name, quantity.into());
    }
    map
}

fn capacity(seen: &Seen<'_>) -> Map<String, Value> {
    resources(seen, seen.budget.capacity(seen.disk_bytes))
}

/// What others say that the node has besides (`example.com/widget`): theirs to write as capacity.
pub fn extended(node: &Node) -> BTreeMap<String, String> {
    let capacity = node
        .status
        .as_ref()
        .and_then(|status| status.capacity.as_ref());
    capacity
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/'))
        .map(|(name, quantity)| (name.clone(), quantity.0.clone()))
        .collect()
}

/// Capacity without what is reserved and what the eviction thresholds keep free.
fn allocatable(seen: &Seen<'_>) -> Map<String, Value> {
    let huge: u64 = seen.host.huge_pages.values().sum();
    let mut amounts = seen.budget.allocatable(seen.disk_bytes);
    amounts.memory = amounts.memory.saturating_sub(huge);
    let mut map = resources(seen, amounts);
    let status = seen.before.status.as_ref();
    let held = status.and_then(|status| status.allocatable.as_ref());
    for name in held.into_iter().flatten().map(|(name, _)| name) {
        // Whoever took it away from the capacity means both.
        map.entry(name.clone()).or_insert(Value::Null);
    }
    for (name, quantity) in extended(seen.before) {
        map.insert(name, quantity.into());
    }
    map
}

fn conditions(seen: &Seen<'_>, now: Timestamp) -> Vec<Value> {
    let pressures = seen.pressures;
    let pressed = |kind: &str, holds: bool, reasons: [&str; 2], messages: [&str; 2]| {
        condition(
            seen,
            now,
            kind,
            holds,
            reasons[usize::from(holds)],
            messages[usize::from(holds)],
        )
    };
    vec![
        pressed(
            "MemoryPressure",
            pressures.memory,
            ["KubeletHasSufficientMemory", "KubeletHasInsufficientMemory"],
            [
                "kubelet has sufficient memory available",
                "kubelet has insufficient memory available",
            ],
        ),
        pressed(
            "DiskPressure",
            pressures.disk,
            ["KubeletHasNoDiskPressure", "KubeletHasDiskPressure"],
            ["kubelet has no disk pressure", "kubelet has disk pressure"],
        ),
        pressed(
            "PIDPressure",
            pressures.pid,
            ["KubeletHasSufficientPID", "KubeletHasInsufficientPID"],
            [
                "kubelet has sufficient PID available",
                "kubelet has insufficient PID available",
            ],
        ),
        match seen.health {
            Health::Ready => condition(
                seen,
                now,
                "Ready",
                true,
                "KubeletReady",
                "kubelet is posting ready status",
            ),
            Health::NotReady(why) => condition(seen, now, "Ready", false, "KubeletNotReady", why),
        },
    ]
}

/// Whether the object says of our conditions what the patch does: others may have written them too,
/// while nothing was heard of the node.
pub fn is_held(node: &Node, patch: &Value) -> bool {
    let status = node.status.as_ref();
    let held = status.and_then(|status| status.conditions.as_ref());
    let holds = |condition: &Value| {
        held.into_iter().flatten().any(|held| {
            condition["type"] == held.type_.as_str() && condition["status"] == held.status.as_str()
        })
    };
    let ours = patch["conditions"].as_array();
    ours.is_some_and(|ours| ours.iter().all(holds))
}

/// Reasons of the events that say how a node's pressures have changed. A node that is new and well
/// says nothing.
pub fn news(before: &Node, after: &Node) -> Vec<&'static str> {
    let all = [
        (
            "MemoryPressure",
            "NodeHasSufficientMemory",
            "NodeHasInsufficientMemory",
        ),
        (
            "DiskPressure",
            "NodeHasNoDiskPressure",
            "NodeHasDiskPressure",
        ),
        (
            "PIDPressure",
            "NodeHasSufficientPID",
            "NodeHasInsufficientPID",
        ),
    ];
    let holds = |node: &Node, kind: &str| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        Some(found?.status == "True")
    };
    let changed = all.into_iter().filter_map(|(kind, no, yes)| {
        let (before, after) = (holds(before, kind), holds(after, kind)?);
        match after {
            true => (before != Some(true)).then_some(yes),
            false => (before == Some(true)).then_some(no),
        }
    });
    changed.collect()
}

/// The time of transition moves only when the status does.
fn condition(
    seen: &Seen<'_>,
    now: Timestamp,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
) -> Value {
    let status = if holds { "True" } else { "False" };
    let since = seen
        .before
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == kind))
        .filter(|condition| condition.status == status)
        .and_then(|condition| condition.last_transition_time.as_ref())
        .map_or(now, |time| time.0);
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": seconds(now),
        "lastTransitionTime": seconds(since),
    })
}

/// As the API writes times.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub fn addresses(node: &str, addresses: &[IpAddr]) -> Vec<Value> {
    addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .chain([json!({"type": "Hostname", "address": node})])
        // The list as a whole: a node may have several addresses of one type.
        .chain([json!({"$patch": "replace"})])
        .collect()
}

fn info(host: &Host) -> Value {
    let mut info = json!({
        "machineID": host.machine_id,
        "systemUUID": host.system_uuid,
        "bootID": host.boot_id,
        "kernelVersion": host.kernel,
        "osImage": host.os_image,
        "containerRuntimeVersion": concat!("vetch://", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": concat!("v1.37.0+vetch", env!("CARGO_PKG_VERSION")),
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": architecture(),
    });
    if host.facts.swap_bytes > 0 {
        info["swap"] = json!({"capacity": host.facts.swap_bytes});
    }
    info
}

fn images(images: &[Arc<Image>]) -> Vec<Value> {
    let mut images: Vec<&Arc<Image>> = images.iter().collect();
    images.sort_by(|a, b| {
        b.size_bytes
            .cmp(&a.size_bytes)
            .then_with(|| a.id.cmp(&b.id))
    });
    images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| {
            let names: Vec<&String> = image.digests.iter().chain(&image.names).collect();
            json!({"names": names, "sizeBytes": image.size_bytes})
        })
        .collect()
}

/// As images and Go name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(
        config: &'a Config,
        host: &'a Host,
        health: &'a Health,
        before: &'a Node,
        budget: &'a Budget,
    ) -> Seen<'a> {
        Seen {
            config,
            host,
            budget,
            disk_bytes: 1000,
            pressures: Pressures::default(),
            health,
            images: &[],
            before,
        }
    }

    #[test]
    fn pressures_are_told_when_they_change() {
        let node = |status: Option<&str>| -> Node {
            let conditions: Vec<Value> = status
                .map(|status| json!({"type": "DiskPressure", "status": status}))
                .into_iter()
                .collect();
            serde_json::from_value(json!({"status": {"conditions": conditions}})).unwrap()
        };
        for (before, after, want) in [
            (None, "False", vec![]),
            (None, "True", vec!["NodeHasDiskPressure"]),
            (Some("False"), "True", vec!["NodeHasDiskPressure"]),
            (Some("True"), "True", vec![]),
            (Some("True"), "False", vec!["NodeHasNoDiskPressure"]),
        ] {
            assert_eq!(
                news(&node(before), &node(Some(after))),
                want,
                "{before:?} {after}"
            );
        }
    }

    #[test]
    fn transitions_move_and_only_our_own_conditions_are_sent() {
        let config = Config {
            node: "n".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            port: 10250,
            max_pods: 110,
            state_dir: "/".into(),
            pod_cidrs: "10.42.0.0/24".parse().unwrap(),
            dns: Default::default(),
            description: Default::default(),
        };
        let mut host = Host::default();
        host.facts.cpu_milli = 2000;
        host.facts.memory_bytes = 1 << 30;
        host.huge_pages = [(2048, 0), (1_048_576, 2 << 30)].into();
        let budget = Budget::new(&host.facts, 1000, &Default::default()).unwrap();
        let before: Node = serde_json::from_value(json!({"status": {
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                {"type": "Mine", "status": "True"},
            ],
            "capacity": {"example.com/widget": "3", "cpu": "7"},
            "allocatable": {"example.com/gone": "1", "cpu": "7"},
        }}))
        .unwrap();
        let before_with = |ready: &str| -> Node {
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
            let conditions = [
                condition("MemoryPressure", "False"),
                condition("DiskPressure", "False"),
                condition("PIDPressure", "False"),
                condition("Ready", ready),
            ];
            serde_json::from_value(json!({"status": {"conditions": conditions}})).unwrap()
        };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let status_with =
            |health: &Health| status(&seen(&config, &host, health, &before, &budget), now);
        let ready = status_with(&Health::Ready);
        let find = |status: &Value, kind: &str| {
            let conditions = status["conditions"].as_array().unwrap().clone();
            conditions
                .into_iter()
                .find(|condition| condition["type"] == kind)
                .unwrap()
        };
        assert_eq!(
            find(&ready, "Ready")["lastTransitionTime"],
            "2020-01-01T00:00:00Z"
        );
        assert!(!ready["conditions"].to_string().contains("Mine"));
        assert!(is_held(&before_with("True"), &ready));
        // As the control plane says of a node that was silent.
        assert!(!is_held(&before_with("Unknown"), &ready));
        let not = status_with(&Health::NotReady("no network".into()));
        assert_eq!(find(&not, "Ready")["message"], "no network");
        assert_eq!(
            find(&not, "Ready")["lastTransitionTime"],
            "2023-11-14T22:13:20Z"
        );
        assert_eq!(ready["capacity"]["cpu"], "2");
        assert_eq!(ready["capacity"]["hugepages-2Mi"], "0");
        assert_eq!(ready["capacity"]["hugepages-1Gi"], "2097152Ki");
        assert_eq!(ready["allocatable"]["ephemeral-storage"], "900");
        assert_eq!(ready["allocatable"]["cpu"], "2");
        assert_eq!(ready["allocatable"]["example.com/widget"], "3");
        assert_eq!(
            ready["allocatable"].get("example.com/gone"),
            Some(&Value::Null)
        );
        let later = Timestamp::from_second(1_700_000_010).unwrap();
        let again = status(
            &seen(&config, &host, &Health::Ready, &before, &budget),
            later,
        );
        assert_ne!(ready, again);
        assert_eq!(
            without_heartbeats(ready)["conditions"]
                .as_array()
                .unwrap()
                .len(),
            4
        );
    }
}
