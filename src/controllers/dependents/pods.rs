//! Pods made and deleted for an owner, and the events that tell of it.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, core::response::StatusSummary};

use super::{Dependents, Object};
use crate::{
    controllers::error::{Error, conflict, namespace_terminating},
    deletion::Judged,
    events::{Level, Recorder},
    informer::Key,
};

/// How the events are worded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    Plain,
    /// Of pods that have names of their own.
    StatefulSet,
}

impl Wording {
    fn created(self, owner: &str, pod: &str) -> String {
        match self {
            Self::Plain => format!("Created pod: {pod}"),
            Self::StatefulSet => format!("create Pod {pod} in StatefulSet {owner} successful"),
        }
    }

    fn not_created(self, owner: &str, pod: &str, why: &str) -> String {
        match self {
            Self::Plain => format!("Error creating: {why}"),
            Self::StatefulSet => {
                format!("create Pod {pod} in StatefulSet {owner} failed error: {why}")
            }
        }
    }

    fn deleted(self, owner: &str, pod: &str) -> String {
        match self {
            Self::Plain => format!("Deleted pod: {pod}"),
            Self::StatefulSet => format!("delete Pod {pod} in StatefulSet {owner} successful"),
        }
    }

    fn not_deleted(self, owner: &str, pod: &str, why: &str) -> String {
        match self {
            Self::Plain => format!("Error deleting: {why}"),
            Self::StatefulSet => {
                format!("delete Pod {pod} in StatefulSet {owner} failed error: {why}")
            }
        }
    }
}

/// Why pods could not be made or deleted, for a status to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// A failed step: what a status can say, and what is tried again: nothing in a namespace that ends.
#[derive(Debug)]
pub struct Failed {
    pub failure: Failure,
    pub error: Option<Error>,
}

impl Failed {
    /// Somebody wrote first.
    pub fn is_conflict(&self) -> bool {
        self.error.as_ref().is_some_and(Error::is_conflict)
    }

    /// For who has no status to say it.
    pub fn or_over(self) -> Result<(), Error> {
        self.error.map_or(Ok(()), Err)
    }
}

/// The pods of one controller's objects.
pub struct PodControl {
    pub pods: Dependents<Pod>,
    pub events: Recorder,
    pub wording: Wording,
}

impl PodControl {
    /// Makes the pods, in batches that grow: a failure in one stops the rest, so that a quota that
    /// refuses is asked once and not five hundred times.
    pub async fn create<K: Object>(&self, owner: &K, pods: &[Pod]) -> Result<(), Failed> {
        let key = Key::of(owner);
        let mut rest = pods;
        for batch in slow_start(pods.len()) {
            let (now, later) = rest.split_at(batch);
            rest = later;
            let made = join_all(now.iter().map(|pod| self.pods.create(&key, pod))).await;
            let mut failed = None;
            for (pod, made) in now.iter().zip(made) {
                match made {
                    Ok(pod) => {
                        let text = self.wording.created(&key.name, &pod.name_any());
                        self.events
                            .record(owner, Level::Normal, "SuccessfulCreate", text);
                    }
                    Err(error) => failed = Some((pod, error)),
                }
            }
            if let Some((pod, error)) = failed {
                return Err(self.not_created(owner, pod, error));
            }
        }
        Ok(())
    }

    fn not_created<K: Object>(&self, owner: &K, pod: &Pod, error: kube::Error) -> Failed {
        const REASON: &str = "FailedCreate";
        let key = Key::of(owner);
        let message = message_of(&error);
        let over = namespace_terminating(&error);
        if !over {
            let text = self
                .wording
                .not_created(&key.name, &pod.name_any(), &message);
            self.events.record(owner, Level::Warning, REASON, text);
        }
        Failed {
            failure: Failure {
                reason: REASON,
                message,
            },
            error: (!over).then(|| Error::Api {
                doing: format!("create a pod of {} {key}", K::kind(&())),
                source: Box::new(error),
            }),
        }
    }

    /// Deletes all the pods, also when one of them cannot be. One that is not any more what was
    /// judged (it may be somebody else's now) is an error that nobody is told of.
    pub async fn delete<K: Object>(
        &self,
        owner: &K,
        pods: &[&Pod],
        judged: Judged,
    ) -> Result<(), Failed> {
        const REASON: &str = "FailedDelete";
        let key = Key::of(owner);
        let each = pods.iter().map(|pod| self.pods.delete(&key, pod, judged));
        let deleted = join_all(each).await;
        let mut failed = None;
        for (pod, deleted) in pods.iter().zip(deleted) {
            let name = pod.name_any();
            match deleted {
                Ok(false) => {}
                Ok(true) => {
                    let text = self.wording.deleted(&key.name, &name);
                    self.events
                        .record(owner, Level::Normal, "SuccessfulDelete", text);
                }
                Err(error) => {
                    let message = message_of(&error);
                    if !conflict(&error) {
                        let text = self.wording.not_deleted(&key.name, &name, &message);
                        self.events.record(owner, Level::Warning, REASON, text);
                    }
                    failed = Some(Failed {
                        failure: Failure {
                            reason: REASON,
                            message,
                        },
                        error: Some(Error::Api {
                            doing: format!("delete pod {name} of {} {key}", K::kind(&())),
                            source: Box::new(error),
                        }),
                    });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Sizes of the batches in which `count` pods are made.
fn slow_start(count: usize) -> impl Iterator<Item = usize> {
    let mut left = count;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = left.min(size);
        left -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

/// The server's own words if it answered at all.
fn message_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.status == Some(StatusSummary::Failure) => {
            status.message.clone()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_double() {
        // Source: slow-start of the ReplicaSet controller.
        for (count, want) in [(0, vec![]), (1, vec![1]), (20, vec![1, 2, 4, 8, 5])] {
            assert_eq!(slow_start(count).collect::<Vec<_>>(), want);
        }
    }
}
