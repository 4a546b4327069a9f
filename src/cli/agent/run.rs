//! What runs on a machine that is a node and nothing else.

use std::time::Duration;

use http::Uri;
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
};
use crate::{
    bootstrap_token::BootstrapToken,
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
    pub token: Option<BootstrapToken>,
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
    let joined = join::join(machine, &config.servers, config.token.as_ref()).await?;
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
        Ok(node) => until_the_end(&joined, node, notifier, &parts, &mut stopped).await,
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
        address: joined.address,
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
        address: joined.address,
        pod_cidr: joined.ranges.pods,
        services: joined.ranges.services,
        api_port: None,
        kubelet_port: machine.kubelet_port,
        limits: machine.limits,
        resources: machine.resources.clone(),
    }
}

/// From the node's start to the end that somebody asks for. The server may be away for as long as it likes:
/// only what this machine lacks ends the daemon, or a range of pod addresses that is not this node's any more.
async fn until_the_end(
    joined: &Joined,
    node: Node,
    notifier: &Notifier,
    parts: &Parts,
    stopped: &mut mpsc::Receiver<Pods>,
) -> Result<(), Error> {
    let result = tokio::select! {
        end = daemon::wait_for_end(stopped) => end,
        error = welcome(joined, &node, notifier) => Err(error),
        range = other_range(joined) => Err(moved(joined, &range)),
        failure = parts.fatal() => Err(failure.into()),
    };
    say(notifier, "stopping");
    node.stop().await;
    match result? {
        Pods::Keep => Ok(()),
        Pods::Remove => node.remove_pods().await,
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

/// The range of pod addresses that the cluster says this node has, once it is not the one that its pods are in.
async fn other_range(joined: &Joined) -> String {
    let nodes: Api<NodeObject> = Api::all(joined.client.clone());
    let own = joined.ranges.pods.to_string();
    let range = |node: Option<&NodeObject>| node?.spec.as_ref()?.pod_cidr.clone();
    loop {
        let own = own.clone();
        let moved = move |node: Option<&NodeObject>| range(node).is_some_and(|range| range != own);
        match await_condition(nodes.clone(), &joined.membership.node, moved).await {
            Ok(node) => return range(node.as_ref()).unwrap_or_default(),
            Err(error) => tracing::debug!(%error, "the node's range is not known"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn moved(joined: &Joined, range: &str) -> Error {
    let (own, name) = (joined.ranges.pods, &joined.membership.node);
    format!(
        "the cluster gives the node {name} the range {range} for its pods, and those here have addresses of {own}: \
         somebody has deleted the Node, and others have its range now; `vetch reset` and join again"
    )
    .into()
}
