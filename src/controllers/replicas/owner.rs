//! What a ReplicaSet and a ReplicationController have in common.

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{
            PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
            ReplicationControllerStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
    jiff::Timestamp,
};
use kube::Resource;

use super::plan::{Counts, Wanted};
use crate::controllers::{
    dependents::{Claimant, Failure, Object},
    error::Error,
    pods,
};

/// A kind that keeps a number of pods of one template.
pub trait Owner: Object {
    const CONTROLLER: &'static str;

    fn claimant(&self) -> Result<Claimant, Error>;
    fn wanted(&self) -> Wanted;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The object with its new status, or `None` if nothing changed.
    fn with_status(&self, counts: Counts, failure: Option<&Failure>) -> Option<Self>;
}

impl Owner for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn claimant(&self) -> Result<Claimant, Error> {
        Claimant::by_label(self, self.spec.selector.clone())
    }

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone();
        wanted(self, spec.replicas, spec.min_ready_seconds, spec.template)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.template.as_ref()
    }

    fn with_status(&self, counts: Counts, failure: Option<&Failure>) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let held = old.conditions.iter().flatten();
        let held_failure = held
            .clone()
            .find(|one| one.type_.as_deref() == Some(FAILURE));
        let mut conditions: Vec<_> = held
            .filter(|one| one.type_.as_deref() != Some(FAILURE))
            .cloned()
            .collect();
        if let Some(failure) = failure {
            conditions.push(match held_failure {
                Some(same) if same.reason.as_deref() == Some(failure.reason) => same.clone(),
                _ => ReplicaSetCondition {
                    type_: Some(FAILURE.into()),
                    status: Some("True".into()),
                    reason: Some(failure.reason.into()),
                    message: Some(failure.message.clone()),
                    last_transition_time: Some(Time(Timestamp::now())),
                },
            });
        }
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        let same = status.replicas == old.replicas
            && same(status.fully_labeled_replicas, old.fully_labeled_replicas)
            && same(status.ready_replicas, old.ready_replicas)
            && same(status.available_replicas, old.available_replicas)
            && same(status.terminating_replicas, old.terminating_replicas)
            && status.observed_generation == old.observed_generation
            && status.conditions.as_deref().unwrap_or_default()
                == old.conditions.as_deref().unwrap_or_default();
        (!same).then(|| Self {
            status: Some(status),
            ..self.clone()
        })
    }
}

impl Owner for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn claimant(&self) -> Result<Claimant, Error> {
        let selector = LabelSelector {
            match_labels: self.spec.as_ref().and_then(|spec| spec.selector.clone()),
            match_expressions: None,
        };
        Claimant::by_label(self, selector)
    }

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone().unwrap_or_default();
        wanted(self, spec.replicas, spec.min_ready_seconds, spec.template)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn with_status(&self, counts: Counts, failure: Option<&Failure>) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let held = old.conditions.iter().flatten();
        let held_failure = held.clone().find(|one| one.type_ == FAILURE);
        let mut conditions: Vec<_> = held.filter(|one| one.type_ != FAILURE).cloned().collect();
        if let Some(failure) = failure {
            conditions.push(match held_failure {
                Some(same) if same.reason.as_deref() == Some(failure.reason) => same.clone(),
                _ => ReplicationControllerCondition {
                    type_: FAILURE.into(),
                    status: "True".into(),
                    reason: Some(failure.reason.into()),
                    message: Some(failure.message.clone()),
                    last_transition_time: Some(Time(Timestamp::now())),
                },
            });
        }
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        let same = status.replicas == old.replicas
            && same(status.fully_labeled_replicas, old.fully_labeled_replicas)
            && same(status.ready_replicas, old.ready_replicas)
            && same(status.available_replicas, old.available_replicas)
            && status.observed_generation == old.observed_generation
            && status.conditions.as_deref().unwrap_or_default()
                == old.conditions.as_deref().unwrap_or_default();
        (!same).then(|| Self {
            status: Some(status),
            ..self.clone()
        })
    }
}

const FAILURE: &str = "ReplicaFailure";

/// A count left out means zero.
fn same(new: Option<i32>, old: Option<i32>) -> bool {
    new.unwrap_or(0) == old.unwrap_or(0)
}

fn wanted<K: Resource>(
    owner: &K,
    replicas: Option<i32>,
    min_ready_seconds: Option<i32>,
    template: Option<PodTemplateSpec>,
) -> Wanted {
    Wanted {
        replicas: usize::try_from(replicas.unwrap_or(1)).unwrap_or(0),
        template_labels: template
            .and_then(|template| template.metadata)
            .and_then(|metadata| metadata.labels)
            .unwrap_or_default(),
        min_ready_seconds: min_ready_seconds.unwrap_or(0),
        terminating: pods::is_terminating(owner),
    }
}
