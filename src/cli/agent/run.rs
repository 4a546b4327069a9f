//! What runs on a machine that is a node and nothing else.

use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, runtime::wait::await_condition};
use tokio::sync::mpsc;

use super::{
    super::{
        Error,
        daemon::{self, Pods, say},
        node::{self, Identity, Node},
        node_args::Machine,
        notify::Notifier,
    },
    certificates::Kept,
    join::{self, Joined},
    token::TokenSource,
};
use crate::{
    addresses::family::PerFamily,
    node_identity,
    runtime::image::Images,
    supervision::{Parts, Policy},
};

/// A node that is not ready by then is waited for in the background.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// All settings, checked before anything starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub machine: Machine,
    pub servers: Vec<Uri>,
    pub token: TokenSource,
}

/// Runs until asked to stop, by signal or through the control socket.
pub async fn run(config: Config, notifier: &Notifier) -> Result<(), Error> {
    daemon::install_crypto();
    daemon::raise_open_files();
    super::super::oom::be_spared();
    let machine = &config.machine;
    machine.paths.make()?;
    // Held to the process's very end, as the server does.
    std::mem::forget(daemon::lock(&machine.paths, &machine.root_flag).await?);

    say(notifier, "joining the cluster");
    let joined = join::join(machine, &config.servers, &config.token).await?;
    let identity = Identity::joined(
        &joined.client,
        &joined.proxy,
        &joined.membership.ca,
        joined.serving.clone(),
    )?;

    // What the others need ends last.
    let parts = Parts::default();
    let running = parts.group();
    running.start_endless(
        "part/allocator",
        Policy::Restart,
        crate::allocator::keep_small,
    );
    renew_certificates(&running, machine, &joined);
    let (state, run) = (machine.paths.state.clone(), machine.paths.runtime());
    let images = Images::open(state, run, machine.registries.clone()).await?;
    daemon::import_images(&running, joined.client.clone(), &images, machine);
    let (stop, mut stopped) = mpsc::channel(1);
    daemon::answer_commands(&running, &machine.paths, &images, stop)?;

    say(notifier, "starting the node");
    let started = Node::start(node_config(machine, &joined), identity, images, &parts).await;
    let result = match started {
        Ok(node) => until_the_end(machine, &joined, node, notifier, &parts, &mut stopped).await,
        Err(error) => Err(error),
    };
    running.stop().await;
    let _ = std::fs::remove_file(machine.paths.control_socket());
    parts.stop().await;
    result
}

fn renew_certificates(parts: &Parts, machine: &Machine, joined: &Joined) {
    let kept = Kept {
        client: joined.client.clone(),
        membership: joined.membership.clone(),
        record: join::record(&machine.paths),
        known_by: joined.known_by.clone(),
        serving: joined.serving.clone(),
        proxy_known_by: joined.proxy_known_by.clone(),
        addresses: joined.addresses,
    };
    parts.start(
        "part/certificate-renewal",
        Policy::Restart,
        move |shutdown| kept.clone().renew(shutdown),
    );
}

fn node_config(machine: &Machine, joined: &Joined) -> node::Config {
    node::Config {
        paths: machine.paths.clone(),
        name: machine.name.clone(),
        addresses: joined.addresses,
        pod_cidrs: joined.ranges.pods,
        services: joined.ranges.services,
        api_port: None,
        kubelet_port: machine.kubelet_port,
        limits: machine.limits,
        resources: machine.resources.clone(),
        description: machine.described.description.clone(),
        enforces_policies: machine.enforces_policies(),
        cni: machine.cni.clone(),
    }
}

/// Why a daemon ends that could go on.
enum End {
    Asked(Pods),
    /// The cluster has removed the node for good, with these words.
    Removed(String),
}

