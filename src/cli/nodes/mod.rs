//! `vetch node`: the cluster's nodes, from the server.

mod drain;
mod list;
mod plan;
mod remove;

use std::{io::Write, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use self::plan::Manner;
use super::{Error, administrator, block_on, daemon, paths::RootArg};
use crate::kubelet::settings;

/// List the nodes, or take one out of the cluster
#[derive(Args)]
pub struct Node {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Move a node's pods elsewhere and remove the node: its machine does not come back by itself
    #[command(name = "rm", visible_alias = "remove")]
    Remove {
        /// The node's name
        name: String,
        /// How long its pods may take to leave: `90s`, `1h30m`
        #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = settings::duration)]
        timeout: Duration,
        /// Delete its pods, whatever disruption budgets say, and do not wait for a machine that is away
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        root: RootArg,
    },
    /// List the nodes
    #[command(name = "ls", visible_alias = "list")]
    List {
        #[command(flatten)]
        root: RootArg,
    },
}

impl Node {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        daemon::install_crypto();
        block_on(async {
            match self.verb {
                Verb::Remove {
                    name,
                    timeout,
                    force,
                    root,
                } => {
                    let flag = root.flag();
                    let removal = remove::Removal {
                        client: administrator::client(&root.paths()?, &flag).await?,
                        name,
                        manner: match force {
                            true => Manner::Delete,
                            false => Manner::Evict,
                        },
                        timeout,
                        flag,
                    };
                    removal.run(out).await?;
                }
                Verb::List { root } => {
                    let client = administrator::client(&root.paths()?, &root.flag()).await?;
                    list::list(client, out).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
