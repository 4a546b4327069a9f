//! Probes and hooks: asking a container how it is, or telling it something.
//!
//! Owns one task per probe of a running container. Called by the pod worker, which gets results
//! through a channel and decides; knows no pod status.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use tokio::sync::mpsc;

use crate::runtime::Runtime;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

/// A probe's verdict changed (thresholds are already applied), or a single run failed (`Warning`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub pod_uid: String,
    pub container: String,
    pub container_id: String,
    pub kind: Kind,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Failed as often as the threshold says.
    Failure {
        message: String,
    },
    /// One failed run, for an `Unhealthy` event.
    Warning {
        message: String,
    },
}

/// One running container to probe.
#[derive(Clone, Debug)]
pub struct Target {
    pub pod: Arc<Pod>,
    pub container: String,
    pub container_id: String,
    /// The pod's address (the node's with host network).
    pub address: Option<IpAddr>,
    pub started: std::time::SystemTime,
    /// The startup probe had succeeded before the daemon restarted.
    pub already_started: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Prober {}

impl Prober {
    pub fn new(_runtime: Runtime, _updates: mpsc::UnboundedSender<Update>) -> Self {
        Self {}
    }

    /// Probes this container from now on, by its spec in `target.pod`; an older one of the same pod
    /// and name is forgotten. Calling it again for the same container id changes nothing.
    pub fn start(&self, _target: Target) {}

    /// While a pod terminates only readiness is asked.
    pub fn terminating(&self, _pod_uid: &str) {}

    pub fn stop(&self, _pod_uid: &str) {}
}

/// Runs a lifecycle hook once. The error is what the event says.
pub async fn hook(
    _runtime: &Runtime,
    _target: &Target,
    _handler: &LifecycleHandler,
    _timeout: Duration,
) -> Result<(), String> {
    Err("hooks are not supported".into())
}
