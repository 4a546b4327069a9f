//! `vetch kubeconfig`.

use std::{io::Write, process::ExitCode};

use super::{Error, paths::RootArg};

/// Print the kubeconfig of the cluster's administrator
#[derive(clap::Args)]
pub struct Kubeconfig {
    #[command(flatten)]
    root: RootArg,
}

impl Kubeconfig {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        let path = self.root.paths()?.kubeconfig();
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!(
                    "{} is not there: start the cluster with `vetch up{}` first",
                    path.display(),
                    self.root.flag()
                )
            }
            _ => format!("read {}: {error}", path.display()),
        })?;
        out.write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
