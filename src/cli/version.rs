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
            "vetch {} (Kubernetes API v1.37)",
            env!("CARGO_PKG_VERSION")
        )?;
        Ok(ExitCode::SUCCESS)
    }
}
