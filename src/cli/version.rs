//! `vetch version`.

use std::{io::Write, process::ExitCode};

use super::Error;

/// Print the version of vetch and of the Kubernetes API it speaks
#[derive(clap::Args)]
pub struct Version {}

impl Version {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        writeln!(
            out,
            "vetch {} (Kubernetes API v1.37{})",
            env!("CARGO_PKG_VERSION"),
            match env!("VETCH_BUILD_COMMIT") {
                "" => String::new(),
                commit => format!("; built of {commit}, {}", env!("VETCH_BUILD_TREE")),
            }
        )?;
        Ok(ExitCode::SUCCESS)
    }
}
