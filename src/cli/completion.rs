//! `vetch completion`.

use std::{io::Write, process::ExitCode};

use clap::CommandFactory;

use super::{Cli, Error};

/// Print a completion script for a shell
#[derive(clap::Args)]
pub struct Completion {
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vetch", &mut script);
        out.write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
