//! Which nodes of a DaemonSet get or lose a pod. Pure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetStatus},
        core::v1::{
            Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
    jiff::Timestamp,
};
use kube::ResourceExt;

use crate::{
    controllers::{
        percent::{Round, of_total},
        pods::{self, Availability},
        revisions::HASH_LABEL,
    },
    placement,
};

#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that need a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    pub status: DaemonSetStatus,
    pub recheck: Option<Duration>,
}

/// Taints that every daemon pod endures. Source: documentation of DaemonSets, "Taints and tolerations".
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Adds the tolerations of daemon pods.
pub fn tolerate(spec: &mut PodSpec) {
    let network = (spec.host_network == Some(true)).then_some(NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Ties the pod to one node; the scheduler still checks whether it fits.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let required = &mut spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution;
    let terms = required
        .take()
        .map(|selector| selector.node_selector_terms)
        .unwrap_or_default();
    let terms = if terms.is_empty() {
        vec![NodeSelectorTerm::default()]
    } else {
        terms
    };
    *required = Some(NodeSelector {
        node_selector_terms: terms
            .into_iter()
            .map(|term| NodeSelectorTerm {
                match_fields: Some(vec![field.clone()]),
                ..term
            })
            .collect(),
    });
}

/// The node that a daemon pod is on or is meant for.
pub fn target(pod: &Pod) -> Option<&str> {
    pods::node_name(pod).or_else(|| {
        pod.spec
            .as_ref()?
            .affinity
            .as_ref()?
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()?
            .node_selector_terms
            .first()?
            .match_fields
            .as_ref()?
            .iter()
            .find(|field| field.key == "metadata.name")?
            .values
            .as_ref()?
            .first()
            .map(String::as_str)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eligible {
    Runs,
    /// A pod that is there may stay, but none would be started.
    Stays,
    No,
}

/// `spec` already has the tolerations of daemon pods.
fn eligible(spec: &PodSpec, node: &Node) -> Eligible {
    if !placement::wants_node(spec, node.labels(), &node.name_any()) {
        return Eligible::No;
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let mut eligible = Eligible::Runs;
    for taint in taints.unwrap_or_default() {
        let value = taint.value.as_deref().unwrap_or_default();
        let tolerated = tolerations
            .iter()
            .any(|one| placement::tolerates(one, &taint.key, value, &taint.effect));
        match taint.effect.as_str() {
            "NoExecute" if !tolerated => return Eligible::No,
            "NoSchedule" if !tolerated => eligible = Eligible::Stays,
            _ => {}
        }
    }
    eligible
}

/// How an update may proceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    unavailable: i32,
    surge: i32,
}

fn bounds(set: &DaemonSet, desired: i32) -> Option<Bounds> {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.and_then(|one| one.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let rolling = strategy.and_then(|one| one.rolling_update.as_ref());
    let number = |value: Option<&IntOrString>, or: i32| {
        value.map_or(or, |value| of_total(value, desired, Round::Up))
    };
    let surge = number(rolling.and_then(|one| one.max_surge.as_ref()), 0);
    let mut unavailable = number(rolling.and_then(|one| one.max_unavailable.as_ref()), 1);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    Some(Bounds { unavailable, surge })
}

/// `pods` are those the set controls; `hash` is that of its present template.
pub fn plan(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut spec = set.spec.template.spec.clone().unwrap_or_default();
    tolerate(&mut spec);
    let mut by_node: HashMap<&str, Vec<&Arc<Pod>>> = HashMap::new();
    let mut plan = Plan::default();
    for pod in pods {
        match target(pod) {
            Some(node) => by_node.entry(node).or_default().push(pod),
            None if pods::is_active(pod) => plan.delete.push(pod.clone()),
            None => {}
        }
    }
    let mut look = Look {
        min_ready: set.spec.min_ready_seconds.unwrap_or(0),
        hash,
        now,
        recheck: None,
    };
    let desired = nodes
        .iter()
        .filter(|node| eligible(&spec, node) == Eligible::Runs)
        .count();
    let desired = i32::try_from(desired).unwrap_or(i32::MAX);
    let bounds = bounds(set, desired);
    let mut status = DaemonSetStatus {
        desired_number_scheduled: desired,
        observed_generation: set.metadata.generation,
        collision_count: set
            .status
            .as_ref()
            .and_then(|status| status.collision_count),
        conditions: set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available, mut old) = (0, 0, Vec::new());
    for node in nodes {
        let held = by_node.remove(node.name_any().as_str()).unwrap_or_default();
        let eligible = eligible(&spec, node);
        if eligible == Eligible::No {
            plan.delete.extend(
                held.iter()
                    .filter(|pod| pods::is_active(pod))
                    .map(|pod| (*pod).clone()),
            );
            status.number_misscheduled += i32::from(!held.is_empty());
            continue;
        }
        if eligible == Eligible::Stays {
            status.number_misscheduled += i32::from(!held.is_empty());
        }
        // A pod that ended is replaced; its place is free only once it is gone.
        let ended: Vec<&Arc<Pod>> = held
            .iter()
            .copied()
            .filter(|pod| pods::is_finished(pod))
            .collect();
        plan.delete.extend(
            ended
                .iter()
                .filter(|pod| !pods::is_terminating(pod.as_ref()))
                .map(|pod| (*pod).clone()),
        );
        let live: Vec<&Arc<Pod>> = held
            .iter()
            .copied()
            .filter(|pod| pods::is_active(pod))
            .collect();
        let leaving = held.iter().any(|pod| pods::is_terminating(pod.as_ref()));
        let (new, stale): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            live.iter().copied().partition(|pod| look.is_new(pod));
        if eligible == Eligible::Runs {
            status.current_number_scheduled += i32::from(!live.is_empty());
            let best = look.best(&live);
            status.number_ready += i32::from(best.is_some_and(|pod| pods::is_ready(pod)));
            let serves = best.is_some_and(|pod| look.is_available(pod));
            available += i32::from(serves);
            updated += i32::from(!new.is_empty());
            if live.is_empty() && ended.is_empty() && !leaving {
                plan.create.push(node.name_any());
            }
        }
        // Of each kind one pod is enough.
        for surplus in [&new, &stale] {
            let keep = look.best(surplus).map(|pod| pod.uid());
            plan.delete.extend(
                surplus
                    .iter()
                    .filter(|pod| Some(pod.uid()) != keep)
                    .map(|pod| (*pod).clone()),
            );
        }
        if let Some(stale) = look.best(&stale) {
            let new = look.best(&new).map(|pod| look.is_available(pod));
            old.push(Old {
                node: node.name_any(),
                serves: look.is_available(stale),
                pod: stale.clone(),
                new,
            });
        }
    }
    // Nodes that are gone take their pods with them; the pod collector sees to that.
    roll(&mut plan, bounds, &old, desired - available);
    status.updated_number_scheduled = Some(updated);
    status.number_available = Some(available);
    status.number_unavailable = Some((desired - available).max(0));
    plan.status = status;
    plan.recheck = look.recheck;
    plan
}

/// A pod of an old template.
struct Old {
    node: String,
    pod: Arc<Pod>,
    serves: bool,
    /// The new pod beside it, and whether that is available.
    new: Option<bool>,
}

fn roll(plan: &mut Plan, bounds: Option<Bounds>, old: &[Old], unavailable: i32) {
    // Without a strategy that rolls, old pods wait to be deleted by hand; doubles go all the same.
    let Some(bounds) = bounds else {
        return plan.delete.extend(
            old.iter()
                .filter(|one| one.new.is_some())
                .map(|one| one.pod.clone()),
        );
    };
    if bounds.surge == 0 {
        let mut room = bounds.unavailable - unavailable;
        for one in old {
            // What serves nobody costs nothing.
            if !one.serves || one.new.is_some() {
                plan.delete.push(one.pod.clone());
            } else if room > 0 {
                room -= 1;
                plan.delete.push(one.pod.clone());
            }
        }
        return;
    }
    let surging = old
        .iter()
        .filter(|one| one.new == Some(false) && one.serves)
        .count();
    let mut room = bounds.surge - i32::try_from(surging).unwrap_or(i32::MAX);
    for one in old {
        match one.new {
            Some(true) => plan.delete.push(one.pod.clone()),
            Some(false) if !one.serves => plan.delete.push(one.pod.clone()),
            Some(false) => {}
            None if !one.serves => plan.create.push(one.node.clone()),
            None if room > 0 => {
                room -= 1;
                plan.create.push(one.node.clone());
            }
            None => {}
        }
    }
}

/// What one look at the pods needs and finds.
struct Look<'a> {
    min_ready: i32,
    hash: &'a str,
    now: Timestamp,
    recheck: Option<Duration>,
}

impl Look<'_> {
    fn is_new(&self, pod: &Pod) -> bool {
        pod.labels()
            .get(HASH_LABEL)
            .is_some_and(|hash| hash == self.hash)
    }

    fn is_available(&mut self, pod: &Pod) -> bool {
        match pods::availability(pod, self.min_ready, self.now) {
            Availability::Available => true,
            Availability::NotReady => false,
            Availability::In(left) => {
                self.recheck = Some(self.recheck.map_or(left, |held| held.min(left)));
                false
            }
        }
    }

    /// The one to keep: assigned, ready, oldest.
    fn best<'p>(&self, pods: &[&'p Arc<Pod>]) -> Option<&'p Arc<Pod>> {
        pods.iter().copied().min_by_key(|pod| {
            let assigned = pods::node_name(pod).is_some();
            (
                !assigned,
                !pods::is_ready(pod),
                pod.creation_timestamp(),
                pod.name_any(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(strategy: &Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {
            "selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"on": "yes"}}},
            "updateStrategy": strategy}}))
        .expect("a DaemonSet")
    }

    fn node(name: &str, on: &str, taint: Option<(&str, &str)>) -> Arc<Node> {
        let taints = taint.map(|(key, effect)| json!([{"key": key, "effect": effect}]));
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"on": on}},
                "spec": {"taints": taints}}))
            .expect("a node"),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, phase: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "labels": {HASH_LABEL: hash}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready",
                    "status": if ready { "True" } else { "False" }}]},
            }))
            .expect("a pod"),
        )
    }

    fn steps(
        set: &DaemonSet,
        nodes: &[Arc<Node>],
        pods: &[Arc<Pod>],
    ) -> (Vec<String>, Vec<String>) {
        let plan = plan(set, nodes, pods, "new", Timestamp::UNIX_EPOCH);
        let names = plan.delete.iter().map(|pod| pod.name_any()).collect();
        (plan.create, names)
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn eligible_nodes_have_one_pod() {
        let nodes = [
            node("a", "yes", None),
            node("off", "no", None),
            node(
                "cordoned",
                "yes",
                Some(("node.kubernetes.io/unschedulable", "NoSchedule")),
            ),
            node("tainted", "yes", Some(("mine", "NoSchedule"))),
            node("failed", "yes", None),
        ];
        let pods = [
            pod("wrong", "off", "new", "Running", true),
            pod("stays", "tainted", "new", "Running", true),
            pod("over", "failed", "new", "Failed", false),
        ];
        let got = steps(&set(&json!({})), &nodes, &pods);
        assert_eq!(got, (texts(&["a", "cordoned"]), texts(&["wrong", "over"])));
    }

    #[test]
    fn updates_stay_within_their_bounds() {
        let nodes: Vec<Arc<Node>> = ["a", "b", "c"].map(|name| node(name, "yes", None)).into();
        let old: Vec<Arc<Pod>> = ["a", "b", "c"]
            .map(|name| pod(name, name, "old", "Running", true))
            .into();
        let rolling = |rule: Value| set(&json!({"type": "RollingUpdate", "rollingUpdate": rule}));
        let got = steps(&rolling(json!({})), &nodes, &old);
        assert_eq!(got, (vec![], texts(&["a"])), "one at a time");
        let got = steps(&rolling(json!({"maxUnavailable": "50%"})), &nodes, &old);
        assert_eq!(got.1.len(), 2);
        let surge = rolling(json!({"maxSurge": 1, "maxUnavailable": 0}));
        assert_eq!(steps(&surge, &nodes, &old), (texts(&["a"]), vec![]));
        let mut both = old.clone();
        both.push(pod("a2", "a", "new", "Running", true));
        assert_eq!(steps(&surge, &nodes, &both), (texts(&["b"]), texts(&["a"])));
        let by_hand = set(&json!({"type": "OnDelete"}));
        assert_eq!(steps(&by_hand, &nodes, &old), (vec![], vec![]));
    }

    #[test]
    fn a_pinned_pod_knows_its_node() {
        let mut spec = PodSpec::default();
        pin(&mut spec, "n");
        let pod = Pod {
            spec: Some(spec.clone()),
            ..Pod::default()
        };
        assert_eq!(target(&pod), Some("n"));
        assert!(placement::wants_node(&spec, &Default::default(), "n"));
        assert!(!placement::wants_node(&spec, &Default::default(), "m"));
    }
}
