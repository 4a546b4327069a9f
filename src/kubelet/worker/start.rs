//! From a pod's spec to a running container.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP};
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::{
    causes::causes,
    kubelet::{
        container::{self, Environment, Inputs, Refused},
        events::Level,
        images, logs,
        network::env::{Links, service_env},
        pod::{self, Member, record::Carried},
        volumes::{self, PodVolumes},
    },
    runtime::{self, Identity, image::Image},
    supervision::steps::{Step, reached},
};

/// A container that cannot be made as asked for is tried again after this long.
const RETRY: Duration = Duration::from_secs(10);
/// Services should be known before the first container starts, but it does not wait forever.
const SERVICES_WITHIN: Duration = Duration::from_secs(10);

/// Which container, and for which time.
pub struct Order {
    pub pod: Arc<Pod>,
    pub container: String,
    pub attempt: u32,
    pub delay: Duration,
    pub pod_ips: Vec<IpAddr>,
    pub volumes: PodVolumes,
    /// The pod ends: nothing more needs to start.
    pub ending: CancellationToken,
}

impl Order {
    /// The container's image, as the spec names it.
    pub fn image(&self) -> String {
        let member = pod::member(&self.pod, &self.container);
        let image = member.and_then(|member| member.spec.image.clone());
        image.unwrap_or_default()
    }
}

/// Why a container does not run.
#[derive(Debug)]
pub enum Failure {
    /// It was made, but its program could not be run; the runtime has its record.
    Ran(String),
    /// There is no container; try again later.
    Setback {
        reason: &'static str,
        message: String,
        after: Duration,
    },
    /// The pod ends.
    Ending,
}

