//! Pods leave nodes whose NoExecute taints they do not tolerate, or tolerate for a time only.
//!
//! The deadline follows from the taint's own time and the pod's tolerations, so that a restart
//! forgets nothing, and a taint that goes cancels what it began.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    controllers::{
        error::{Doing, Error, OrGone},
        pods,
        shared::{Controller, Loop, Next, Stopped},
    },
    deletion::Judged,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
    placement,
};

const WORKERS: usize = 8;

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let pods: Informer<Pod> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let controller = Evictions {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "taint-eviction-controller"),
        pods: pods.clone(),
        nodes: nodes.clone(),
    };
    let all = pods.clone();
    Loop::new(controller, &pods)
        .watch(&nodes, move |node| {
            if no_execute(node).next().is_none() {
                return Vec::new();
            }
            let name = node.name_any();
            all.list()
                .iter()
                .filter(|pod| pods::node_name(pod) == Some(&name))
                .map(|pod| Key::of(pod.as_ref()))
                .collect()
        })
        .run(WORKERS, shutdown)
        .await
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
}

/// What a node's taints mean for one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    LeavesIn(Duration),
    Leaves,
}

/// Of several tolerations of one taint the shortest counts, of several taints the first to end.
fn verdict(tolerations: &[Toleration], taints: &[&Taint], now: Timestamp) -> Verdict {
    let mut soonest: Option<Duration> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if matching.is_empty() {
            return Verdict::Leaves;
        }
        let Some(seconds) = matching
            .iter()
            .filter_map(|toleration| toleration.toleration_seconds)
            .min()
        else {
            continue;
        };
        // Objects tell the second in which it was added: nobody leaves before his time.
        let added = taint.time_added.as_ref();
        let (since, more) = added.map_or((now, 0), |time| (time.0, 1));
        let seconds = match seconds {
            ..=0 => 0,
            seconds => seconds.saturating_add(more),
        };
        match pods::remaining(since, seconds, now) {
            None => return Verdict::Leaves,
            Some(left) => soonest = Some(soonest.map_or(left, |soonest| soonest.min(left))),
        }
    }
    soonest.map_or(Verdict::Stays, Verdict::LeavesIn)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let value = taint.value.as_deref().unwrap_or_default();
    placement::tolerates(toleration, &taint.key, value, &taint.effect)
}

struct Evictions {
    client: Client,
    events: Recorder,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
}

impl Controller for Evictions {
    const NAME: &'static str = "taint-eviction-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key) else {
            return Ok(Next::Settled);
        };
        let Some(node) = pods::node_name(&pod).and_then(|node| self.nodes.get(&Key::new("", node)))
        else {
            return Ok(Next::Settled);
        };
        let taints: Vec<&Taint> = no_execute(&node).collect();
        if taints.is_empty() || pods::is_terminating(pod.as_ref()) || pods::is_finished(&pod) {
            return Ok(Next::Settled);
        }
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default();
        match verdict(tolerations, &taints, Timestamp::now()) {
            Verdict::Stays => Ok(Next::Settled),
            Verdict::LeavesIn(left) => Ok(Next::After(left)),
            Verdict::Leaves => {
                self.evict(key, &pod).await?;
                Ok(Next::Settled)
            }
        }
    }
}

impl Evictions {
    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let judged = json!({"uid": pod.uid(), "resourceVersion": pod.resource_version()});
        let patch = json!({"metadata": judged, "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(Timestamp::now()),
        }]}});
        let text = format!("Marking for deletion Pod {key}");
        self.events
            .record(pod, Level::Normal, "TaintManagerEviction", text);
        let marked = api
            .patch_status(
                &key.name,
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
            .or_gone()
            .doing(|| format!("tell pod {key} why it must leave"))?;
        let Some(marked) = marked else {
            return Ok(());
        };
        let params = Judged::State.params(&marked.metadata, DeleteParams::default());
        api.delete(&key.name, &params)
            .await
            .or_gone()
            .doing(|| format!("evict pod {key}"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn how_long_a_pod_stays() {
        // Source: documentation of taints and tolerations, "Taint based evictions".
        let now: Timestamp = "2026-01-01T00:01:40Z".parse().expect("a time");
        let taint: Taint = serde_json::from_value(json!({"key": "k", "effect": "NoExecute",
            "timeAdded": "2026-01-01T00:00:00Z"}))
        .expect("a taint");
        let exists = |seconds: Value| {
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds})
        };
        for (tolerations, want) in [
            (json!([]), Verdict::Leaves),
            (json!([exists(Value::Null)]), Verdict::Stays),
            (
                json!([exists(json!(300))]),
                Verdict::LeavesIn(Duration::from_secs(201)),
            ),
            (
                json!([exists(json!(300)), exists(json!(150))]),
                Verdict::LeavesIn(Duration::from_secs(51)),
            ),
            (
                json!([exists(json!(100))]),
                Verdict::LeavesIn(Duration::from_secs(1)),
            ),
            (json!([exists(json!(99))]), Verdict::Leaves),
            (json!([exists(json!(0))]), Verdict::Leaves),
            (json!([exists(json!(-1))]), Verdict::Leaves),
            (
                json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]),
                Verdict::Leaves,
            ),
        ] {
            let parsed: Vec<Toleration> =
                serde_json::from_value(tolerations.clone()).expect("tolerations");
            assert_eq!(verdict(&parsed, &[&taint], now), want, "{tolerations}");
        }
    }
}
