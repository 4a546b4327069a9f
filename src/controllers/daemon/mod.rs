//! DaemonSets: one pod on every node that is eligible. `plan.rs` decides.

mod plan;

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
        core::v1::{Node, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio_util::sync::CancellationToken;

use self::plan::{pin, plan, tolerate};
use super::{
    error::{Doing, Error, OrGone, already_exists, namespace_terminating},
    pods,
    replicas::slow_start,
    revisions::{self, HASH_LABEL, Present},
    shared::{Controller, Loop, Next},
    written::{PATIENCE, Written},
};
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 2;

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) {
    let sets: Informer<DaemonSet> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let nodes: Informer<Node> = informers.get();
    let revisions: Informer<ControllerRevision> = informers.get();
    let controller = Daemons {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "daemonset-controller"),
        sets: sets.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        revisions: revisions.clone(),
        written: Written::default(),
    };
    let all = sets.clone();
    Loop::new(controller, &sets)
        .watch(&pods, |pod| {
            pods::controller_named(pod, "apps", "DaemonSet")
                .map(|name| Key::new(pod.namespace().unwrap_or_default(), name))
                .into_iter()
                .collect()
        })
        .watch_changes(&nodes, same_place, move |_| {
            all.list().iter().map(|set| Key::of(set.as_ref())).collect()
        })
        .run(WORKERS, shutdown)
        .await;
}

/// True if nothing changed by which a node becomes eligible or ceases to be.
fn same_place(old: &Node, new: &Node) -> bool {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
}

struct Daemons {
    client: Client,
    events: Recorder,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    written: Written,
}

impl Controller for Daemons {
    const NAME: &'static str = "daemonset-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else {
            self.written.forget(key);
            return Ok(Next::Settled);
        };
        if pods::is_terminating(set.as_ref()) {
            return Ok(Next::Settled);
        }
        if !self.written.visible(key, &self.pods) {
            return Ok(Next::After(PATIENCE));
        }
        let uid = set.uid();
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| {
            pods::controller_of(pod.as_ref()).is_some_and(|owner| Some(&owner.uid) == uid.as_ref())
        });
        let hash = self.hash(key, &set, &pods).await?;
        let nodes = self.nodes.list();
        let plan = plan(&set, &nodes, &pods, &hash, Timestamp::now());
        for pod in &plan.delete {
            self.delete(key, &set, pod).await?;
        }
        self.create(key, &set, &hash, &plan.create).await?;
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
    async fn hash(&self, key: &Key, set: &DaemonSet, pods: &[Arc<Pod>]) -> Result<String, Error> {
        let uid = set.uid();
        let mut held = self.revisions.list_in(&key.namespace);
        held.retain(|one| {
            pods::controller_of(one.as_ref()).is_some_and(|owner| Some(&owner.uid) == uid.as_ref())
        });
        let collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let present = revisions::present(set, &set.spec.template, collisions, &held);
        let hash = present.revision().labels().get(HASH_LABEL).cloned();
        let hash = hash.unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        match &present {
            Present::Held(_) => {}
            Present::Renumbered(revision) => {
                api.replace(&revision.name_any(), &params, revision)
                    .await
                    .doing(|| format!("renumber a revision of DaemonSet {key}"))?;
            }
            Present::New(revision) => match api.create(&params, revision).await {
                Err(error) if already_exists(&error) || namespace_terminating(&error) => {}
                made => {
                    made.doing(|| format!("create a revision of DaemonSet {key}"))?;
                }
            },
        }
        let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let in_use = |one: &ControllerRevision| {
            let of = one.labels().get(HASH_LABEL);
            of == Some(&hash) || pods.iter().any(|pod| pod.labels().get(HASH_LABEL) == of)
        };
        for name in revisions::surplus(&held, limit, in_use) {
            api.delete(&name, &DeleteParams::default())
                .await
                .or_gone()
                .doing(|| format!("delete old revision {name} of DaemonSet {key}"))?;
        }
        Ok(hash)
    }

    async fn delete(&self, key: &Key, set: &DaemonSet, pod: &Pod) -> Result<(), Error> {
        let name = pod.name_any();
        if pods::phase(pod) == "Failed" {
            let node = pods::node_name(pod).unwrap_or_default();
            let text = format!(
                "Found failed daemon pod {}/{name} on node {node}, will try to kill it",
                key.namespace
            );
            self.events
                .record(set, Level::Warning, "FailedDaemonPod", text);
        }
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        api.delete(&name, &params)
            .await
            .or_gone()
            .doing(|| format!("delete pod {name} of DaemonSet {key}"))?;
        self.written.deleted(key, Key::of(pod));
        let text = format!("Deleted pod: {name}");
        self.events
            .record(set, Level::Normal, "SuccessfulDelete", text);
        Ok(())
    }

    async fn create(
        &self,
        key: &Key,
        set: &DaemonSet,
        hash: &str,
        nodes: &[String],
    ) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        let mut rest = nodes;
        for batch in slow_start(nodes.len()) {
            let (now, later) = rest.split_at(batch);
            rest = later;
            let made = join_all(now.iter().map(|node| {
                let mut pod = pods::pod_of(set, &set.spec.template);
                pod.labels_mut().insert(HASH_LABEL.into(), hash.into());
                let spec = pod.spec.get_or_insert_default();
                tolerate(spec);
                pin(spec, node);
                let (api, params) = (&api, &params);
                async move { api.create(params, &pod).await }
            }))
            .await;
            for result in made {
                match result {
                    Ok(pod) => {
                        self.written.wrote(key, &pod);
                        let text = format!("Created pod: {}", pod.name_any());
                        self.events
                            .record(set, Level::Normal, "SuccessfulCreate", text);
                    }
                    Err(error) if namespace_terminating(&error) => return Ok(()),
                    Err(error) => {
                        let text = format!("Error creating: {error}");
                        self.events
                            .record(set, Level::Warning, "FailedCreate", text);
                        return Err(error).doing(|| format!("create a pod of DaemonSet {key}"));
                    }
                }
            }
        }
        Ok(())
    }
}
