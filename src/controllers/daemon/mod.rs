//! DaemonSets: one pod on every node that is eligible. `plan.rs` decides.

mod plan;

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
        core::v1::{Node, Pod},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;

use self::plan::{pin, plan, tolerate};
use super::{
    dependents::{Claimant, Dependents, Failed, PodControl, Wording, owners_of},
    error::{Doing, Error, OrGone},
    history::History,
    pods,
    revisions::{self, HASH_LABEL},
    shared::{Controller, Loop, Next, Stopped},
    written::PATIENCE,
};
use crate::{
    deletion::Judged,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 2;

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let sets: Informer<DaemonSet> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let revisions: Informer<ControllerRevision> = informers.get();
    let controller = Daemons {
        client: informers.client().clone(),
        sets: sets.clone(),
        nodes: nodes.clone(),
        control: PodControl {
            pods: Dependents::new(&informers),
            events: Recorder::start(informers.client().clone(), "daemonset-controller"),
            wording: Wording::Plain,
        },
        history: History::new(&informers),
    };
    let all = sets.clone();
    let (of_pod, of_revision) = (sets.clone(), sets.clone());
    Loop::new(controller, &sets)
        .watch(&pods, move |pod| {
            owners_of(pod, &of_pod, |set| claimant(set).ok())
        })
        .watch(&revisions, move |revision| {
            owners_of(revision, &of_revision, |set| claimant(set).ok())
        })
        .watch_changes(&nodes, same_place, move |_| {
            all.list().iter().map(|set| Key::of(set.as_ref())).collect()
        })
        .run(WORKERS, shutdown)
        .await
}

/// True if nothing changed by which a node becomes eligible or ceases to be.
fn same_place(old: &Node, new: &Node) -> bool {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
}

fn claimant(set: &DaemonSet) -> Result<Claimant, Error> {
    Claimant::by_label(set, set.spec.selector.clone())
}

struct Daemons {
    client: Client,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    control: PodControl,
    history: History,
}

impl Controller for Daemons {
    const NAME: &'static str = "daemonset-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else {
            self.control.pods.forget(key);
            self.history.forget(key);
            return Ok(Next::Settled);
        };
        if pods::is_terminating(set.as_ref()) {
            return Ok(Next::Settled);
        }
        if !self.control.pods.visible(key) || !self.history.visible(key) {
            return Ok(Next::After(PATIENCE));
        }
        let claimant = claimant(&set)?;
        let claims = self.control.pods.claim(key, &claimant, pods::is_active);
        self.control.pods.reown(set.as_ref(), &claims).await?;
        let pods = claims.held();
        let hash = self.hash(&set, &claimant, &pods).await?;
        let nodes = self.nodes.list();
        let plan = plan(&set, &nodes, &pods, &hash, Timestamp::now());
        self.delete(&set, &plan.delete).await?;
        let nodes = plan.create.iter();
        let new: Vec<Pod> = nodes.map(|node| pod_of(&set, &hash, node)).collect();
        let made = self.control.create(set.as_ref(), &new).await;
        made.or_else(Failed::or_over)?;
        if changed(set.status.as_ref(), &plan.status) {
            let mut updated = DaemonSet::clone(&set);
            updated.status = Some(plan.status);
            Api::<DaemonSet>::namespaced(self.client.clone(), &key.namespace)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .or_gone()
                .doing(|| format!("update the status of DaemonSet {key}"))?;
        }
        Ok(Next::after(plan.recheck))
    }
}

/// Compares without regard to counts that are zero or left out.
fn changed(old: Option<&DaemonSetStatus>, new: &DaemonSetStatus) -> bool {
    let plain = |status: &DaemonSetStatus| {
        let mut plain = status.clone();
        for count in [
            &mut plain.number_available,
            &mut plain.number_unavailable,
            &mut plain.updated_number_scheduled,
        ] {
            *count = count.filter(|count| *count != 0);
        }
        plain
    };
    old.map(plain).unwrap_or_default() != plain(new)
}

impl Daemons {
    /// The hash of the present template, whose revision is made or renumbered if need be.
    async fn hash(
        &self,
        set: &DaemonSet,
        claimant: &Claimant,
        pods: &[Arc<Pod>],
    ) -> Result<String, Error> {
        let held = self.history.of(set, claimant).await?;
        let status = set.status.as_ref();
        let collisions = status.and_then(|status| status.collision_count);
        let present = revisions::present(set, &set.spec.template, collisions, &held);
        let hash = revisions::hash(present.revision()).cloned();
        let hash = hash.unwrap_or_default();
        self.history.keep(set, &present).await?;
        let in_use = |one: &ControllerRevision| {
            let of = revisions::hash(one);
            of == Some(&hash) || pods.iter().any(|pod| pod.labels().get(HASH_LABEL) == of)
        };
        let limit = set.spec.revision_history_limit;
        self.history.trim(set, &held, limit, in_use).await?;
        Ok(hash)
    }

    async fn delete(&self, set: &DaemonSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
        for pod in pods.iter().filter(|pod| pods::phase(pod) == "Failed") {
            let node = pods::node_name(pod).unwrap_or_default();
            let pod = Key::of(pod.as_ref());
            let text = format!("Found failed daemon pod {pod} on node {node}, will try to kill it");
            let events = &self.control.events;
            events.record(set, Level::Warning, "FailedDaemonPod", text);
        }
        let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
        let deleted = self.control.delete(set, &pods, Judged::State).await;
        deleted.or_else(Failed::or_over)
    }
}

/// A new pod for the node.
fn pod_of(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let mut pod = pods::pod_of(set, &set.spec.template);
    pod.labels_mut().insert(HASH_LABEL.into(), hash.into());
    let spec = pod.spec.get_or_insert_default();
    tolerate(spec);
    pin(spec, node);
    pod
}
