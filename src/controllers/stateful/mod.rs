//! StatefulSets: pods with names and volumes that stay. `plan.rs` decides on pods, `claims.rs` on
//! the claims for their volumes; this file watches and applies.

mod claims;
mod plan;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
        core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;

use self::plan::{Action, Revision, Why, ordinal, plan};
use super::{
    dependents::{Claimant, Dependents, Failed, PodControl, Wording, owners_of},
    error::{Doing, Error, OrGone, already_exists, namespace_terminating},
    history::History,
    pace::Pace,
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

const WORKERS: usize = 5;
const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let sets: Informer<StatefulSet> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let revisions: Informer<ControllerRevision> = informers.get();
    let claims: Informer<PersistentVolumeClaim> = informers.get();
    let of_claim = {
        let sets = sets.clone();
        move |claim: &PersistentVolumeClaim| {
            let all = sets.list_in(&claim.namespace().unwrap_or_default());
            let theirs = all
                .iter()
                .filter(|set| claims::is_of(set, &claim.name_any()));
            theirs.map(|set| Key::of(set.as_ref())).collect()
        }
    };
    let controller = Sets {
        client: informers.client().clone(),
        sets: sets.clone(),
        claims: claims.clone(),
        control: PodControl {
            pods: Dependents::new(&informers),
            events: Recorder::start(informers.client().clone(), "statefulset-controller"),
            wording: Wording::StatefulSet,
        },
        history: History::new(&informers),
        pace: Pace::default(),
    };
    let (of_pod, of_revision) = (sets.clone(), sets.clone());
    Loop::new(controller, &sets)
        .watch(&pods, move |pod| {
            owners_of(pod, &of_pod, |set| claimant(set).ok())
        })
        .watch(&revisions, move |revision| {
            owners_of(revision, &of_revision, |set| claimant(set).ok())
        })
        .watch(&claims, of_claim)
        .run(WORKERS, shutdown)
        .await
}

fn claimant(set: &StatefulSet) -> Result<Claimant, Error> {
    Claimant::by_label(set, set.spec.selector.clone())
}

struct Sets {
    client: Client,
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    control: PodControl,
    history: History,
    pace: Pace,
}

impl Controller for Sets {
    const NAME: &'static str = "statefulset-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else {
            self.control.pods.forget(key);
            self.history.forget(key);
            self.pace.forget(key);
            return Ok(Next::Settled);
        };
        if pods::is_terminating(set.as_ref()) {
            return Ok(Next::Settled);
        }
        if !self.control.pods.visible(key) || !self.history.visible(key) {
            return Ok(Next::After(PATIENCE));
        }
        let claimant = claimant(&set)?;
        // An orphan of another name is nobody the set could have made.
        let adoptable =
            |pod: &Pod| pods::is_active(pod) && ordinal(&key.name, &pod.name_any()).is_some();
        let claims = self.control.pods.claim(key, &claimant, adoptable);
        self.control.pods.reown(set.as_ref(), &claims).await?;
        let held = claims.held();
        self.own_claims(key, &set, &held).await?;
        let revisions = self.revisions(&set, &claimant, &held).await?;
        let refs: Vec<&Pod> = held.iter().map(AsRef::as_ref).collect();
        let plan = plan(
            &set,
            &refs,
            &revisions.current.0,
            &revisions.update.0,
            Timestamp::now(),
        );
        let done = self
            .apply(key, &set, &held, &revisions, &plan.actions)
            .await;
        let wait = self.write_status(key, &set, plan.status).await?;
        done?;
        Ok(Next::after(plan.recheck).or_after(wait))
    }
}

/// The names and templates of the present and of the wanted revision.
struct Revisions {
    current: (String, PodTemplateSpec),
    update: (String, PodTemplateSpec),
}

impl Sets {
    /// Makes or renumbers the revision of the present template, and forgets old ones.
    async fn revisions(
        &self,
        set: &StatefulSet,
        claimant: &Claimant,
        pods: &[Arc<Pod>],
    ) -> Result<Revisions, Error> {
        let held = self.history.of(set, claimant).await?;
        let template = set.spec.clone().template;
        let status = set.status.clone().unwrap_or_default();
        let present = revisions::present(set, &template, status.collision_count, &held);
        let update = present.revision().name_any();
        self.history.keep(set, &present).await?;
        let named = status.current_revision.filter(|name| !name.is_empty());
        let current = named
            .and_then(|name| {
                let revision = held.iter().find(|one| one.name_any() == name)?;
                Some((name, template_of(revision)?))
            })
            .unwrap_or_else(|| (update.clone(), template.clone()));
        let in_use = |one: &ControllerRevision| {
            let name = one.name_any();
            let of = |pod: &Arc<Pod>| pod.labels().get(HASH_LABEL) == Some(&name);
            name == update || name == current.0 || pods.iter().any(of)
        };
        let limit = set.spec.revision_history_limit;
        self.history.trim(set, &held, limit, in_use).await?;
        Ok(Revisions {
            current,
            update: (update, template),
        })
    }

