//! The command line: a file per subcommand, each what was typed plus one `run`.
//!
//! Knows every part and is known by none but `main`. Exit codes: 0 done, 1 it failed (the message
//! says what and how to mend it), 2 the arguments make no sense.

mod administrator;
mod agent;
mod authority;
mod check;
mod cluster_dns;
mod cni;
mod completion;
mod control;
mod daemon;
mod demo;
mod detached;
mod disable;
mod down;
mod image;
mod kubeconfig;
mod lab;
mod logs;
mod node;
mod node_address;
mod node_args;
mod node_description;
mod node_name;
mod node_role;
mod nodes;
mod notify;
mod oom;
mod paths;
mod pod_encryption;
mod policy;
mod preload;
mod registries;
mod reservations;
mod reset;
mod status;
mod table;
mod token;
mod up;
mod version;

pub use authority::ClusterAuthority;
pub use daemon::install_crypto;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{allocator, causes::causes, lab::holder, logging, runtime::supervisor};

/// What went wrong, for a person: wrapping any error with what was being done is enough here.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Kubernetes as one small Linux program.
#[derive(Parser)]
#[command(
    name = "vetch",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(Box<up::Up>),
    Agent(Box<agent::Agent>),
    Down(down::Down),
    Reset(reset::Reset),
    Check(check::Check),
    Image(image::ImageCommand),
    Kubeconfig(kubeconfig::Kubeconfig),
    Lab(lab::Lab),
    Logs(logs::Logs),
    Token(token::Token),
    Policy(policy::Policy),
    Node(nodes::Node),
    Status(status::Status),
    Version(version::Version),
    Completion(completion::Completion),
    #[command(name = demo::server::SUBCOMMAND, hide = true)]
    DemoServer(demo::server::DemoServer),
}

/// Parses the arguments of the process and runs what they ask for.
pub fn main() -> ExitCode {
    // A pod's supervisor and the first process of a lab's host are this program too; they need nothing of what
    // follows.
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(first) if first == supervisor::SUBCOMMAND => {
            return supervisor::main(&args.collect::<Vec<_>>());
        }
        Some(first) if first == holder::SUBCOMMAND => {
            return holder::main(&args.collect::<Vec<_>>());
        }
        _ => {}
    }
    allocator::give_back();
    let result = match Cli::parse().command {
        Command::Up(up) => up.run(),
        Command::Agent(agent) => agent.run(),
        Command::Down(down) => down.run(),
        Command::Reset(reset) => reset.run(),
        Command::Check(check) => check.run(&mut std::io::stdout()),
        Command::Image(image) => image.run(),
        Command::Kubeconfig(kubeconfig) => kubeconfig.run(&mut std::io::stdout()),
        Command::Lab(lab) => lab.run(&mut std::io::stdout()),
        Command::Logs(logs) => logs.run(&mut std::io::stdout()),
        Command::Token(token) => token.run(&mut std::io::stdout()),
        Command::Policy(policy) => policy.run(&mut std::io::stdout()),
        Command::Node(node) => node.run(&mut std::io::stdout()),
        Command::Status(status) => status.run(&mut std::io::stdout()),
        Command::Version(version) => version.run(&mut std::io::stdout()),
        Command::Completion(completion) => completion.run(&mut std::io::stdout()),
        Command::DemoServer(server) => server.run(),
    };
    match result {
        Ok(code) => code,
        // The reader went away (`vetch logs | head`): not our failure.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::note(format_args!("vetch: {}", causes(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A runtime of one thread, for commands that only talk to the daemon.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// Everything that changes the machine needs root; better said at once than by step five.
fn need_root(command: &str) -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(format!("`vetch {command}` needs root: run it with sudo").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn spellings_others_rely_on() {
        for line in [
            "vetch up --root /x --detach",
            "vetch up --pod-encryption wireguard",
            "vetch kubeconfig --root /x",
            "vetch image import f.tar --root /x",
            "vetch agent --server https://192.0.2.1:6443 --token abcdef.0123456789abcdef --root /x",
            "vetch down --root /x --pods",
            "vetch reset --root /x --yes",
            "vetch token create --ttl 2h --root /x",
            "vetch token list --root /x",
            "vetch token delete abcdef --root /x",
            "vetch lab up --name a --servers 1 --nodes 3 --root /x -- --images-dir /i",
            "vetch lab down --name a --root /x",
            "vetch lab list",
            "vetch lab exec node1 --name a -- ip -o link",
            "vetch lab kubeconfig",
            "vetch lab delay node1 20",
            "vetch lab lose node1 5",
            "vetch lab heal",
            "vetch lab heal node1 --name a",
            "vetch node rm second --timeout 1m --force --root /x",
            "vetch node ls --root /x",
            "vetch status -o json --root /x",
            "vetch up --cni-conf-dir /etc/cni/net.d --cni-bin-dir /usr/lib/cni,/opt/cni/bin",
            "vetch check --cni-conf-dir /etc/cni/net.d --cni-bin-dir /usr/lib/cni",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
