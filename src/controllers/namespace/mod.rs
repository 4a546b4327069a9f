//! Deletes what is in a terminating namespace, then lets the namespace go.
//!
//! Always true: pods go first, and nothing else is touched before they are gone; the finalizer is
//! removed only after a pass that found every kind empty, so that a group that cannot be asked
//! holds the namespace back rather than being skipped.

mod conditions;

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta, PostParams},
    discovery::verbs,
};
use tokio_util::sync::CancellationToken;

use self::conditions::{Findings, conditions};
use super::{
    error::{Doing, Error, OrGone},
    pods,
    served::{self, Kind},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 10;
const FINALIZER: &str = "kubernetes";
/// Content whose end no event tells is looked for again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let namespaces: Informer<Namespace> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let controller = Namespaces {
        client: informers.client().clone(),
        namespaces: namespaces.clone(),
    };
    let all = namespaces.clone();
    Loop::new(controller, &namespaces)
        .watch(&pods, move |pod| {
            let key = Key::new("", pod.namespace().unwrap_or_default());
            let ends = pods::is_terminating(pod)
                && all
                    .get(&key)
                    .is_some_and(|namespace| pods::is_terminating(namespace.as_ref()));
            ends.then_some(key).into_iter().collect()
        })
        .run(WORKERS, shutdown)
        .await
}

struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(key) else {
            return Ok(Next::Settled);
        };
        let held = namespace
            .spec
            .as_ref()
            .and_then(|spec| spec.finalizers.as_deref())
            .unwrap_or_default();
        if !pods::is_terminating(namespace.as_ref()) || !held.iter().any(|one| one == FINALIZER) {
            return Ok(Next::Settled);
        }
        let findings = self.empty(&key.name).await;
        if findings.is_empty() {
            self.finalize(&namespace).await?;
            return Ok(Next::Settled);
        }
        self.tell(&namespace, &findings).await?;
        Ok(Next::After(AGAIN))
    }
}

impl Namespaces {
    /// One pass over everything in the namespace.
    async fn empty(&self, namespace: &str) -> Findings {
        let mut findings = Findings::default();
        let served = match served::discover(&self.client).await {
            Ok(served) => served,
            Err(error) => {
                findings.discovery_failure = Some(format!("Discovery failed: {error}"));
                return findings;
            }
        };
        // What is known goes; the namespace stays until the rest can be asked.
        let failure = served.failure();
        let mut kinds = served.kinds;
        kinds.retain(|kind| {
            kind.namespaced && kind.supports(verbs::DELETE) && kind.supports(verbs::LIST)
        });
        let is_pods =
            |kind: &Kind| kind.resource.group.is_empty() && kind.resource.plural == "pods";
        kinds.sort_by_key(|kind| !is_pods(kind));
        for kind in kinds {
            let failed = self.delete_all(namespace, &kind, &mut findings).await;
            if let Err(error) = failed {
                let plural = &kind.resource.plural;
                findings.failures.push(format!("{plural}: {error}"));
            }
            if is_pods(&kind) && !findings.is_empty() {
                break;
            }
        }
        findings.discovery_failure = failure;
        findings
    }

    async fn delete_all(
        &self,
        namespace: &str,
        kind: &Kind,
        findings: &mut Findings,
    ) -> Result<(), kube::Error> {
        let resource = &kind.resource;
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.client.clone(), namespace, resource);
        let objects: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, resource);
        let everything = ListParams::default();
        let mut left = api.list(&everything).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        let background = DeleteParams::background();
        if kind.supports(verbs::DELETE_COLLECTION) {
            objects
                .delete_collection(&background, &everything)
                .await
                .or_gone()?;
        } else {
            for object in &left {
                let params = Judged::Identity.params(&object.metadata, background.clone());
                objects
                    .delete(&object.name_any(), &params)
                    .await
                    .or_gone()?;
            }
        }
        left = api.list(&everything).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        let name = match resource.group.as_str() {
            "" => resource.plural.clone(),
            group => format!("{}.{group}", resource.plural),
        };
        findings.remaining.insert(name, left.len());
        for finalizer in left.iter().flat_map(|object| object.finalizers()) {
            *findings.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    async fn tell(&self, namespace: &Namespace, findings: &Findings) -> Result<(), Error> {
        let name = namespace.name_any();
        let mut updated = namespace.clone();
        let status = updated.status.get_or_insert_default();
        let old = status.conditions.take().unwrap_or_default();
        let new = conditions(findings, &old, Timestamp::now());
        if new == old {
            return Ok(());
        }
        status.conditions = Some(new);
        Api::<Namespace>::all(self.client.clone())
            .replace_status(&name, &PostParams::default(), &updated)
            .await
            .or_gone()
            .doing(|| format!("tell how the deletion of namespace {name} goes"))?;
        Ok(())
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), Error> {
        let name = namespace.name_any();
        let mut updated = namespace.clone();
        if let Some(finalizers) = updated
            .spec
            .as_mut()
            .and_then(|spec| spec.finalizers.as_mut())
        {
            finalizers.retain(|one| one != FINALIZER);
        }
        let _: Option<Namespace> = Api::<Namespace>::all(self.client.clone())
            .replace_subresource("finalize", &name, &PostParams::default(), &updated)
            .await
            .or_gone()
            .doing(|| format!("finalize namespace {name}"))?;
        Ok(())
    }
}
