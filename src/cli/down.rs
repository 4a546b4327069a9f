//! `vetch down`.

use std::{io::Write, process::ExitCode};

use super::{
    Error, block_on,
    control::{self, Request},
    need_root,
    paths::RootArg,
};

/// Stop the daemon; pods go on running unless --pods is given
#[derive(clap::Args)]
pub struct Down {
    #[command(flatten)]
    root: RootArg,
    /// Stop and remove this node's pods too
    #[arg(long)]
    pods: bool,
}

impl Down {
    pub fn run(self) -> Result<ExitCode, Error> {
        need_root("down")?;
        let paths = self.root.paths()?;
        block_on(async {
            let request = Request::Stop { pods: self.pods };
            match control::call(&paths.control_socket(), &request, |_, _| {}).await? {
                Some(_) => {
                    super::daemon::wait_until_stopped(&paths)?;
                    writeln!(std::io::stdout(), "stopped")?;
                }
                None => writeln!(std::io::stdout(), "not running")?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