    async fn apply(
        &self,
        key: &Key,
        set: &StatefulSet,
        held: &[Arc<Pod>],
        revisions: &Revisions,
        actions: &[Action],
    ) -> Result<(), Error> {
        for action in actions {
            match action {
                Action::Create { ordinal, revision } => {
                    let revision = match revision {
                        Revision::Current => &revisions.current,
                        Revision::Update => &revisions.update,
                    };
                    self.create(key, set, *ordinal, revision).await?;
                }
                Action::Delete { pod, why } => {
                    if let Some(pod) = held.iter().find(|one| one.name_any() == *pod) {
                        self.delete(key, set, pod, *why).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        key: &Key,
        set: &StatefulSet,
        ordinal: i32,
        (revision, template): &(String, PodTemplateSpec),
    ) -> Result<(), Error> {
        let pod = new_pod(set, ordinal, revision, template);
        let name = pod.name_any();
        if !self.make_claims(key, set, &name).await? {
            return Ok(());
        }
        let made = self.control.create(set, &[pod]).await;
        made.or_else(Failed::or_over)
    }

    /// Makes the claims that a new pod is to have. False while an old one of the same name is being
    /// deleted: its end is awaited.
    async fn make_claims(&self, key: &Key, set: &StatefulSet, pod: &str) -> Result<bool, Error> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        for claim in claims::wanted(set, pod) {
            let name = claim.name_any();
            match self.claims.get(&Key::of(&claim)) {
                Some(held) if pods::is_terminating(held.as_ref()) => {
                    let text =
                        format!("Claim {name} of Pod {pod} is being deleted: waiting for its end");
                    self.control
                        .events
                        .record(set, Level::Warning, "FailedCreate", text);
                    return Ok(false);
                }
                Some(_) => continue,
                None => {}
            }
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let text = format!(
                        "create Claim {name} Pod {pod} in StatefulSet {} success",
                        key.name
                    );
                    self.control
                        .events
                        .record(set, Level::Normal, "SuccessfulCreate", text);
                }
                Err(error) if already_exists(&error) || namespace_terminating(&error) => {}
                Err(error) => {
                    let text = format!("create Claim {name} of Pod {pod} failed error: {error}");
                    self.control
                        .events
                        .record(set, Level::Warning, "FailedCreate", text);
                    return Err(error)
                        .doing(|| format!("create claim {name} of StatefulSet {key}"));
                }
            }
        }
        Ok(true)
    }

    /// Gives the claims of the pods there are the owners that the retention policy wants.
    async fn own_claims(
        &self,
        key: &Key,
        set: &StatefulSet,
        held: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        for pod in held {
            for claim in claims::wanted(set, &pod.name_any()) {
                let Some(there) = self.claims.get(&Key::of(&claim)) else {
                    continue;
                };
                if let Some(claim) = claims::reowned(set, &there, pod) {
                    let name = claim.name_any();
                    api.replace(&name, &PostParams::default(), &claim)
                        .await
                        .or_gone()
                        .doing(|| format!("update the owners of claim {name}"))?;
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, set: &StatefulSet, pod: &Pod, why: Why) -> Result<(), Error> {
        if why == Why::Ended {
            let name = pod.name_any();
            let text = format!("StatefulSet {key} is recreating failed Pod {name}");
            let events = &self.control.events;
            events.record(set, Level::Warning, "RecreatingFailedPod", text);
        }
        let deleted = self.control.delete(set, &[pod], Judged::State).await;
        deleted.or_else(Failed::or_over)
    }

    /// How long it must wait, if it cannot be written now.
    async fn write_status(
        &self,
        key: &Key,
        set: &StatefulSet,
        status: StatefulSetStatus,
    ) -> Result<Option<Duration>, Error> {
        if !changed(set.status.as_ref(), &status) {
            return Ok(None);
        }
        if let Some(wait) = self.pace.take(key) {
            return Ok(Some(wait));
        }
        let mut updated = set.clone();
        updated.status = Some(status);
        Api::<StatefulSet>::namespaced(self.client.clone(), &key.namespace)
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
            .or_gone()
            .doing(|| format!("update the status of StatefulSet {key}"))?;
        Ok(None)
    }
}

/// Compares without regard to counts that are zero or left out.
fn changed(old: Option<&StatefulSetStatus>, new: &StatefulSetStatus) -> bool {
    let plain = |status: &StatefulSetStatus| {
        let mut plain = status.clone();
        for count in [
            &mut plain.ready_replicas,
            &mut plain.available_replicas,
            &mut plain.current_replicas,
            &mut plain.updated_replicas,
            &mut plain.collision_count,
        ] {
            *count = count.filter(|count| *count != 0);
        }
        plain
    };
    old.map(plain).unwrap_or_default() != plain(new)
}

/// The template that a revision holds.
fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn new_pod(set: &StatefulSet, ordinal: i32, revision: &str, template: &PodTemplateSpec) -> Pod {
    let name = format!("{}-{ordinal}", set.name_any());
    let mut pod = pods::pod_of(set, template);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.labels_mut();
    labels.insert(HASH_LABEL.into(), revision.into());
    labels.insert(NAME_LABEL.into(), name.clone());
    labels.insert(INDEX_LABEL.into(), ordinal.to_string());
    let spec = pod.spec.get_or_insert_default();
    claims::mount(set, &name, spec);
    spec.hostname = Some(name);
    spec.subdomain = set.spec.service_name.clone();
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_have_an_identity() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "w", "namespace": "n", "uid": "u"},
            "spec": {"serviceName": "s", "selector": {}, "template": {}},
        }))
        .expect("a StatefulSet");
        let template = set.spec.clone().template;
        let pod = new_pod(&set, 2, "w-abc", &template);
        let spec = pod.spec.clone().unwrap_or_default();
        assert_eq!(pod.name_any(), "w-2");
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("w-2"), Some("s"))
        );
        assert_eq!(pod.labels()[HASH_LABEL], "w-abc");
        assert_eq!(pod.labels()[INDEX_LABEL], "2");
        let revision: ControllerRevision = serde_json::from_value(json!({
            "metadata": {}, "revision": 1,
            "data": {"spec": {"template": {"$patch": "replace", "metadata": {"labels": {"a": "b"}}}}},
        }))
        .expect("a revision");
        let labels = template_of(&revision)
            .and_then(|one| one.metadata)
            .and_then(|one| one.labels);
        assert_eq!(labels.unwrap_or_default()["a"], "b");
    }
}
