//! `vetch agent`: this machine as a node of a cluster that runs elsewhere.

mod certificates;
mod join;
mod run;
mod server;
mod token;

use std::{io::Write, process::ExitCode};

use http::Uri;

pub use self::join::{record, refuse_member};
use super::{Error, detached, disable, need_root, node_args::NodeArgs, notify::Notifier};
use crate::logging;

/// Join this machine to a cluster, as a node
#[derive(clap::Args)]
pub struct Agent {
    #[command(flatten)]
    node: NodeArgs,
    /// The cluster's API server, https://HOST:PORT; of several the first that answers [default: the one that this machine has joined]
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = server::address)]
    server: Vec<Uri>,
    #[command(flatten)]
    token: token::TokenArgs,
}

impl Agent {
    pub fn run(self) -> Result<ExitCode, Error> {
        need_root("agent")?;
        let machine = self.node.machine()?;
        disable::refuse_control_plane(&machine.disabled)?;
        if self.node.detach {
            detached::start(&machine.paths)?;
            let name = &machine.name;
            writeln!(std::io::stdout(), "This machine is the node {name}.")?;
            return Ok(ExitCode::SUCCESS);
        }
        logging::start();
        let config = run::Config {
            machine,
            servers: self.server,
            token: self.token.source(),
        };
        let notifier = Notifier::from_env();
        detached::run_daemon(run::run(config, &notifier))?;
        Ok(ExitCode::SUCCESS)
    }
}
