//! `vetch lab`: a cluster of several machines on this one.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{Error, block_on, daemon, need_root, node};
use crate::lab::{self, Fault, IpFamily, Labs, Name, Row, Size, Wanted, plan};

/// A cluster of several machines on this one, for trying things
#[derive(Args)]
pub struct Lab {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a lab; returns when all its nodes are Ready
    Up {
        /// Machines with the control plane, which are nodes too
        #[arg(long, default_value_t = 1, value_name = "N")]
        servers: u8,
        /// Further machines, which are nodes
        #[arg(long, default_value_t = 2, value_name = "N")]
        nodes: u8,
        /// Which addresses machines, pods and Services have
        #[arg(long, value_enum, default_value_t = Addresses::Ipv4, value_name = "FAMILY")]
        ip_family: Addresses,
        /// Flags of `vetch up` and `vetch agent` for every machine, such as --images-dir
        #[arg(last = true, value_name = "FLAG")]
        flags: Vec<String>,
        #[command(flatten)]
        of: LabArgs,
    },
    /// Remove a lab with all that it has on this machine, also one that is half made
    Down {
        #[command(flatten)]
        of: LabArgs,
    },
    /// List the hosts of all labs
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        root: LabsArg,
    },
    /// Run a program on a host; its exit code is this command's
    Exec {
        #[command(flatten)]
        host: HostArgs,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Print the kubeconfig of a lab's administrator
    Kubeconfig {
        #[command(flatten)]
        of: LabArgs,
    },
    /// Pull the cable of a host
    Cut {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Let packets to and from a host take longer
    Delay {
        #[command(flatten)]
        host: HostArgs,
        /// Milliseconds, each way; 0 for none
        #[arg(value_name = "MS", value_parser = clap::value_parser!(u32).range(..=60_000))]
        ms: u32,
    },
    /// Lose packets to and from a host
    Lose {
        #[command(flatten)]
        host: HostArgs,
        /// How many of a hundred, each way; 0 for none
        #[arg(value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(..=100))]
        percent: u8,
    },
    /// Cut the power of a host: all its processes are killed
    Kill {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Let the daemon of a host stand still; its pods go on
    Freeze {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Take back what is wrong with a host, or with all; starts those that are off
    Heal {
        host: Option<String>,
        #[command(flatten)]
        of: LabArgs,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Addresses {
    Ipv4,
    Ipv6,
    /// Both, IPv4 first
    Dual,
}

impl From<Addresses> for IpFamily {
    fn from(addresses: Addresses) -> Self {
        match addresses {
            Addresses::Ipv4 => Self::Ipv4,
            Addresses::Ipv6 => Self::Ipv6,
            Addresses::Dual => Self::Dual,
        }
    }
}

#[derive(Args)]
struct LabsArg {
    /// Keep labs below this folder, instead of in /var/lib/vetch-labs
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Args)]
struct LabArgs {
    /// Which lab
    #[arg(long, default_value = plan::USUAL_NAME)]
    name: Name,
    #[command(flatten)]
    root: LabsArg,
}

#[derive(Args)]
struct HostArgs {
    /// Such as server1, node1, node2
    host: String,
    #[command(flatten)]
    of: LabArgs,
}

impl LabsArg {
    fn labs(&self) -> Result<Labs, lab::Error> {
        Labs::new(self.root.as_deref())
    }
}

impl Lab {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        need_root("lab")?;
        let program = std::env::current_exe()?;
        match self.verb {
            Verb::Up {
                servers,
                nodes,
                ip_family,
                flags,
                of,
            } => {
                let wanted = Wanted {
                    size: Size::new(servers, nodes)?,
                    ip_family: ip_family.into(),
                    flags,
                };
                up(&of, &wanted, program, out)?;
            }
            Verb::Down { of } => {
                lab::down(&of.root.labs()?, &of.name)?;
                writeln!(out, "removed the lab {}", of.name)?;
            }
            Verb::List { root } => show(out, &lab::list(&root.labs()?, None)?)?,
            Verb::Exec { host, command } => {
                let labs = host.of.root.labs()?;
                let run = lab::exec(&labs, &host.of.name, &host.host, &command);
                let code = block_on(async { Ok(run.await?) })?;
                return Ok(code.into());
            }
            Verb::Kubeconfig { of } => {
                let text = lab::kubeconfig(&of.root.labs()?, &of.name)?;
                out.write_all(text.as_bytes())?;
            }
            Verb::Cut { host } => host.inflict(Fault::Cut)?,
            Verb::Delay { host, ms } => host.inflict(Fault::Delay(ms))?,
            Verb::Lose { host, percent } => host.inflict(Fault::Lose(percent))?,
            Verb::Kill { host } => host.inflict(Fault::Kill)?,
            Verb::Freeze { host } => host.inflict(Fault::Freeze)?,
            Verb::Heal { host, of } => {
                daemon::install_crypto();
                let labs = of.root.labs()?;
                let heal = lab::heal(&labs, &of.name, host.as_deref(), program);
                block_on(async { Ok(heal.await?) })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl HostArgs {
    fn inflict(&self, fault: Fault) -> Result<(), lab::Error> {
        lab::inflict(&self.of.root.labs()?, &self.of.name, &self.host, fault)
    }
}

fn up(of: &LabArgs, wanted: &Wanted, program: PathBuf, out: &mut dyn Write) -> Result<(), Error> {
    daemon::install_crypto();
    let labs = of.root.labs()?;
    let group = |root: &Path| node::cgroup_below(root);
    let made = lab::up(&labs, &of.name, wanted, program, group);
    let kubeconfig = block_on(async { Ok(made.await?) })?;
    show(out, &lab::list(&labs, Some(&of.name))?)?;
    writeln!(out, "export KUBECONFIG={}", kubeconfig.display())?;
    Ok(())
}

fn show(out: &mut dyn Write, rows: &[Row]) -> std::io::Result<()> {
    /// As wide as an IPv4 address needs it.
    const LEAST: usize = 16;
    let widths = rows.iter().map(|row| row.address.len());
    let wide = widths.max().unwrap_or_default().max(LEAST);
    writeln!(
        out,
        "{:<16} {:<10} {:<wide$} STATE",
        "LAB", "HOST", "ADDRESS"
    )?;
    for row in rows {
        let (lab, host, address) = (&row.lab, &row.host, &row.address);
        writeln!(out, "{lab:<16} {host:<10} {address:<wide$} {}", row.state)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_listed_in_columns() {
        let row = |address: &str| Row {
            lab: "default".into(),
            host: "node1".into(),
            address: address.into(),
            state: "cut".into(),
        };
        for (address, want) in [
            (
                "10.200.0.3",
                "LAB              HOST       ADDRESS          STATE\n\
                 default          node1      10.200.0.3       cut\n",
            ),
            (
                "10.200.0.3,fd00::3",
                "LAB              HOST       ADDRESS            STATE\n\
                 default          node1      10.200.0.3,fd00::3 cut\n",
            ),
        ] {
            let mut out = Vec::new();
            show(&mut out, &[row(address)]).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }
}
