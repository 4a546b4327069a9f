//! `vetch reset`.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use super::{
    Error, block_on,
    control::{self, Request},
    need_root,
    paths::RootArg,
};
use crate::runtime::files;

/// Stop everything and remove every trace, the cluster's data included
#[derive(clap::Args)]
pub struct Reset {
    #[command(flatten)]
    root: RootArg,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Reset {
    pub fn run(self) -> Result<ExitCode, Error> {
        need_root("reset")?;
        let paths = self.root.paths()?;
        if !self.yes && !confirmed()? {
            return Err("nothing was changed; `vetch reset --yes` does not ask".into());
        }
        block_on(async {
            let request = Request::Stop { pods: true };
            control::call(&paths.control_socket(), &request, |_, _| {}).await?;
            super::daemon::wait_until_stopped(&paths)?;
            super::node::remove(&paths).await
        })?;
        for path in paths.all() {
            match files::remove_tree(path) {
                // A disk that somebody mounted there: its files are gone, the folder stays.
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {}
                removed => {
                    removed.map_err(|error| format!("remove {}: {error}", path.display()))?;
                }
            }
        }
        if let Some(root) = &paths.root {
            // Whatever the user keeps beside our folders is theirs.
            let _ = std::fs::remove_dir(root);
        }
        writeln!(std::io::stdout(), "removed the cluster and all its data")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn confirmed() -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut out = std::io::stdout();
    write!(
        out,
        "This removes the cluster and all its data. Type yes to go on: "
    )?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}
