//! What is around a pod's containers: volumes, namespaces, address. Making it and giving it back.

use std::{net::IpAddr, os::fd::AsFd, time::Duration};

use k8s_openapi::api::{core::v1::Pod, node::v1::RuntimeClass};
use kube::{Api, ResourceExt};

use super::Context;
use crate::{
    backoff::Backoff,
    causes::causes,
    kubelet::{
        container,
        events::Level,
        network, pod,
        volumes::{self, PodVolumes},
    },
    runtime,
};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why a sandbox could not be made.
#[derive(Debug)]
pub enum Failure {
    /// The node will never run this pod.
    Rejected(container::Refused),
    Volumes(volumes::Error),
    /// There is no network for pods on this node yet.
    NoNetwork(String),
    Sandbox(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Sandbox(message)
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::Sandbox(message.to_owned())
    }
}

impl Failure {
    /// The event's reason and message.
    pub fn told(&self) -> (&'static str, String) {
        match self {
            Self::Rejected(refused) => (refused.reason, refused.message.clone()),
            Self::Volumes(error) => ("FailedMount", causes(error)),
            Self::NoNetwork(why) => ("NetworkNotReady", format!("network is not ready: {why}")),
            Self::Sandbox(message) => (
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {message}"),
            ),
        }
    }
}

/// Makes what is missing of volumes, namespaces and address, and returns the pod's addresses.
pub async fn make(
    context: &Context,
    volumes: &PodVolumes,
    pod: &Pod,
) -> Result<Vec<IpAddr>, Failure> {
    let config =
        container::pod_config(pod, &context.facts).map_err(|refused| match refused.reason {
            "CreatePodSandboxError" => Failure::Sandbox(refused.message),
            _ => Failure::Rejected(refused),
        })?;
    let (made, addresses) = tokio::join!(volumes.set_up(), namespaces(context, pod, config));
    for message in made.map_err(Failure::Volumes)? {
        let events = &context.events;
        events.pod(pod, Level::Warning, "AlreadyMountedVolume", message);
    }
    addresses
}

async fn namespaces(
    context: &Context,
    pod: &Pod,
    config: runtime::PodConfig,
) -> Result<Vec<IpAddr>, Failure> {
    let identity = config.identity.clone();
    let uid = identity.uid.clone();
    let state = context.runtime.pod(&uid).await;
    let alive = state.as_ref().is_some_and(|state| state.alive);
    if state.is_some() && !alive {
        remove(context, &uid).await?;
    }
    if !alive {
        check_handler(context, pod).await?;
        let made = context.runtime.create_pod(config).await;
        made.map_err(|error| causes(&error))?;
    }
    let bandwidth = network::Bandwidth::of(pod)?;
    if pod::host_network(pod) {
        if bandwidth.is_limited() {
            let message = "Bandwidth shaping is not currently supported on the host network";
            let events = &context.events;
            events.pod(
                pod,
                Level::Warning,
                "HostNetworkNotSupported",
                message.to_owned(),
            );
        }
        return Ok(context.config.addresses.clone());
    }
    let netns = context.runtime.netns(&uid).await;
    let netns = netns
        .map_err(|error| causes(&error))?
        .ok_or("the pod has no network namespace of its own")?;
    let forwards = network::forwards(pod);
    let request = network::PodRequest {
        identity: &identity,
        forwards: &forwards,
        bandwidth,
    };
    let attached = context.network.attach(&request, netns.as_fd()).await;
    let attached = attached.map_err(|error| match error.is_no_network() {
        true => Failure::NoNetwork(causes(&error)),
        false => Failure::Sandbox(causes(&error)),
    })?;
    for unmet in attached.unmet {
        let (reason, message) = unmet.told();
        context.events.pod(pod, Level::Warning, reason, message);
    }
    let addresses: Vec<IpAddr> = attached.addresses.iter().copied().collect();
    let admitted = context.policies.admit(pod, &addresses).await;
    admitted.map_err(|error| causes(&error))?;
    open_ports(context, &uid, forwards).await?;
    Ok(addresses)
}

/// A pod that asks to be isolated by other means than ours must not run without them.
async fn check_handler(context: &Context, pod: &Pod) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let class = spec.and_then(|spec| spec.runtime_class_name.as_deref());
    let Some(name) = class.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let classes: Api<RuntimeClass> = Api::all(context.client.clone());
    let found = classes.get_opt(name).await;
    let found = found.map_err(|error| format!("failed to get RuntimeClass {name:?}: {error}"))?;
    let class = found.ok_or_else(|| {
        format!("failed to get RuntimeClass {name:?}: runtimeclass.node.k8s.io {name:?} not found")
    })?;
    match class.handler.as_str() {
        "" | container::NATIVE_HANDLER => Ok(()),
        other => Err(format!(
            "failed to get sandbox runtime: no runtime for {other:?} is configured"
        )),
    }
}

/// Leads the ports of the node that the pod asks for to it.
async fn open_ports(
    context: &Context,
    uid: &str,
    forwards: Vec<network::Forward>,
) -> Result<(), String> {
    if forwards.is_empty() {
        return Ok(());
    }
    let opened = context.network.forward(uid, forwards).await;
    opened.map_err(|error| causes(&error))
}

/// Removes processes, namespaces and address; what is gone is fine.
async fn remove(context: &Context, uid: &str) -> Result<(), String> {
    match context.runtime.remove_pod(uid).await {
        Ok(()) | Err(runtime::Error::NoPod(_)) => {}
        Err(error) => return Err(causes(&error)),
    }
    let detached = context.network.detach(uid).await;
    detached.map_err(|error| causes(&error))?;
    context.policies.forget(uid);
    Ok(())
}

/// Gives back everything of a pod whose containers have ended. Tries until it works: an object
/// must not go before what it stands for.
pub async fn release(context: &Context, pod: &Pod) {
    let uid = pod.uid().unwrap_or_default();
    let mut retry = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let error = match release_uid(context, &uid).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let message = format!("error killing pod: {error}");
        tracing::warn!(pod = pod.name_any(), message, "will retry");
        let level = crate::kubelet::events::Level::Warning;
        context.events.pod(pod, level, "FailedKillPod", message);
        tokio::time::sleep(retry.next_wait()).await;
    }
}

/// Once, for pods of which nothing but the UID is known too.
pub async fn release_uid(context: &Context, uid: &str) -> Result<(), String> {
    remove(context, uid).await?;
    let released = context.volumes.of_pod(uid).release().await;
    released.map_err(|error| causes(&error))
}
