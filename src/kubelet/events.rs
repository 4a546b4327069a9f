//! Events about this node's pods and their containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Client, Resource};

use super::pod::Member;
pub use crate::events::Level;
use crate::events::Source;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(crate::events::Recorder);

impl Recorder {
    /// Writes events until all clones are gone.
    pub fn start(client: Client, node: String) -> Self {
        let source = Source {
            component: "kubelet",
            host: Some(node),
        };
        Self(crate::events::Recorder::start(client, source))
    }

    pub fn pod(&self, pod: &Pod, level: Level, reason: &'static str, message: impl Into<String>) {
        self.0.record(pod, level, reason, message);
    }

    /// As [`Recorder::pod`], with more for programs to read.
    pub fn annotated(
        &self,
        pod: &Pod,
        level: Level,
        reason: &'static str,
        message: &str,
        annotations: BTreeMap<String, String>,
    ) {
        let about = pod.object_ref(&());
        self.0
            .record_annotated(about, level, reason, message, annotations);
    }

    /// About something else: the node.
    pub fn about(
        &self,
        object: ObjectReference,
        level: Level,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.0.record_ref(object, level, reason, message);
    }

    /// About one container of the pod.
    pub fn container(
        &self,
        pod: &Pod,
        member: &Member<'_>,
        level: Level,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let about = ObjectReference {
            field_path: Some(member.field_path()),
            ..pod.object_ref(&())
        };
        self.0.record_ref(about, level, reason, message);
    }
}