/// From the node's start to the end that somebody asks for. The server may be away for as long as it likes:
/// only what this machine lacks ends the daemon, a range of pod addresses that is not this node's any more, or
/// that the cluster has removed the node.
async fn until_the_end(
    machine: &Machine,
    joined: &Joined,
    node: Node,
    notifier: &Notifier,
    parts: &Parts,
    stopped: &mut mpsc::Receiver<Pods>,
) -> Result<(), Error> {
    let end = tokio::select! {
        end = daemon::wait_for_end(stopped) => end.map(End::Asked),
        error = welcome(joined, &node, notifier) => Err(error),
        lost = lost(joined) => match lost {
            Lost::Range(range) => Err(moved(joined, &range)),
            Lost::Node(why) => Ok(End::Removed(why)),
        },
        failure = parts.fatal() => Err(failure.into()),
    };
    say(notifier, "stopping");
    node.stop().await;
    match end? {
        End::Asked(Pods::Keep) => Ok(()),
        End::Asked(Pods::Remove) => node.remove_pods().await,
        // Its pods run elsewhere by now.
        End::Removed(why) => {
            join::remember_removal(&machine.paths, &why)?;
            node.remove_pods().await?;
            Err(why.into())
        }
    }
}

/// Tells when pods can run here; resolves when they cannot.
async fn welcome(joined: &Joined, node: &Node, notifier: &Notifier) -> Error {
    let name = &joined.membership.node;
    let told = async {
        tokio::time::sleep(PATIENCE).await;
        let line = format!(
            "node {name} is not ready yet; its pods go on, and it joins in when the cluster at {} answers",
            joined.membership.servers.join(",")
        );
        tracing::warn!("{line}");
        notifier.status(&line);
        notifier.ready();
        std::future::pending::<()>().await
    };
    let ready = async {
        while let Err(error) = node.ready_at_last(joined.client.clone()).await {
            tracing::debug!(%error, "whether the node is ready is not known");
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = ready => {}
        () = told => {}
        error = node.failed() => return error,
    }
    tracing::info!("this machine is the node {name}");
    notifier.ready();
    std::future::pending().await
}

/// What this machine has of the cluster no more.
enum Lost {
    /// Its pods' range: the cluster says that the node has this one.
    Range(String),
    /// All of it: the cluster has removed the node for good, with these words.
    Node(String),
}

/// Resolves when the cluster says that the node is gone for good or has another range than its pods are in.
async fn lost(joined: &Joined) -> Lost {
    let nodes: Api<NodeObject> = Api::all(joined.client.clone());
    let name = &joined.membership.node;
    let own = joined.ranges.pods;
    loop {
        match nodes.get_opt(name).await {
            Ok(node) => {
                if let Some(range) = other_range(node.as_ref(), &own) {
                    return Lost::Range(range);
                }
            }
            Err(error) => match removal(&error) {
                Some(why) => return Lost::Node(why),
                None => tracing::debug!(%error, "the node is not known"),
            },
        }
        let news = |node: Option<&NodeObject>| node.is_none() || other_range(node, &own).is_some();
        if let Err(error) = await_condition(nodes.clone(), name, news).await {
            tracing::debug!(%error, "the node is not watched");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The range of pod addresses that the node has, if it is not `own`.
fn other_range(node: Option<&NodeObject>, own: &PerFamily<IpNet>) -> Option<String> {
    let ranges = join::pod_ranges(node)?;
    (ranges != own.to_string()).then_some(ranges)
}

/// What the cluster says where it knows this machine no more because somebody has removed its node.
fn removal(error: &kube::Error) -> Option<String> {
    let kube::Error::Api(status) = error else {
        return None;
    };
    let details = status.details.as_ref()?;
    let mut causes = details.causes.iter();
    let is_removed = causes.any(|cause| cause.reason == node_identity::REMOVED);
    is_removed.then(|| status.message.clone())
}

fn moved(joined: &Joined, range: &str) -> Error {
    let (own, name) = (joined.ranges.pods, &joined.membership.node);
    format!(
        "the cluster gives the node {name} the range {range} for its pods, and those here have addresses of {own}: \
         somebody has deleted the Node, and others have its range now; `vetch reset` and join again"
    )
    .into()
}
