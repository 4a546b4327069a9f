//! What `up` and `agent` let one say of this machine as a node.

use std::num::NonZeroU32;

use super::{
    Error, check,
    cni::CniArgs,
    disable::Part,
    node::{self, PodLimits},
    node_description::{Described, DescriptionArgs},
    node_name,
    paths::{Paths, RootArg},
    registries::{ImagesFolder, Registries},
    reservations::Reservations,
};
use crate::{
    kubelet::{container::SwapBehavior, network::cni::Folders, settings::ResourceSettings},
    logging,
    runtime::image,
};

#[derive(clap::Args)]
pub struct NodeArgs {
    #[command(flatten)]
    pub root: RootArg,
    /// Go to the background once it can be used
    #[arg(long)]
    pub detach: bool,
    /// This node's name [default: the one it had before, or the host's]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Port of the node's own API; 0 for any that is free
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    kubelet_port: u16,
    /// How many processes and threads a pod may have [default: as many as the node]
    #[arg(long, value_name = "N")]
    pod_pids_limit: Option<NonZeroU32>,
    /// How much swap pods may use whose annotations do not say so themselves
    #[arg(long, value_enum, default_value_t = Swap::None, value_name = "HOW")]
    swap: Swap,
    /// Leave these parts to other programs; may be repeated
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    disable: Vec<Part>,
    #[command(flatten)]
    reservations: Reservations,
    #[command(flatten)]
    registries: Registries,
    #[command(flatten)]
    description: DescriptionArgs,
    #[command(flatten)]
    cni: CniArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Swap {
    /// No swap
    None,
    /// Burstable pods get of the swap what their request is of the memory
    Limited,
}

impl From<Swap> for SwapBehavior {
    fn from(swap: Swap) -> Self {
        match swap {
            Swap::None => Self::NoSwap,
            Swap::Limited => Self::LimitedSwap,
        }
    }
}

/// The same, checked.
#[derive(Clone, Debug)]
pub struct Machine {
    pub paths: Paths,
    pub name: String,
    /// Its labels, its taints, and the address that was chosen for it.
    pub described: Described,
    pub kubelet_port: u16,
    pub limits: PodLimits,
    pub resources: ResourceSettings,
    pub registries: image::Settings,
    /// Archives to import at start.
    pub images: ImagesFolder,
    /// Parts that other programs take the place of.
    pub disabled: Vec<Part>,
    /// Plugins that make the pods' network, rather than we.
    pub cni: Option<Folders>,
    /// How the user would spell `--root` again, for messages.
    pub root_flag: String,
}

impl NodeArgs {
    /// Checks the arguments and what the kernel can do.
    pub fn machine(&self) -> Result<Machine, Error> {
        let paths = self.root.paths()?;
        let resources = self.reservations.settings()?;
        let registries = self.registries.settings(&paths)?;
        let images = self.registries.images(&paths)?;
        let described = self.description.described(&paths)?;
        let cni = self.cni.folders(described.cni.as_ref())?;
        if let Some(obstacles) = check::obstacles() {
            return Err(obstacles.into());
        }
        let recorded = node::recorded_name(&paths)?;
        let given = self.node_name.as_deref();
        let chosen = node_name::choose(given, recorded.as_deref(), &node_name::hostname())?;
        if let Some(note) = chosen.note {
            logging::note(format_args!("{note}"));
        }
        Ok(Machine {
            paths,
            name: chosen.name,
            described,
            kubelet_port: self.kubelet_port,
            limits: PodLimits {
                swap: self.swap.into(),
                processes: self.pod_pids_limit,
            },
            resources,
            registries,
            images,
            disabled: self.disable.clone(),
            cni,
            root_flag: self.root.flag(),
        })
    }
}

impl Machine {
    /// What NetworkPolicies say holds here.
    pub fn enforces_policies(&self) -> bool {
        !self.disabled.contains(&Part::NetworkPolicy)
    }
}
