//! Stopping a container: its preStop hook, its signal, and SIGKILL when the time is over.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec};
use kube::ResourceExt;

use super::Context;
use crate::{
    causes::causes,
    kubelet::{
        events::Level,
        pod::{
            self, Member,
            plan::Cause,
            record::{Fault, Record, carried_pre_stop},
        },
        probe::{self, Target},
    },
    runtime::{self, PodState, Runtime},
    supervision::steps::{Step, reached},
};

/// What is left for a signal to work after a hook has used up the time.
const LEAST: Duration = Duration::from_secs(2);
/// Within this time the other nodes' proxies have usually heard what this one's has: that a pod ends, and gets no
/// new connections. Nobody could tell that they have.
const OTHERS_HEAR: Duration = Duration::from_millis(100);
/// So long this node's is waited for. A busy control plane may take its time; without one, nobody would be told.
const PROXY_HEARS_WITHIN: Duration = Duration::from_secs(3);
/// A stop that failed is not tried again at once.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

pub struct Order {
    pub pod: Arc<Pod>,
    pub container: String,
    pub id: String,
    pub signal: i32,
    pub cause: Cause,
    pub grace: Duration,
    /// It was told to stop before, and shall now be quicker.
    pub again: bool,
    pub target: Target,
}

/// Resolves when the container has ended, or could not be made to.
pub async fn stop(context: &Context, order: &Order) {
    let member = pod::member(&order.pod, &order.container);
    let Some(member) = member.filter(|_| !order.again) else {
        return kill(context, order, order.grace).await;
    };
    let message = said(&order.cause, &order.container);
    let events = &context.events;
    events.container(&order.pod, &member, Level::Normal, "Killing", message);
    let began = Instant::now();
    if order.cause == Cause::Pod && order.grace >= LEAST && is_served(context, &order.pod) {
        heard(context, order).await;
    }
    if !order.grace.is_zero()
        && let Some(handler) = pre_stop(&member)
        && let Err(message) =
            probe::hook(&context.runtime, &order.target, handler, order.grace).await
    {
        let message = format!("PreStopHook failed: {message}");
        events.container(
            &order.pod,
            &member,
            Level::Warning,
            "FailedPreStopHook",
            message,
        );
    }
    reached(Step::StopAsked);
    let left = order.grace.saturating_sub(began.elapsed());
    kill(context, order, left.max(LEAST.min(order.grace))).await;
    reached(Step::ContainerGone);
}

/// Resolves when proxies send no new connections to the pod, or have had the time to hear that it ends.
async fn heard(context: &Context, order: &Order) {
    let uid = order.pod.uid().unwrap_or_default();
    // Addresses of the node are those of others too.
    if let Some(addresses) = context.network.addresses(&uid).await {
        let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
        let within = PROXY_HEARS_WITHIN.min(order.grace / 2);
        let _ = tokio::time::timeout(within, context.served.left(&addresses)).await;
    }
    tokio::time::sleep(OTHERS_HEAR).await;
}

/// Whether a Service sends connections to the pod, which it would refuse as soon as it has the signal.
fn is_served(context: &Context, pod: &Pod) -> bool {
    let services = context
        .services
        .list_in(&pod.namespace().unwrap_or_default());
    services.iter().any(|service| {
        let selector = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|selector| {
            !selector.is_empty()
                && selector
                    .iter()
                    .all(|(key, value)| pod.labels().get(key) == Some(value))
        })
    })
}

async fn kill(context: &Context, order: &Order, grace: Duration) {
    let stopped = context
        .runtime
        .stop_container(&order.id, order.signal, grace)
        .await;
    match stopped {
        Ok(()) | Err(runtime::Error::NoContainer(_) | runtime::Error::WrongPhase { .. }) => {}
        Err(error) => {
            let message = format!(
                "error killing container {}: {}",
                order.container,
                causes(&error)
            );
            let events = &context.events;
            events.pod(&order.pod, Level::Warning, "FailedKillPod", message);
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
}

/// Whether containers of a pod that nobody knows run their preStop hooks.
#[derive(Clone, Copy, Debug)]
pub enum Hooks {
    Skip,
    Run { address: Option<IpAddr> },
}

/// Stops what runs of a pod of which there is only what the runtime knows; each container has the
/// time that `grace` gives it. What does not stop is killed with its pod.
pub async fn stop_containers(
    runtime: &Runtime,
    pod: PodState,
    hooks: Hooks,
    grace: impl Fn(&Record) -> Duration,
) {
    let stops = pod.containers.into_iter().map(async |container| {
        let spec = carried_pre_stop(&container);
        let record = Record::here(container, pod.alive);
        if !record.is_running() {
            return;
        }
        let (grace, began) = (grace(&record), Instant::now());
        if let Hooks::Run { address } = hooks
            && let Some(spec) = spec.filter(|_| !grace.is_zero())
            && let Err(error) = run_carried(runtime, &record, spec, address, grace).await
        {
            tracing::warn!(container = record.name, error, "PreStopHook failed");
        }
        let left = grace.saturating_sub(began.elapsed()).max(LEAST.min(grace));
        let _ = runtime
            .stop_container(&record.id, record.signal, left)
            .await;
    });
    futures::future::join_all(stops).await;
}

/// The preStop hook of a container that has its own spec with it.
async fn run_carried(
    runtime: &Runtime,
    record: &Record,
    spec: Container,
    address: Option<IpAddr>,
    grace: Duration,
) -> Result<(), String> {
    let lifecycle = spec.lifecycle.clone();
    let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop) else {
        return Ok(());
    };
    let pod = Arc::new(Pod {
        spec: Some(PodSpec {
            containers: vec![spec],
            ..PodSpec::default()
        }),
        ..Pod::default()
    });
    let target = target(&pod, &record.name, &record.id, address, SystemTime::now());
    probe::hook(runtime, &target, &handler, grace).await
}

fn pre_stop<'a>(member: &'a Member<'_>) -> Option<&'a LifecycleHandler> {
    member.spec.lifecycle.as_ref()?.pre_stop.as_ref()
}

fn said(cause: &Cause, container: &str) -> String {
    match cause {
        Cause::Pod => format!("Stopping container {container}"),
        Cause::Changed => {
            format!("Container {container} definition changed, will be restarted")
        }
        Cause::Fault(Fault::Liveness) => {
            format!("Container {container} failed liveness probe, will be restarted")
        }
        Cause::Fault(Fault::Startup) => {
            format!("Container {container} failed startup probe, will be restarted")
        }
        Cause::Fault(Fault::PostStart(_)) => "FailedPostStartHook".to_owned(),
    }
}

/// What probes and hooks must know of a container.
pub fn target(
    pod: &Arc<Pod>,
    container: &str,
    id: &str,
    address: Option<IpAddr>,
    started: SystemTime,
) -> Target {
    Target {
        pod: pod.clone(),
        container: container.to_owned(),
        container_id: id.to_owned(),
        address,
        started,
        already_started: false,
    }
}
