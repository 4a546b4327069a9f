//! Which network the node's pods have, and the way from one to the other.
//!
//! A pod keeps its network as long as it runs: a node changes over when none does.

use std::collections::BTreeSet;

use super::{
    Config,
    names::{Names, cluster_cidr},
    removal::Recorded,
    settings::{bridge_config, cni_config, tunnels},
};
use crate::{
    cli::Error,
    kubelet::network::{
        PodNetwork,
        bridge::{self, BridgeNetwork},
        cni::{CniNetwork, Folders},
        peers,
    },
    runtime::Runtime,
};

/// Takes away what is left of the other network, if the node had that `before`.
pub(super) async fn leave_other(
    config: &Config,
    names: &Names,
    runtime: &Runtime,
    before: Option<&Recorded>,
) -> Result<(), Error> {
    match (before.map(|before| &before.cni), &config.cni) {
        (Some(None), Some(_)) => leave_bridge(config, names, runtime).await,
        (Some(Some(folders)), None) => leave_cni(config, folders, runtime).await,
        _ => Ok(()),
    }
}

/// Takes the network over, or makes it.
pub(super) async fn open(config: &Config, names: &Names) -> Result<PodNetwork, Error> {
    Ok(match &config.cni {
        None => PodNetwork::Bridge(BridgeNetwork::open(bridge_config(config, names)).await?),
        Some(folders) => {
            PodNetwork::Cni(CniNetwork::open(cni_config(config, folders.clone())).await?)
        }
    })
}

/// Opens it for when nothing of it shall be left.
pub(super) async fn open_to_remove(config: &Config, names: &Names) -> Result<PodNetwork, Error> {
    if let Some(folders) = &config.cni {
        let cni = CniNetwork::open_to_remove(cni_config(config, folders.clone())).await?;
        return Ok(PodNetwork::Cni(cni));
    }
    let bridge = match BridgeNetwork::open(bridge_config(config, names)).await {
        Err(bridge::Error::Records { .. }) => {
            BridgeNetwork::open_to_remove(bridge_config(config, names)).await?
        }
        opened => opened?,
    };
    Ok(PodNetwork::Bridge(bridge))
}

/// What plugins hold for pods of a node whose record says nothing of plugins, since it is lost, say.
pub(super) async fn forgotten_cni(config: &Config) -> Result<Option<CniNetwork>, Error> {
    let nowhere = Folders {
        configurations: "/nonexistent".into(),
        programs: Vec::new(),
    };
    let cni = cni_config(config, nowhere);
    match config.cni.is_none() && CniNetwork::has_records(&cni) {
        true => Ok(Some(CniNetwork::open_to_remove(cni).await?)),
        false => Ok(None),
    }
}

async fn leave_bridge(config: &Config, names: &Names, runtime: &Runtime) -> Result<(), Error> {
    let bridge = BridgeNetwork::open(bridge_config(config, names)).await?;
    let running = running_of(bridge.owners(), runtime).await;
    if !running.is_empty() {
        return Err(refusal(
            config,
            running.len(),
            "the node's own network",
            "CNI plugins",
        )
        .into());
    }
    bridge.remove().await?;
    let clusters = config.pod_cidrs.map(cluster_cidr);
    Ok(peers::remove(config.pod_cidrs, clusters, tunnels(config, names)).await?)
}

async fn leave_cni(config: &Config, folders: &Folders, runtime: &Runtime) -> Result<(), Error> {
    let cni = CniNetwork::open(cni_config(config, folders.clone())).await?;
    let running = running_of(cni.owners(), runtime).await;
    if !running.is_empty() {
        let (from, to) = ("a network of CNI plugins", "the node's own network");
        return Err(refusal(config, running.len(), from, to).into());
    }
    Ok(cni.detach_all_but(&[]).await?)
}

/// Those of the pods that run, or may.
async fn running_of(mut owners: Vec<String>, runtime: &Runtime) -> Vec<String> {
    let pods = runtime.pods().await.into_iter();
    let alive = pods.filter(|pod| pod.alive);
    let alive: BTreeSet<String> = alive
        .map(|pod| pod.config.identity.uid)
        .chain(runtime.set_aside().into_keys())
        .collect();
    owners.retain(|uid| alive.contains(uid));
    owners
}

fn refusal(config: &Config, pods: usize, from: &str, to: &str) -> String {
    let root = config.paths.root.as_ref();
    let root = root.map(|root| format!(" --root {}", root.display()));
    let root = root.unwrap_or_default();
    let way = match config.cni {
        Some(_) => "without --cni-conf-dir",
        None => "with --cni-conf-dir",
    };
    format!(
        "pods of this node ({pods}) run on {from}, and keep it as long as they run: to change over to {to}, start \
         {way} as before, stop them with `vetch down --pods{root}`, and start again"
    )
}
