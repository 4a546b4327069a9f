//! What is recorded of the node, and its removal from the host by what is known of it.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Config, PodLimits,
    names::{Names, Ranges, cluster_cidr, cluster_dns},
    network,
    settings::{
        kubelet_config, network_folder, policy_config, proxy_config, runtime_config, tunnels,
    },
};
use crate::{
    addresses::family::PerFamily,
    cli::{Error, paths::Paths},
    format,
    kubelet::{
        self,
        network::{
            PodNetwork,
            cni::Folders,
            peers::{
                self,
                requested::{Encryption, Requested},
            },
        },
        node::Description,
        settings::ResourceSettings,
    },
    network_policy, proxy,
    runtime::Runtime,
};

/// The format of what is recorded of the node, and the oldest that is still read.
const RECORD: u32 = 2;
/// Of nodes that need nothing of what came later.
const OLDEST_RECORD: u32 = 1;

/// What the node was called when it last ran below this root.
pub fn recorded_name(paths: &Paths) -> Result<Option<String>, Error> {
    Ok(Recorded::load(paths)?.map(|recorded| recorded.name))
}

/// The ranges of services with which the node last ran below this root.
pub fn recorded_services(paths: &Paths) -> Result<Option<PerFamily<IpNet>>, Error> {
    let recorded = Recorded::load(paths)?.map(|recorded| recorded.services.parse());
    Ok(recorded.transpose()?)
}

/// The folders of the plugins that make the pods' network, if plugins do.
pub fn recorded_cni(paths: &Paths) -> Result<Option<Folders>, Error> {
    Ok(Recorded::load(paths)?.and_then(|recorded| recorded.cni))
}

/// Whether packets of pods were encrypted on their way to other nodes, or not sent, when the node last ran.
pub fn encrypts(paths: &Paths) -> bool {
    let requested = Requested::recorded(&network_folder(paths));
    *requested.current() != Encryption::None
}

/// Takes away what a stopped daemon has left on the host: pods, their network, services. Works with
/// what it finds: the cluster may be removed because something of it is damaged or has expired.
pub async fn remove(paths: &Paths) -> Result<(), Error> {
    let Some(recorded) = Recorded::of_remains(paths) else {
        return Ok(()); // there never was a node
    };
    let names = Names::of(paths);
    let config = Config {
        paths: paths.clone(),
        name: recorded.name,
        addresses: PerFamily::one(Ipv4Addr::LOCALHOST.into()),
        pod_cidrs: recorded.pod_cidr.parse()?,
        services: recorded.services.parse()?,
        api_port: None,
        kubelet_port: 0,
        limits: PodLimits::default(),
        resources: ResourceSettings::default(),
        enforces_policies: true,
        cni: recorded.cni,
        description: Description::default(),
    };
    let network = network::open_to_remove(&config, &names).await?;
    let runtime = Runtime::open(runtime_config(paths, &names)).await?;
    let kubelet = kubelet_config(&config, &names, cluster_dns(&config.services)?);
    kubelet::remove_pods(&kubelet, &runtime, &network).await?;
    let hierarchy = cgroups::Hierarchy::detect()?;
    let group = cgroups::Group::open(&hierarchy, &names.cgroup_root)?;
    if !runtime.set_aside().is_empty() {
        // They go too, though nobody knows how they would like to.
        group.kill_all()?;
        runtime.remove_set_aside().await?;
        kubelet::remove_pods(&kubelet, &runtime, &network).await?;
    }
    proxy::remove(proxy_config(&config, &names)).await?;
    // Of the same families: that is all that counts now.
    let addresses = config.pod_cidrs.map(IpNet::addr);
    network_policy::remove(policy_config(&config, &names, addresses)).await?;
    if let PodNetwork::Bridge(_) = network {
        let clusters = config.pod_cidrs.map(cluster_cidr);
        peers::remove(config.pod_cidrs, clusters, tunnels(&config, &names)).await?;
    }
    network.remove().await?;
    if let Some(cni) = network::forgotten_cni(&config).await? {
        cni.detach_all_but(&[]).await?;
    }
    group.remove()?;
    Ok(())
}

/// What `remove` must know of a node that ran with other settings than the usual ones.
#[derive(Serialize, Deserialize)]
pub(super) struct Recorded {
    #[serde(default)]
    version: u32,
    name: String,
    pod_cidr: String,
    services: String,
    /// Since version 2: a program that does not know it would take the network for its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<Folders>,
}

impl Recorded {
    fn path(paths: &Paths) -> PathBuf {
        paths.state.join("node.json")
    }

    pub fn save(config: &Config) -> Result<(), Error> {
        let recorded = Self {
            version: match config.cni {
                Some(_) => RECORD,
                None => OLDEST_RECORD,
            },
            name: config.name.clone(),
            pod_cidr: config.pod_cidrs.to_string(),
            services: config.services.to_string(),
            cni: config.cni.clone(),
        };
        let path = Self::path(&config.paths);
        std::fs::write(&path, serde_json::to_vec(&recorded)?)
            .map_err(|error| format!("write {}: {error}", path.display()).into())
    }

    /// What is known for a removal. Where the record is lost or damaged, that the node had the usual
    /// settings; nothing where no node has ever run.
    fn of_remains(paths: &Paths) -> Option<Self> {
        match Self::load(paths) {
            Ok(Some(recorded)) => return Some(recorded),
            Ok(None) if !runtime_config(paths, &Names::of(paths)).state_dir.exists() => {
                return None;
            }
            Ok(None) => tracing::warn!("the node's record is lost, its usual settings are assumed"),
            Err(error) => tracing::warn!(%error, "the node's usual settings are assumed"),
        }
        let ranges = Ranges::of(paths);
        Some(Self {
            version: RECORD,
            name: String::new(),
            pod_cidr: ranges.pods.to_string(),
            services: ranges.services.to_string(),
            cni: None,
        })
    }

    pub fn load(paths: &Paths) -> Result<Option<Self>, Error> {
        let path = Self::path(paths);
        match std::fs::read(&path) {
            Ok(bytes) => format::parse(&bytes, OLDEST_RECORD..=RECORD)
                .map(Some)
                .map_err(|error| format!("read {}: {error}", path.display()).into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("read {}: {error}", path.display()).into()),
        }
    }
}
