//! Removes pods that nobody else will: of vanished nodes, terminating without a node or on one that somebody
//! has declared out of service, and the oldest of too many finished ones.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

const MAX_FINISHED: usize = 12_500;
/// By this taint an administrator says that a node that is not ready runs nothing any more: its power is off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A node may be away from the cache for a moment; only after this is it asked for.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let pods: Informer<Pod> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let controller = Collector {
        client: informers.client().clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        missing: Mutex::default(),
    };
    let (all, known) = (pods.clone(), nodes.clone());
    Loop::new(controller, &pods)
        .watch(&nodes, move |node| {
            let name = node.name_any();
            let is_known = known.get(&Key::new("", name.clone())).is_some();
            if is_known && !is_out_of_service(node) {
                return Vec::new();
            }
            all.list()
                .iter()
                .filter(|pod| pods::node_name(pod) == Some(&name))
                .map(|pod| Key::of(pod.as_ref()))
                .collect()
        })
        .run(1, shutdown)
        .await
}

/// As what a pod that had not ended is marked before it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    Failed,
    /// And why, in a condition: reason and message.
    Disrupted((&'static str, &'static str)),
}

/// Whether what is to end there has ended, on the word of an administrator: a node that is ready says itself.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let mut taints = taints.unwrap_or_default().iter();
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    let is_ready = conditions.any(|one| one.type_ == "Ready" && one.status == "True");
    taints.any(|taint| taint.key == OUT_OF_SERVICE) && !is_ready
}

struct Collector {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Since when a node that pods name is missing.
    missing: Mutex<HashMap<String, Instant>>,
}

impl Controller for Collector {
    const NAME: &'static str = "pod-garbage-collector-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key) else {
            return Ok(Next::Settled);
        };
        let Some(node) = pods::node_name(&pod) else {
            if pods::is_terminating(pod.as_ref()) {
                self.remove(&pod, None).await?;
            }
            return Ok(Next::Settled);
        };
        let Some(object) = self.nodes.get(&Key::new("", node)) else {
            return self.orphan(&pod, node).await;
        };
        self.with_missing(|missing| missing.remove(node));
        if pods::is_terminating(pod.as_ref()) && is_out_of_service(&object) {
            self.remove(&pod, Some(Marked::Failed)).await?;
        } else if pods::is_finished(&pod) {
            self.thin_out().await?;
        }
        Ok(Next::Settled)
    }
}

impl Collector {
    async fn orphan(&self, pod: &Pod, node: &str) -> Result<Next, Error> {
        let since = self
            .with_missing(|missing| *missing.entry(node.to_owned()).or_insert_with(Instant::now));
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let live = Api::<Node>::all(self.client.clone())
            .get_opt(node)
            .await
            .doing(|| format!("ask for node {node}"))?;
        if live.is_none() {
            let why = ("DeletionByPodGC", "PodGC: node no longer exists");
            self.remove(pod, Some(Marked::Disrupted(why))).await?;
        }
        Ok(Next::Settled)
    }

    fn with_missing<T>(&self, with: impl FnOnce(&mut HashMap<String, Instant>) -> T) -> T {
        with(&mut self.missing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn thin_out(&self) -> Result<(), Error> {
        let mut finished = self.pods.list();
        if finished.len() <= MAX_FINISHED {
            return Ok(());
        }
        finished.retain(|pod| pods::is_finished(pod) && !pods::is_terminating(pod.as_ref()));
        let surplus = finished.len().saturating_sub(MAX_FINISHED);
        finished.sort_by_cached_key(|pod| (pod.creation_timestamp(), pod.name_any()));
        for pod in finished.iter().take(surplus) {
            self.remove(pod, None).await?;
        }
        Ok(())
    }

    /// Deletes at once; a pod that had not ended may be marked first.
    async fn remove(&self, pod: &Pod, mark: Option<Marked>) -> Result<(), Error> {
        let name = pod.name_any();
        let api: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let mut judged_as = pod.metadata.clone();
        if let Some(mark) = mark.filter(|_| !pods::is_finished(pod)) {
            let judged = json!({"uid": pod.uid(), "resourceVersion": pod.resource_version()});
            let mut status = json!({"phase": "Failed"});
            if let Marked::Disrupted((reason, message)) = mark {
                status["conditions"] = json!([{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime":
                        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                            k8s_openapi::jiff::Timestamp::now()),
                }]);
            }
            let patch = json!({"metadata": judged, "status": status});
            let marked = api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch))
                .await
                .or_gone()
                .doing(|| format!("mark pod {name} as failed"))?;
            let Some(marked) = marked else {
                return Ok(());
            };
            judged_as = marked.metadata;
        }
        let params = DeleteParams::default().grace_period(0);
        let params = Judged::State.params(&judged_as, params);
        api.delete(&name, &params)
            .await
            .or_gone()
            .doing(|| format!("remove pod {name}"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_nodes_run_nothing_any_more() {
        for (taint, ready, want) in [
            (OUT_OF_SERVICE, "Unknown", true),
            (OUT_OF_SERVICE, "False", true),
            (OUT_OF_SERVICE, "True", false),
            ("node.kubernetes.io/unreachable", "Unknown", false),
        ] {
            let node = json!({
                "metadata": {"name": "n"},
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            let node: Node = serde_json::from_value(node).unwrap();
            assert_eq!(is_out_of_service(&node), want, "{taint} {ready}");
        }
    }
}