impl From<images::Failure> for Failure {
    fn from(failure: images::Failure) -> Self {
        Self::Setback {
            reason: failure.reason,
            message: failure.message,
            after: failure.after,
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        setback(refused.reason, refused.message)
    }
}

fn setback(reason: &'static str, message: String) -> Failure {
    Failure::Setback {
        reason,
        message,
        after: RETRY,
    }
}

/// Starts it and returns its id.
pub async fn start(context: &Context, order: &Order) -> Result<String, Failure> {
    let Some(member) = pod::member(&order.pod, &order.container) else {
        return Err(Failure::Ending); // it went from the spec
    };
    if order.attempt == 0 {
        for message in pod::unsupported(&order.pod, &member) {
            let events = &context.events;
            events.container(&order.pod, &member, Level::Warning, "Unsupported", message);
        }
    }
    let image = tokio::select! {
        image = context.puller.ensure(&order.pod, &member) => image?,
        () = order.ending.cancelled() => return Err(Failure::Ending),
    };
    reached(Step::ImageHeld);
    let started = run(context, order, &member, image.image()).await;
    let (events, pod) = (&context.events, &order.pod);
    match &started {
        Ok(_) => {
            let message = format!("Started container {}", member.name());
            events.container(pod, &member, Level::Normal, "Started", message);
        }
        Err(Failure::Ran(message) | Failure::Setback { message, .. }) => {
            let message = format!("Error: {message}");
            events.container(pod, &member, Level::Warning, "Failed", message);
        }
        Err(Failure::Ending) => {}
    }
    started
}

async fn run(
    context: &Context,
    order: &Order,
    member: &Member<'_>,
    image: &Image,
) -> Result<String, Failure> {
    let pod = with_addresses(&order.pod, &order.pod_ips, &context.config.addresses);
    let environment = environment(context, order, &pod, member).await?;
    if !environment.skipped.is_empty() {
        let message = format!(
            "Keys [{}] from the EnvFrom sources were skipped since they are considered invalid environment variable names.",
            environment.skipped.join(", ")
        );
        let reason = "InvalidEnvironmentVariableNames";
        let events = &context.events;
        events.container(&order.pod, member, Level::Warning, reason, message);
    }
    let identity = identity(&pod);
    let name = member.name();
    let log_path = logs::path(&context.config.log_dir, &identity, name, order.attempt);
    let log_dir = &context.config.log_dir;
    let (mounts, log_folder) = tokio::join!(
        order.volumes.mounts(
            &pod,
            &order.pod_ips,
            &member.spec,
            order.attempt,
            &environment,
        ),
        logs::make_folder(log_dir, &identity, &log_path),
    );
    let mut mounts = mounts.map_err(|error| match error {
        volumes::Error::Container(message) => setback("CreateContainerConfigError", message),
        error => setback("CreateContainerError", causes(&error)),
    })?;
    for message in std::mem::take(&mut mounts.resolver_limits) {
        let events = &context.events;
        events.pod(&order.pod, Level::Warning, "DNSConfigForming", message);
    }
    log_folder.map_err(|error| {
        let message = format!("make a folder for {}: {error}", log_path.display());
        setback("CreateContainerError", message)
    })?;
    let mut config = container::container_config(Inputs {
        pod: &pod,
        container: &member.spec,
        attempt: order.attempt,
        image,
        env: environment.variables,
        mounts: std::mem::take(&mut mounts.list),
        log_path: log_path.clone(),
        facts: &context.facts,
        seccomp_dir: context.config.state_dir.join("seccomp"),
    })?;
    let carried = Carried {
        image: member.spec.image.as_deref().unwrap_or_default(),
        image_name: image.names.first().unwrap_or(&image.id),
        image_id: image.digests.first().unwrap_or(&image.id),
        delay: order.delay,
        signal: container::stop_signal(&member.spec, image),
        grace: super::gone_grace(&pod),
        spec: &member.spec,
    };
    config.annotations.extend(carried.annotations());
    if order.ending.is_cancelled() {
        return Err(Failure::Ending);
    }
    let message = format!("Created container {name}");
    let events = &context.events;
    events.container(&order.pod, member, Level::Normal, "Created", message);
    let run = context.runtime.run_container(&identity.uid, config).await;
    drop(mounts); // the container has its own now, or will have none
    let id = run.map_err(|error| match error {
        runtime::Error::Start { .. } => Failure::Ran(causes(&error)),
        runtime::Error::User(message) => setback("CreateContainerConfigError", message),
        error => setback("RunContainerError", causes(&error)),
    })?;
    logs::link(log_dir, &identity, name, &id, log_path).await;
    reached(Step::LogLinked);
    Ok(id)
}

async fn environment(
    context: &Context,
    order: &Order,
    pod: &Pod,
    member: &Member<'_>,
) -> Result<Environment, Failure> {
    // Where it takes too long the variables of Services are missing, which is not an error.
    let _ = tokio::time::timeout(SERVICES_WITHIN, context.services.synced()).await;
    let namespace = pod.namespace().unwrap_or_default();
    let links = match pod.spec.as_ref().and_then(|spec| spec.enable_service_links) {
        Some(false) => Links::ApiServer,
        _ => Links::Namespace,
    };
    let mut services = context.services.list_in(&namespace);
    if namespace != "default" {
        let key = crate::informer::Key::new("default", "kubernetes");
        services.extend(context.services.get(&key));
    }
    let services = service_env(
        services.iter().map(|service| service.as_ref()),
        &namespace,
        links,
    );
    let (config_maps, secrets) = container::referenced(&member.spec);
    let from_files = member.spec.env.iter().flatten().any(|variable| {
        let source = variable.value_from.as_ref();
        source.is_some_and(|source| source.file_key_ref.is_some())
    });
    let referenced = match config_maps.is_empty() && secrets.is_empty() && !from_files {
        true => container::Referenced::default(),
        false => order
            .volumes
            .referenced(pod, &member.spec)
            .await
            .map_err(|error| setback("CreateContainerConfigError", causes(&error)))?,
    };
    let facts = &context.facts;
    Ok(container::environment(
        pod,
        &member.spec,
        &services,
        &referenced,
        facts,
    )?)
}

pub fn identity(pod: &Pod) -> Identity {
    Identity {
        uid: pod.uid().unwrap_or_default(),
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
    }
}

/// The pod as its containers may ask about it: its status in the API may not have them yet.
fn with_addresses(pod: &Pod, pod_ips: &[IpAddr], host_ips: &[IpAddr]) -> Pod {
    let mut pod = pod.clone();
    let status = pod.status.get_or_insert_default();
    let text = |ips: &[IpAddr]| -> Vec<String> { ips.iter().map(IpAddr::to_string).collect() };
    let (pod_ips, host_ips) = (text(pod_ips), text(host_ips));
    status.pod_ip = pod_ips.first().cloned();
    status.pod_ips = Some(pod_ips.into_iter().map(|ip| PodIP { ip }).collect());
    status.host_ip = host_ips.first().cloned();
    status.host_ips = Some(host_ips.into_iter().map(|ip| HostIP { ip }).collect());
    pod
}
