//! From the names in a path to a pod, as the API knows it, and its containers, as the runtime does.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Server, answer::Answer};
use crate::runtime::{Phase, PodState};

/// What a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    /// Refuses another pod of the same name.
    pub uid: Option<String>,
    /// Empty where the whole pod is meant.
    pub container: String,
}

/// A pod of this node.
pub struct Found {
    pub pod: Arc<Pod>,
    /// As the runtime knows it.
    pub uid: String,
    /// `None`: nothing of it was started, or all is removed again.
    pub state: Option<PodState>,
}

impl Server {
    pub(super) async fn find(&self, target: &Target) -> Result<Found, Answer> {
        let missing = || Answer::not_found(format!("pod {:?} does not exist", target.pod));
        let found = match &target.uid {
            Some(uid) => self.pods.pod_by_uid(uid),
            None => self.pods.pod(&target.namespace, &target.pod),
        };
        let named = |pod: &Arc<Pod>| {
            pod.metadata.name.as_ref() == Some(&target.pod)
                && pod.metadata.namespace.as_ref() == Some(&target.namespace)
        };
        let pod = found.filter(named).ok_or_else(missing)?;
        // Never by an annotation, which whoever may write pods chooses.
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let state = self.runtime.pod(&uid).await;
        Ok(Found { pod, uid, state })
    }
}

impl Found {
    /// The id of the container's running attempt.
    pub fn running(&self, container: &str) -> Result<String, Answer> {
        let containers = self.state.iter().flat_map(|state| &state.containers);
        containers
            .filter(|one| one.name == container && matches!(one.phase, Phase::Running { .. }))
            .max_by_key(|one| one.attempt)
            .map(|one| one.id.clone())
            .ok_or_else(|| Answer::internal(format!("container not found ({container:?})")))
    }

    /// The runtime's UID of a pod that has its namespaces.
    pub fn alive(&self) -> Result<String, Answer> {
        match &self.state {
            Some(state) if state.alive => Ok(self.uid.clone()),
            _ => Err(Answer::internal(
                "unable to do port forwarding: pod is not running",
            )),
        }
    }

    /// Whether the pod's spec has such a container, of whichever kind.
    pub fn has_container(&self, container: &str) -> bool {
        let Some(spec) = &self.pod.spec else {
            return false;
        };
        let named = |list: &[Container]| list.iter().any(|one| one.name == container);
        let ephemeral = spec.ephemeral_containers.as_deref().unwrap_or_default();
        named(&spec.containers)
            || named(spec.init_containers.as_deref().unwrap_or_default())
            || ephemeral.iter().any(|one| one.name == container)
    }
}
